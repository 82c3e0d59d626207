package e2e

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// background starts a client and returns how it ends.
func background(t *testing.T, args ...string) <-chan error {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() }) //nolint:errcheck // it may have ended
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	return done
}

func stillRuns(t *testing.T, what string, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		t.Errorf("%s: ended: %v", what, err)
	case <-time.After(500 * time.Millisecond):
	}
}

func mustEnd(t *testing.T, what string, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	case <-time.After(waitLimit):
		t.Errorf("%s does not end", what)
	}
}

// fencing resource-and-stonith: I/O freezes when the peer is lost.
func TestE2EFreeze(t *testing.T) {
	begin(t, "qemu-io")
	p := newPair(t, options{global: impatient + " disk { fencing resource-and-stonith; }"})
	mustIO(t, p.a.uri("r0"), "write -P 1 0 64k", "flush")
	p.b.kill()
	a := p.a.wait("frozen", func(a adm.Resource) bool { return len(a.Suspended) > 0 })
	if a.Suspended[0] != "fencing" || a.Role != "Primary" {
		t.Errorf("alpha: %+v", a)
	}
	if out := p.a.must("status", "r0"); !strings.Contains(out, "frozen") {
		t.Errorf("status: %s", out)
	}
	w := background(t, "qemu-io", "-f", "raw", "-c", "write -P 2 64k 64k", p.a.uri("r0"))
	stillRuns(t, "a write to a frozen resource", w)
	// The peer comes back: it goes on.
	p.b.start()
	p.inSync()
	mustEnd(t, "the write after the peer is back", w)
	// The operator decides.
	p.b.kill()
	p.a.wait("frozen", func(a adm.Resource) bool { return len(a.Suspended) > 0 })
	w = background(t, "qemu-io", "-f", "raw", "-c", "write -P 3 128k 64k", p.a.uri("r0"))
	stillRuns(t, "a write to a frozen resource", w)
	p.a.must("resume-io", "r0")
	mustEnd(t, "the write after resume-io", w)
	mustIO(t, p.a.uri("r0"), "read -P 1 0 64k", "read -P 2 64k 64k", "read -P 3 128k 64k")
	p.b.start()
	p.inSync()
	p.a.must("secondary", "r0")
	p.equalDisks("disk.img", usable32)
}

// A fence-peer handler that confirms lets the Primary go on by itself.
func TestE2EFenceHandler(t *testing.T) {
	begin(t, "qemu-io")
	p := configured(t, options{})
	script := p.a.path("fence")
	record := p.a.path("fenced")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho \"$DRBD_RESOURCE $DRBD_PEER $DRBD_PEER_ADDRESS $DRBD_MINOR\" >> "+record+"\nexit 7\n"), 0o755); err != nil { //nolint:gosec // a script
		t.Fatal(err)
	}
	for _, n := range []*node{p.a, p.b} {
		n.write("r0.res", p.resource(n, impatient+` disk { fencing resource-and-stonith; } handlers { fence-peer "`+script+`"; }`))
	}
	p.up()
	p.b.kill()
	mustIO(t, p.a.uri("r0"), "write -P 1 0 64k", "flush")
	peer, _, _ := strings.Cut(p.b.addr, ":")
	if got, want := readText(record), "r0 bravo "+peer+" 0\n"; got != want {
		t.Errorf("the handler got %q, want %q", got, want)
	}
	a := p.a.status()
	if len(a.Suspended) > 0 || a.Volumes[0].PeerDisk != "Outdated" {
		t.Errorf("alpha: %+v", a)
	}
	p.b.start()
	p.inSync()
}

// on-no-data-accessible suspend-io: a Primary that loses all data waits.
func TestE2ENoData(t *testing.T) {
	begin(t, "qemu-io", "nbdfuse", "nbdkit")
	p := configured(t, options{global: impatient + " options { on-no-data-accessible suspend-io; } disk { on-io-error detach; }"})
	bad := badDisk(t, p.a)
	p.up()
	mustIO(t, p.a.uri("r0"), "write -P 1 0 64k", "flush")
	if err := os.WriteFile(bad, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mustIO(t, p.a.uri("r0"), "write -P 2 64k 64k", "flush")
	p.a.wait("diskless", func(a adm.Resource) bool { return a.Volumes[0].Disk == "Diskless" })
	p.b.kill()
	p.a.wait("frozen", func(a adm.Resource) bool { return len(a.Suspended) > 0 })
	w := background(t, "qemu-io", "-f", "raw", "-c", "write -P 3 128k 64k", p.a.uri("r0"))
	stillRuns(t, "a write without any data", w)
	p.b.start()
	mustEnd(t, "the write after the data is back", w)
	mustIO(t, p.a.uri("r0"), "read -P 1 0 64k", "read -P 2 64k 64k", "read -P 3 128k 64k")
}

// on-io-error pass_on keeps the disk; with a good peer the client sees nothing.
func TestE2EPassOn(t *testing.T) {
	begin(t, "qemu-io", "nbdfuse", "nbdkit")
	p := configured(t, options{global: impatient + " disk { on-io-error pass_on; }"})
	bad := badDisk(t, p.b)
	p.up()
	mustIO(t, p.a.uri("r0"), "write -P 1 8M 4M", "flush") // the extents are hot
	if err := os.WriteFile(bad, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mustIO(t, p.a.uri("r0"), "write -P 2 8M 64k")
	p.a.wait("the peer's copy is known to be bad", func(a adm.Resource) bool {
		return a.Volumes[0].PeerDisk != "UpToDate" || a.Volumes[0].OutOfSyncBytes > 0
	})
	mustIO(t, p.a.uri("r0"), "read -P 2 8M 64k")
	if err := os.Remove(bad); err != nil {
		t.Fatal(err)
	}
	// However bravo has taken it, the way back is the documented one.
	if p.b.status().Volumes[0].Disk == "Diskless" {
		p.b.must("attach", "r0")
	} else {
		p.b.must("disconnect", "r0")
		p.b.must("connect", "r0")
	}
	p.inSync()
	p.a.stop()
	p.b.stop()
	equalFiles(t, p.a.path("disk.img"), p.b.path("real.img"), usable32)
}

// Protocols A and B lose nothing while both nodes live, nor by the death of
// the Secondary; and after a failover all blocks are whole.
func TestE2EProtocols(t *testing.T) {
	for _, proto := range []string{"A", "B"} {
		t.Run(proto, func(t *testing.T) {
			begin(t, "fio")
			p := newPair(t, options{size: 64 << 20, global: "net { protocol " + proto + "; connect-int 3; ping-int 3; timeout 20; }"})
			l := startLoad(t, p.a.uri("r0"), 4, 3*time.Second)
			p.written()
			time.Sleep(randomMoment())
			p.b.kill()
			time.Sleep(randomMoment() / 2)
			p.b.start()
			l.end()
			p.inSync()
			l.verify(p.a.uri("r0"))
			if out := p.a.must("status", "r0"); !strings.Contains(out, "protocol "+proto) {
				t.Errorf("status: %s", out)
			}
			p.a.must("secondary", "r0")
			p.b.must("primary", "r0")
			l.verify(p.b.uri("r0"))
			p.equalDisks("disk.img", usable64)
		})
	}
}

// A full sync goes on where it was when either side is killed in it, with
// writes in between.
func TestE2EResyncInterrupted(t *testing.T) {
	begin(t, "nbdcopy")
	p := newPair(t, options{size: 64 << 20, global: quick})
	file, data := randomFile(t, usable64, 3)
	mustRun(t, "nbdcopy", "--flush", file, p.a.uri("r0"))
	for _, n := range []*node{p.a, p.b} { // slow enough to be seen
		n.write("r0.res", p.resource(n, quick+" disk { c-plan-ahead 0; resync-rate 16M; c-min-rate 0; }"))
		n.must("adjust", "r0")
	}
	p.a.must("invalidate-remote", "r0")
	done := func(percent float64) func(adm.Resource) bool {
		return func(b adm.Resource) bool { r := b.Volumes[0].Resync; return r != nil && r.Done() > percent }
	}
	p.b.wait("some of it", done(20))
	out := p.b.must("status", "r0")
	for _, w := range []string{"%", "/s"} {
		if !strings.Contains(out, w) {
			t.Errorf("status lacks %q during a resync: %s", w, out)
		}
	}
	// The source dies.
	p.a.kill()
	p.b.wait("the source is lost", func(b adm.Resource) bool { return b.Connection == "WFConnection" })
	p.b.refused(17, []string{"r0", "(-2)", "--force"}, "primary", "r0")
	if st := p.b.status(); st.Volumes[0].Disk != "Inconsistent" || st.Role != "Secondary" {
		t.Errorf("after a refused promotion: %+v", st)
	}
	p.a.start()
	// The target dies.
	p.b.wait("most of it", done(50))
	p.b.kill()
	left := p.a.status().Volumes[0].OutOfSyncBytes
	if out := p.b.must("dstate", "r0"); out != "Inconsistent\n" {
		t.Errorf("a half-synced disk is %s", out)
	}
	p.b.start()
	p.b.wait("it goes on", func(b adm.Resource) bool { return b.Volumes[0].Resync != nil || healthy(b) })
	// What was synced in the last two seconds may not be on record yet.
	if r := p.b.status().Volumes[0].Resync; r != nil && r.TotalBytes > left+36<<20 {
		t.Errorf("the resync begins with %d bytes again, %d were left", r.TotalBytes, left)
	}
	p.inSync()
	if got := readExport(t, p.a.uri("r0")); !bytes.Equal(got, data) {
		t.Error("alpha's data has changed")
	}
	p.a.must("secondary", "r0")
	p.b.must("primary", "r0")
	if got := readExport(t, p.b.uri("r0")); !bytes.Equal(got, data) {
		t.Error("bravo's data is not alpha's")
	}
	p.equalDisks("disk.img", usable64)
}

// Strangers on every socket.
func TestE2EGarbage(t *testing.T) {
	begin(t, "qemu-io")
	p := newPair(t, options{global: quick})
	noise := make([]byte, 64<<10)
	rand.NewChaCha8([32]byte{7}).Read(noise) //nolint:errcheck // never fails
	huge := binary.BigEndian.AppendUint32(nil, 0x8620ec20)
	huge = append(huge, 0, 0, 0, 0x10, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0)
	longLine := bytes.Repeat([]byte("a"), 1<<20)
	before := p.a.peakKiB()
	for _, target := range []struct{ network, addr string }{
		{"unix", p.a.path("ctl")}, {"unix", p.a.path("nbd")}, {"tcp", p.a.addr},
	} {
		for i, junk := range [][]byte{noise, huge, longLine, []byte("GET / HTTP/1.0\r\n\r\n"), nil} {
			conn, err := net.DialTimeout(target.network, target.addr, time.Second)
			if err != nil {
				continue // the replication port is open only while it is needed
			}
			if err := conn.SetDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			conn.Write(junk)          //nolint:errcheck // it may be closed in the middle
			io.Copy(io.Discard, conn) //nolint:errcheck // likewise
			if err := conn.Close(); err != nil {
				t.Errorf("%s %d: %v", target.addr, i, err)
			}
		}
	}
	// The same while the node waits for its peer.
	p.b.stop()
	p.a.wait("alone", func(a adm.Resource) bool { return a.Connection == "WFConnection" })
	for i, junk := range [][]byte{noise, huge, []byte("GET / HTTP/1.0\r\n\r\n"), nil} {
		conn, err := net.DialTimeout("tcp", p.a.addr, time.Second)
		if err != nil {
			t.Fatalf("%d: the port of a node that waits is closed: %v", i, err)
		}
		conn.Write(junk) //nolint:errcheck // it may be closed in the middle
		conn.Close()     // it may be reset
	}
	p.b.start()
	p.inSync()
	mustIO(t, p.a.uri("r0"), "write -P 1 0 1M", "flush", "read -P 1 0 1M")
	if after := p.a.peakKiB(); after > before+24<<10 {
		t.Errorf("memory grew from %d to %d KiB", before, after)
	}
	if st := p.a.status(); st.Role != "Primary" || !healthy(st) {
		t.Errorf("alpha: %+v", st)
	}
	if !strings.Contains(p.a.log(), "reason") {
		t.Errorf("nothing is logged")
	}
}

// Clients of a Primary that is frozen in its process only see a pause.
func TestE2EPrimaryPaused(t *testing.T) {
	begin(t)
	p := newPair(t, options{global: impatient})
	w := startWriter(t, p.a, loadBytes)
	p.written()
	p.a.signal(syscall.SIGSTOP)
	p.b.wait("the Primary is missed", func(b adm.Resource) bool { return b.Connection != "Connected" })
	p.a.signal(syscall.SIGCONT)
	p.inSync()
	w.stop()
	w.check(p.a)
	p.a.must("secondary", "r0")
	p.b.must("primary", "r0")
	w.check(p.b)
	p.equalDisks("disk.img", usable32)
}
