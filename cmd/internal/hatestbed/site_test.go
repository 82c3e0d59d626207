package hatestbed

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

const (
	programDir = "../../../bin"
	guestDir   = "../../../build/guest"
	guestLimit = 2 * time.Minute
)

// needSite skips where the programs or the guest are not built.
func needSite(t *testing.T) (bin, guest string) {
	t.Helper()
	for _, dir := range []*string{&bin, &guest} {
		path := map[*string]string{&bin: programDir, &guest: guestDir}[dir]
		var err error
		if *dir, err = filepath.Abs(path); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{filepath.Join(bin, "polluxd"), filepath.Join(guest, "initramfs.cpio")} {
		if _, err := os.Stat(file); err != nil {
			t.Skipf("%v; 'make build' and scripts/demo/build-guest make it", err)
		}
	}
	return bin, guest
}

// byHand is a rack without polluxha, its machine running on the first host.
func byHand(t *testing.T) (s *Site, run string, ctx context.Context) {
	t.Helper()
	bin, guest := needSite(t)
	ctx, cancel := context.WithTimeout(t.Context(), guestLimit)
	t.Cleanup(cancel)
	dir, err := os.MkdirTemp("", "pollux-ha-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if s, err = NewSite(ctx, bin, guest, dir, "", 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	a := s.Hosts[0]
	for _, h := range s.dataHosts() {
		mustAdm(t, s, h, "create-md", "--force", resourceName)
		if err := s.Start(ctx, h, "polluxd"); err != nil {
			t.Fatal(err)
		}
	}
	mustAdm(t, s, a, "wait-connect", "--timeout", "30s", resourceName)
	mustAdm(t, s, a, "new-current-uuid", "--clear-bitmap", resourceName+"/0")
	if err := s.waitFor(ctx, time.Minute, "both copies", s.InSync); err != nil {
		t.Fatal(err)
	}
	mustAdm(t, s, a, "vm", "start", vmName)
	last, err := s.Customer.Wait(ctx, time.Time{}, func(a Acked) bool { return a.Number == 50 })
	if err != nil {
		t.Fatal(err)
	}
	return s, last.Run, ctx
}

// misses tells whether a host has lost its peer.
func (s *Site) misses(h *Host) func() bool {
	return func() bool {
		r, ok := s.sights[h.Name].Now()
		return ok && r.Connection != "Connected"
	}
}

func mustAdm(t *testing.T, s *Site, h *Host, args ...string) {
	t.Helper()
	if out, err := s.Adm(t.Context(), h, args...); err != nil {
		t.Fatal(err, out)
	}
}

// What the rounds judge by must itself be right: a failover by hand after the
// death of a host is found in order.
func TestE2EFailoverByHand(t *testing.T) {
	s, run, ctx := byHand(t)
	a, b := s.Hosts[0], s.Hosts[1]
	struck := time.Now()
	if err := s.PowerOff(ctx, a); err != nil {
		t.Fatal(err)
	}
	if err := s.waitFor(ctx, time.Minute, "the other host to miss it", s.misses(b)); err != nil {
		t.Fatal(err)
	}
	mustAdm(t, s, b, "vm", "failover", vmName, "--peer-is-down", a.Name)
	second, err := s.Customer.Wait(ctx, struck, func(a Acked) bool { return a.Run != run })
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("failover took %v, the longest gap was %v", second.At.Sub(struck), s.Customer.LongestGap(struck))
	for _, boot := range append(s.consoles[a.Name].Boots(), s.consoles[b.Name].Boots()...) {
		if f := boot.faults(); len(f) > 0 {
			t.Error(f)
		}
	}
	if lost, err := s.ReadBack(ctx, time.Time{}); err != nil || len(lost) > 0 {
		t.Errorf("read back: %v, lost %v", err, lost)
	}
	mustAdm(t, s, b, "vm", "stop", vmName)
	acked, lost, err := s.ReadDisk(ctx, b)
	if err != nil || len(lost) > 0 || acked < 60 {
		t.Errorf("the survivor's disk: %v, %d acknowledged, lost %v", err, acked, lost)
	}
	if overlap, late := s.Watcher.Overlap(), s.LateAcks(time.Time{}); overlap > 0 || len(late) > 0 {
		t.Errorf("two machines ran for %v, late: %v", overlap, late)
	}
	if lives := s.Watcher.Lives(struck.Add(-time.Second)); len(lives) < 2 {
		t.Errorf("lives of the machine: %+v, want one on each host", lives)
	}
}

// What nobody protects goes wrong, and is seen: a host that was only cut off
// goes on, while the operator vouches that it is down.
func TestE2ESplitIsSeen(t *testing.T) {
	s, run, ctx := byHand(t)
	a, b := s.Hosts[0], s.Hosts[1]
	struck := time.Now()
	if err := s.CutOff(ctx, a); err != nil {
		t.Fatal(err)
	}
	if err := s.waitFor(ctx, time.Minute, "the other host to miss it", s.misses(b)); err != nil {
		t.Fatal(err)
	}
	mustAdm(t, s, b, "vm", "failover", vmName, "--peer-is-down", a.Name)
	if _, err := s.Customer.Wait(ctx, struck, func(a Acked) bool { return a.Run != run }); err != nil {
		t.Fatal(err)
	}
	if err := s.waitFor(ctx, time.Minute, "acknowledgements of both", func() bool { return len(s.LateAcks(struck)) > 1 }); err != nil {
		t.Error(err)
	}
	if lost, err := s.ReadBack(ctx, time.Time{}); err != nil || len(lost) == 0 {
		t.Errorf("read back: %v, lost %v; want what the cut-off guest had promised", err, lost)
	}
	if overlap := s.Watcher.Overlap(); overlap < overlapLimit {
		t.Errorf("two machines ran for %v, want more than %v", overlap, overlapLimit)
	}
	rep := &Report{}
	rep.secondWriters(s.LateAcks(struck))
	if rep.Harm != 1 || len(rep.Faults) != 1 {
		t.Errorf("the verdict on two writers: %+v", rep)
	}
}
