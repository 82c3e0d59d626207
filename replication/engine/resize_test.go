package engine

import (
	"bytes"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/replication/meta"
)

// TestResizeOnline enlarges both files under a volume in use: what was written
// stays, the new part is synced, and after a restart all is in its place.
func TestResizeOnline(t *testing.T) {
	a, b := newPair(t, nil)
	a.up()
	b.up()
	a.await("connection", isConnected)
	if err := a.Primary(true); err != nil {
		t.Fatal(err)
	}
	a.await("sync", inSync)
	c := a.open()
	old := a.Volume(0).Size()
	data := pattern(1, 64<<10)
	c.write(old-64<<10, data)
	const grown = testSize + 8<<20
	for _, n := range []*node{a, b} {
		if err := os.Truncate(n.cfg.Volumes[0].Disk, grown); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Resize(0, 0, false, false); err != nil {
		t.Fatal(err)
	}
	l, err := meta.NewLayout(meta.Internal, 0, grown, 0, 1, 8)
	if err != nil {
		t.Fatal(err)
	}
	b.await("resync of the new part", func(s Status) bool {
		r := s.Volumes[0].Resync
		return inSync(s) || r != nil && !r.Source && r.WantBytesPerSec > 0
	})
	a.await("resync of the new part", inSync)
	b.await("resync of the new part", inSync)
	for _, n := range []*node{a, b} {
		if got := n.Volume(0).Size(); got != l.Usable.Bytes() {
			t.Errorf("%s exports %d bytes, want %d", n.cfg.Node, got, l.Usable.Bytes())
		}
	}
	more := pattern(2, 64<<10)
	c.write(l.Usable.Bytes()-64<<10, more)
	c.flush()
	if got := c.read(old-64<<10, 64<<10); !bytes.Equal(got, data) {
		t.Error("what was written before is lost")
	}
	a.crash()
	b.crash()
	var disks [2][]byte
	for i, n := range []*node{a, b} {
		raw, err := os.ReadFile(n.cfg.Volumes[0].Disk)
		if err != nil {
			t.Fatal(err)
		}
		disks[i] = raw[:l.Usable.Bytes()]
	}
	if !bytes.Equal(disks[0], disks[1]) {
		t.Error("the disks differ")
	}
	if !bytes.Equal(disks[0][l.Usable.Bytes()-64<<10:], more) {
		t.Error("the last write is not on the disk")
	}
	a.up()
	b.up()
	a.await("sync after the restart", inSync)
}

// TestCheckResize enlarges a file while nobody uses it: attach finds no
// metadata, check-resize does and moves it.
func TestCheckResize(t *testing.T) {
	a, _ := newPair(t, nil)
	a.up()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	path := a.cfg.Volumes[0].Disk
	if err := os.Truncate(path, testSize+1<<20); err != nil {
		t.Fatal(err)
	}
	e, err := New(a.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Attach(0); err == nil {
		t.Fatal("a disk without metadata at its end was attached")
	}
	e.halt()
	record, err := ReadDeviceRecord(a.cfg.StateDir, "r0", 0)
	if err != nil || record.Bytes != testSize {
		t.Fatalf("remembered: %+v, %v", record, err)
	}
	dev, err := blockdev.Open(path, blockdev.Options{Exclusive: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{true, false} {
		if moved, err := CheckResize(dev, record); moved != want || err != nil {
			t.Fatalf("moved %t, %v, want %t", moved, err, want)
		}
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	a.up()
}

// TestReaddress moves a connection to other ports without taking anything down.
func TestReaddress(t *testing.T) {
	a, b := newPair(t, nil)
	a.up()
	b.up()
	a.await("connection", isConnected)
	if err := a.Primary(true); err != nil {
		t.Fatal(err)
	}
	a.await("sync", inSync)
	ports := freePorts(t, 2)
	for i, n := range []*node{a, b} {
		cfg := n.cfg
		cfg.Volumes = slices.Clone(cfg.Volumes)
		cfg.Volumes[0].Options.MDFlushes = false
		cfg.Local = netip.AddrPortFrom(cfg.Local.Addr(), uint16(ports[i]))
		cfg.Peer = netip.AddrPortFrom(cfg.Peer.Addr(), uint16(ports[1-i]))
		if err := n.Reconfigure(cfg); err != nil {
			t.Fatal(err)
		}
		if err := n.Connect(ConnectOptions{}); err != nil {
			t.Fatal(err)
		}
		if got := n.Volume(0).options(); got.MDFlushes {
			t.Error("the next attach would have the old options")
		}
	}
	a.await("connection at the new addresses", inSync)
}
