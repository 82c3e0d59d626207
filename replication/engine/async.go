package engine

import (
	"errors"
	"sync"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/internal/perf"
	"github.com/pollux-project/pollux/replication"
)

// asyncDepth is the most operations of one volume that the kernel has at once
// without a worker for each; what is more waits for the workers. Results of
// asyncBatch are stepped under one lock.
const (
	asyncDepth = 128
	asyncBatch = 64
)

// An asyncDevice is a *blockdev.Async, or what tests put around it.
type asyncDevice interface {
	Can(p []byte, off int64) bool
	Start(ops []blockdev.AsyncOp) int
	Run(done func([]blockdev.AsyncResult))
	Close()
}

func openAsync(data blockdev.Device) asyncDevice {
	if a := blockdev.OpenAsync(data, asyncDepth); a != nil {
		return a
	}
	return nil
}

// asyncIO does the I/O of one attach that needs no worker: reads and writes of
// an O_DIRECT disk which are neither durable nor have to be looked at. A thread
// for each operation costs more than it: measured on 2 cores with both nodes on
// them, aio took 0.60 (depth 1) and 0.30 (depth 16) of the workers' CPU time for a
// write, and had 1.19 and 1.81 times their IOPS.
type asyncIO struct {
	v    *Volume
	dev  asyncDevice
	mu   sync.Mutex
	ops  [asyncDepth]localIO // by tag
	free []int               // tags
	todo []blockdev.AsyncOp
}

// newAsync returns nil if workers have to do everything.
func newAsync(v *Volume, data blockdev.Device) *asyncIO {
	dev := v.e.openAsync(data)
	if dev == nil {
		return nil
	}
	a := &asyncIO{v: v, dev: dev}
	for i := range asyncDepth {
		a.free = append(a.free, i)
	}
	v.e.background.Add(1)
	go func() {
		defer v.e.background.Done()
		dev.Run(a.ended)
	}()
	return a
}

// hand has operations done by others than the caller; all are of one volume.
func (v *Volume) hand(ops []localIO) {
	if v.async.Load() != nil && !v.mayHang.Load() { // else nobody but a worker may wait for the disk, or for who closes it
		v.diskMu.RLock()
		defer v.diskMu.RUnlock()
		if a := v.async.Load(); a != nil {
			a.start(ops)
			return
		}
	}
	for i := range ops {
		v.queue(ops[i])
	}
}

// start begins what can be; the caller holds diskMu, so that the disk stays.
func (a *asyncIO) start(ops []localIO) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range ops {
		op := &ops[i]
		if !a.takes(op) {
			a.v.queue(*op)
			continue
		}
		if op.op == replication.OpRead && op.isPeer {
			op.data = a.v.e.pool.get(int(op.size))
		}
		if !a.dev.Can(op.data, op.sector.Bytes()) {
			a.giveUp(op)
			continue
		}
		if op.isTimed {
			op.begun = perf.Now()
		}
		tag := a.free[len(a.free)-1]
		a.free = a.free[:len(a.free)-1]
		a.ops[tag] = *op
		a.todo = append(a.todo, blockdev.AsyncOp{IsWrite: op.op == replication.OpWrite, Tag: tag, Data: op.data, Offset: op.sector.Bytes()})
	}
	n := a.dev.Start(a.todo)
	for i := range a.todo[n:] {
		tag := a.todo[n+i].Tag
		a.giveUp(&a.ops[tag])
		a.release(tag)
	}
	clear(a.todo)
	a.todo = a.todo[:0]
}

// startSync has the kernel make the data durable, if it does that without a
// thread of ours that waits: the scheduler's monitor would look after that one
// every 20 us, which on a machine with one processor takes it from others. False
// means that nothing was begun.
func (v *Volume) startSync() bool {
	if v.mayHang.Load() || !v.e.singleCPU {
		return false
	}
	v.diskMu.RLock()
	defer v.diskMu.RUnlock()
	a := v.async.Load()
	if a == nil {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.free) == 0 {
		return false
	}
	tag := a.free[len(a.free)-1]
	a.free = a.free[:len(a.free)-1]
	a.ops[tag] = localIO{vol: v, op: replication.OpFlush, begun: perf.Now()}
	a.todo = append(a.todo, blockdev.AsyncOp{IsSync: true, Tag: tag})
	n := a.dev.Start(a.todo)
	a.todo = a.todo[:0]
	if n == 0 {
		a.release(tag)
	}
	return n == 1
}

func (a *asyncIO) takes(op *localIO) bool {
	return len(a.free) > 0 && (op.op == replication.OpWrite || op.op == replication.OpRead) && !op.fua && op.look == nil
}

// giveUp leaves op to a worker.
func (a *asyncIO) giveUp(op *localIO) {
	if op.op == replication.OpRead && op.isPeer {
		a.v.e.pool.put(op.data)
		op.data = nil
	}
	a.v.queue(*op)
}

// again has one that was begun done by who may wait.
func (a *asyncIO) again(op *localIO) {
	if op.op == replication.OpFlush {
		a.v.syncs <- struct{}{}
		return
	}
	a.giveUp(op)
}

func (a *asyncIO) release(tag int) {
	a.ops[tag] = localIO{}
	a.free = append(a.free, tag)
}

// ended steps results.
func (a *asyncIO) ended(results []blockdev.AsyncResult) {
	e := a.v.e
	var ops [asyncBatch]localIO
	a.mu.Lock()
	for i, r := range results {
		ops[i] = a.ops[r.Tag]
		a.release(r.Tag)
	}
	a.mu.Unlock()
	for i := range results {
		if r := &results[i]; errors.Is(r.Err, blockdev.ErrNotNow) {
			a.again(&ops[i])
			ops[i].vol = nil
		} else if op := &ops[i]; r.Err != nil && op.op == replication.OpRead && op.isPeer {
			e.pool.put(op.data)
			op.data = nil
		}
	}
	b := e.newBatch()
	e.mu.Lock()
	for i := range results {
		switch op := &ops[i]; {
		case op.vol == nil:
		case op.op == replication.OpFlush:
			a.v.perf.Time(perf.Fdatasync, op.begun)
			b.ev = replication.Event{Kind: replication.Synced, Volume: uint16(a.v.cfg.Number), Err: results[i].Err}
			e.step(b, &b.ev)
		default:
			e.localDone(b, op, results[i].Err)
		}
	}
	e.mu.Unlock()
	e.finish(b)
	e.freeBatch(b)
}
