package blocktest

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/blockdev/export"
)

// A Backend serves one Device without replication. A buffered device is
// served on the submitting goroutine, a direct one by a few workers.
type Backend struct {
	dev      blockdev.Device
	readOnly bool
	refusal  atomic.Pointer[error]
	opens    atomic.Int64
	work     chan *blockdev.Request // nil: inline
	group    sync.WaitGroup
	submits  atomic.Int64
	requests atomic.Int64
}

// directWorkers serve a direct device.
const directWorkers = 8

// NewBackend returns a Backend over dev, which its caller closes after Close.
func NewBackend(dev blockdev.Device, readOnly bool) *Backend {
	b := &Backend{dev: dev, readOnly: readOnly}
	if dev.Direct() {
		b.work = make(chan *blockdev.Request, 256)
		for range directWorkers {
			b.group.Go(b.worker)
		}
	}
	return b
}

// Refuse makes Open fail with err; nil allows again.
func (b *Backend) Refuse(err error) {
	if err == nil {
		b.refusal.Store(nil)
		return
	}
	b.refusal.Store(&err)
}

// Opens is the number of clients.
func (b *Backend) Opens() int64 { return b.opens.Load() }

// Batches returns how many batches were submitted, with how many requests.
func (b *Backend) Batches() (batches, requests int64) { return b.submits.Load(), b.requests.Load() }

// Info implements export.Backend.
func (b *Backend) Info() export.Info {
	return export.Info{Size: b.dev.Size(), BlockSize: 512, ReadOnly: b.readOnly, Description: fmt.Sprintf("test volume of %d bytes", b.dev.Size())}
}

// Open implements export.Backend.
func (b *Backend) Open(export.ClientInfo) (func(), error) {
	if err := b.refusal.Load(); err != nil {
		return nil, *err
	}
	b.opens.Add(1)
	return func() { b.opens.Add(-1) }, nil
}

// Submit implements export.Backend.
func (b *Backend) Submit(batch []*blockdev.Request) {
	b.submits.Add(1)
	b.requests.Add(int64(len(batch)))
	if b.work != nil {
		for _, r := range batch {
			b.work <- r
		}
		return
	}
	sink := batch[0].Sink
	for _, r := range batch {
		b.do(r)
		r.Sink.Completed(r)
	}
	sink.Flush()
}

func (b *Backend) worker() {
	for r := range b.work {
		sink := r.Sink
		b.do(r)
		sink.Completed(r)
		sink.Flush()
	}
}

func (b *Backend) do(r *blockdev.Request) {
	switch r.Op {
	case blockdev.OpRead:
		_, r.Err = b.dev.ReadAt(r.Data, r.Offset)
	case blockdev.OpWrite:
		if r.FUA {
			r.Err = b.dev.WriteFUA(r.Data, r.Offset)
		} else {
			_, r.Err = b.dev.WriteAt(r.Data, r.Offset)
		}
	case blockdev.OpFlush:
		r.Err = b.dev.Sync()
	case blockdev.OpTrim, blockdev.OpZero:
		r.Err = b.dev.Zero(r.Offset, int64(r.Length), !r.NoUnmap)
		if r.Err == nil && r.FUA {
			r.Err = b.dev.Sync()
		}
	default:
		r.Err = errors.New("unknown operation")
	}
}

// Map implements export.Mapper as far as the device can tell.
func (b *Backend) Map(off, length int64, add func(length int64, isHole bool) bool) error {
	if m, ok := b.dev.(export.Mapper); ok {
		return m.Map(off, length, add)
	}
	add(length, false)
	return nil
}

// Close ends the workers; no client may be left.
func (b *Backend) Close() {
	if b.work != nil {
		close(b.work)
		b.group.Wait()
	}
}
