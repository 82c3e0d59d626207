package engine

import (
	"bytes"
	"slices"
	"sync"
	"testing"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/protocol/drbd"
)

// hanging is a device whose reads and writes of data end only when the gate is
// opened.
type hanging struct {
	blockdev.Device
	gate *gate
}

type gate struct {
	mu    sync.Mutex
	shut  chan struct{} // nil: open
	below int64
}

func (g *gate) close() {
	g.mu.Lock()
	g.shut = make(chan struct{})
	g.mu.Unlock()
}

func (g *gate) open() {
	g.mu.Lock()
	close(g.shut)
	g.shut = nil
	g.mu.Unlock()
}

func (g *gate) pass(off int64) {
	g.mu.Lock()
	shut := g.shut
	g.mu.Unlock()
	if shut != nil && off < g.below {
		<-shut
	}
}

func (h *hanging) ReadAt(p []byte, off int64) (int, error) {
	h.gate.pass(off)
	return h.Device.ReadAt(p, off)
}

func (h *hanging) WriteAt(p []byte, off int64) (int, error) {
	h.gate.pass(off)
	return h.Device.WriteAt(p, off)
}

// A disk that hangs is given up after disk-timeout, whoever's it is: clients go on
// with the peer's copy, in other memory than the one that the disk may still
// write to. It is attached again only once it has ended what it was asked for.
func TestHangingDisk(t *testing.T) {
	a, b := newPair(t, nil)
	g := &gate{below: 15 << 20}
	a.open1 = func(path string, o blockdev.Options) (blockdev.Device, error) {
		dev, err := blockdev.Open(path, o)
		return &hanging{dev, g}, err
	}
	a.up()
	b.up()
	a.await("connection", isConnected)
	if err := a.Primary(true); err != nil {
		t.Fatal(err)
	}
	a.await("first sync", inSync)
	b.await("first sync", inSync)
	c := a.open()
	old, fresh := pattern(1, 8192), pattern(2, 8192)
	c.write(0, old)
	c.write(1<<20, old)

	// Only while it hangs: the disk of a busy machine may be slow at any time.
	diskTimeout := func(ms int64) {
		t.Helper()
		cfg := a.cfg
		cfg.Volumes = slices.Clone(cfg.Volumes)
		cfg.Volumes[0].Options.DiskTimeoutMS = ms
		if err := a.Reconfigure(cfg); err != nil {
			t.Fatal(err)
		}
	}
	diskTimeout(200)
	g.close()
	memory := make([]byte, 8192)
	read := c.submit(blockdev.OpRead, 1<<20, memory, 8192)
	payload := bytes.Clone(fresh)
	write := c.submit(blockdev.OpWrite, 0, payload, 8192)
	for _, r := range []*blockdev.Request{read, write} {
		if err := c.s.wait(r); err != nil || !r.Moved {
			t.Fatalf("%v: error %v, moved %v", r.Op, err, r.Moved)
		}
	}
	if !bytes.Equal(read.Data, old) || &read.Data[0] == &memory[0] || write.Data != nil {
		t.Error("the read was not served from other memory, or the write's is still there")
	}
	if got := a.Status().Volumes[0].Disk; got != drbd.Failed {
		t.Errorf("the disk is %v while an I/O hangs, want Failed", got)
	}
	if err := a.Attach(0); err == nil {
		t.Error("attached while a late write may come")
	}
	newer := pattern(3, 8192)
	c.write(0, newer)

	diskTimeout(0)
	g.open()
	a.await("the end of the late write", func(s Status) bool { return s.Volumes[0].Disk == drbd.Diskless })
	if err := a.Attach(0); err != nil {
		t.Fatal(err)
	}
	a.await("resync", inSync)
	b.await("resync", inSync)
	if !bytes.Equal(c.read(0, 8192), newer) {
		t.Error("the late write has overwritten a newer one")
	}
	c.flush()
	c.finish(b)
}
