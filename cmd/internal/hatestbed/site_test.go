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

// What the rounds judge by must itself be right: a failover by hand, with a
// client on the network, on a rack without polluxha.
func TestE2ESiteByHand(t *testing.T) {
	bin, guest := needSite(t)
	ctx, cancel := context.WithTimeout(t.Context(), guestLimit)
	defer cancel()
	dir, err := os.MkdirTemp("", "pollux-ha-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s, err := NewSite(ctx, bin, guest, dir, false, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	must := func(h *Host, args ...string) {
		t.Helper()
		if out, err := s.Adm(ctx, h, args...); err != nil {
			t.Fatal(err, out)
		}
	}
	a, b := s.Hosts[0], s.Hosts[1]
	for _, h := range s.dataHosts() {
		must(h, "create-md", "--force", resourceName)
		if err := s.Start(ctx, h, "polluxd"); err != nil {
			t.Fatal(err)
		}
	}
	must(a, "wait-connect", "--timeout", "30s", resourceName)
	must(a, "new-current-uuid", "--clear-bitmap", resourceName+"/0")
	if err := s.waitFor(ctx, time.Minute, "both copies", s.InSync); err != nil {
		t.Fatal(err)
	}
	must(a, "vm", "start", vmName)
	began := time.Now()
	first, err := s.Customer.Wait(ctx, began, func(Acked) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	boots := s.consoles[a.Name].Boots()
	t.Logf("first acknowledgement %v after the start; boots %+v", first.At.Sub(began), boots)
	if _, err := s.Customer.Wait(ctx, began, func(a Acked) bool { return a.Number == 50 }); err != nil {
		t.Fatal(err)
	}

	struck := time.Now()
	if err := a.space.Kill(); err != nil {
		t.Fatal(err)
	}
	must(b, "vm", "failover", vmName, "--peer-is-down", a.Name)
	second, err := s.Customer.Wait(ctx, struck, func(a Acked) bool { return a.Run != first.Run })
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
	must(b, "vm", "stop", vmName)
	acked, lost, err := s.ReadDisk(ctx, b)
	if err != nil || len(lost) > 0 || acked < 60 {
		t.Errorf("the survivor's disk: %v, %d acknowledged, lost %v", err, acked, lost)
	}
	if overlap, late := s.Watcher.Overlap(), s.LateAcks(began); overlap > 0 || len(late) > 0 {
		t.Errorf("two machines ran for %v, late: %v", overlap, late)
	}
	if lives := s.Watcher.Lives(began); len(lives) < 2 {
		t.Errorf("lives of the machine: %+v, want one on each host", lives)
	}
}
