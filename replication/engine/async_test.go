package engine

import (
	"bytes"
	"context"
	"sync/atomic"
	"testing"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/protocol/drbd"
	"golang.org/x/sys/unix"
)

// changed is an asyncDevice whose results are others than the disk's.
type changed struct {
	asyncDevice
	err  atomic.Pointer[error] // of all operations; nil: as they are
	many *atomic.Int32
	sync atomic.Int32 // how many of them were Syncs
}

func (c *changed) Start(ops []blockdev.AsyncOp) int {
	n := c.asyncDevice.Start(ops)
	for _, op := range ops[:n] {
		if op.IsSync {
			c.sync.Add(1)
		}
	}
	return n
}

func (c *changed) Run(done func([]blockdev.AsyncResult)) {
	c.asyncDevice.Run(func(results []blockdev.AsyncResult) {
		c.many.Add(int32(len(results)))
		if err := c.err.Load(); err != nil {
			for i := range results {
				results[i].Err = *err
			}
		}
		done(results)
	})
}

// asyncPair is a Primary on an O_DIRECT disk, with a peer; last changes the
// results of its latest attach, many counts them.
func asyncPair(t *testing.T) (a *node, last *atomic.Pointer[changed], many *atomic.Int32) {
	t.Helper()
	last, many = new(atomic.Pointer[changed]), new(atomic.Int32)
	a, b := newPair(t, func(c *Config) { c.Volumes[0].Direct = true })
	a.async1 = func(data blockdev.Device) asyncDevice {
		real := openAsync(data)
		if real == nil {
			return nil
		}
		c := &changed{asyncDevice: real, many: many}
		last.Store(c)
		return c
	}
	a.up()
	b.up()
	a.await("connection", isConnected)
	if err := a.Primary(true); err != nil {
		t.Fatal(err)
	}
	a.await("first sync", inSync)
	b.await("first sync", inSync)
	if last.Load() == nil {
		// What is tested does not exist there: workers do it all.
		t.Skip("the file system or the kernel has no O_DIRECT or no aio")
	}
	return a, last, many
}

// writeMany writes blocks at once, each with a pattern of its own, and waits.
func writeMany(t *testing.T, c *client, blocks int, seed uint64) {
	t.Helper()
	var reqs []*blockdev.Request
	for i := range blocks {
		data := blockdev.AlignedBuffer(4096)
		copy(data, pattern(seed+uint64(i), 4096))
		reqs = append(reqs, c.submit(blockdev.OpWrite, int64(i)*8192, data, len(data)))
	}
	for _, r := range reqs {
		if err := c.s.wait(r); err != nil {
			t.Fatal(err)
		}
	}
}

func checkMany(t *testing.T, c *client, blocks int, seed uint64) {
	t.Helper()
	for i := range blocks {
		got := blockdev.AlignedBuffer(4096)
		if err := c.s.wait(c.submit(blockdev.OpRead, int64(i)*8192, got, len(got))); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, pattern(seed+uint64(i), 4096)) {
			t.Fatalf("block %d is not what was written", i)
		}
	}
}

// What the kernel would not do at once is done by a worker.
func TestAsyncNotNow(t *testing.T) {
	a, last, many := asyncPair(t)
	c := a.open()
	writeMany(t, c, 100, 1)
	checkMany(t, c, 100, 1)
	writeMany(t, c, 100, 2) // now the file has its blocks
	if many.Load() == 0 {
		t.Error("nothing was done without a worker")
	}
	not := error(blockdev.ErrNotNow)
	last.Load().err.Store(&not)
	writeMany(t, c, 100, 1000)
	checkMany(t, c, 100, 1000)
	if got := a.Status().Volumes[0].Disk; got != drbd.UpToDate {
		t.Errorf("the disk is %v, want UpToDate", got)
	}
}

// An error detaches the disk, which waits for what else is under way; clients go
// on with the peer, and the disk can be attached again.
func TestAsyncError(t *testing.T) {
	a, last, _ := asyncPair(t)
	c := a.open()
	writeMany(t, c, 100, 1)
	bad := error(unix.EIO)
	last.Load().err.Store(&bad)
	writeMany(t, c, 100, 1000)
	a.await("detach", func(s Status) bool { return s.Volumes[0].Disk == drbd.Diskless })
	checkMany(t, c, 100, 1000)
	if err := a.Attach(0); err != nil {
		t.Fatal(err)
	}
	a.await("resync", inSync)
	checkMany(t, c, 100, 1000)
	c.flush()
}

// With one processor a client's flush goes by aio, too, and is as true as
// without: a disk that cannot is detached, and the peer's copy is what counts.
func TestAsyncFlush(t *testing.T) {
	a, last, _ := asyncPair(t)
	c := a.open()
	writeMany(t, c, 10, 1)
	before := last.Load().sync.Load()
	c.flush()
	if got := last.Load().sync.Load() - before; got != 1 {
		t.Errorf("%d syncs went by aio for one flush", got)
	}
	not := error(blockdev.ErrNotNow)
	last.Load().err.Store(&not)
	writeMany(t, c, 10, 2)
	c.flush() // by the worker
	writeMany(t, c, 10, 3)
	bad := error(unix.EIO)
	last.Load().err.Store(&bad)
	c.flush()
	a.await("detach", func(s Status) bool { return s.Volumes[0].Disk == drbd.Diskless })
	checkMany(t, c, 10, 3)
}

// An epoch that the disk fails to make durable is not acknowledged.
func TestAsyncSyncError(t *testing.T) {
	for _, err := range []error{nil, unix.EIO, blockdev.ErrNotNow} {
		n := rawNode(t, func(c *Config) { c.Volumes[0].Direct = true })
		if e := n.Secondary(); e != nil {
			t.Fatal(e)
		}
		var last *changed
		n.singleCPU = true
		n.openAsync = func(data blockdev.Device) asyncDevice {
			real := openAsync(data)
			if real == nil {
				return nil
			}
			last = &changed{asyncDevice: real, many: new(atomic.Int32)}
			return last
		}
		if e := n.Detach(context.Background(), 0, true); e != nil {
			t.Fatal(e)
		}
		if e := n.Attach(0); e != nil {
			t.Fatal(e)
		}
		if last == nil {
			// As above.
			t.Skip("the file system or the kernel has no O_DIRECT or no aio")
		}
		p := dialRaw(n, kernelFeatures)
		p.connect(word{state: func(s *drbd.State) { s.Role = drbd.Primary }}, drbd.Connected)
		b := header(drbd.CmdData, 0, 24+4096)
		b = drbd.Data{Sector: 8, BlockID: 1, Seq: 1, Flags: drbd.DPSendWriteAck}.Append(b)
		p.raw(p.data, append(b, make([]byte, 4096)...))
		p.await(drbd.CmdWriteAck)
		if err != nil {
			last.err.Store(&err)
		}
		b = header(drbd.CmdBarrier, 0, 8)
		p.raw(p.data, drbd.Barrier{Barrier: 1}.Append(b))
		if err == unix.EIO { // it is this one
			n.await("detach", func(s Status) bool { return s.Volumes[0].Disk == drbd.Diskless })
			p.mu.Lock()
			for _, k := range p.got {
				if k.Command == drbd.CmdBarrierAck {
					t.Error("the epoch is acknowledged")
				}
			}
			p.mu.Unlock()
		} else {
			p.await(drbd.CmdBarrierAck)
		}
		if last.many.Load() == 0 {
			t.Error("nothing went by aio")
		}
		p.close()
		n.halt()
	}
}
