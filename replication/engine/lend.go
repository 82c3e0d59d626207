package engine

import (
	"errors"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Large payloads are not copied into an out but lent to it: they are sent from
// where they are. The memory of one stays its owner's. Whoever may use it anew
// asks the lender before: a buffer of the engine's own goes to the pool when it is
// sent (free); a client's is recalled, which leaves a copy of what was not sent.
const (
	lendFrom = 32 << 10 // bytes: copying fewer costs less than the bookkeeping
	maxVecs  = 64       // parts handed to the kernel at once
)

// A loan is memory that an out sends from.
type loan struct {
	at   int // in buf: it is sent before buf[at:]
	end  int // in the load: what is sent up to its end
	data []byte
	free bool // it goes to the pool then
}

func (l *loan) is(data []byte) bool { return unsafe.SliceData(l.data) == unsafe.SliceData(data) }

// lender knows the outs of an engine that have borrowed something.
type lender struct {
	pool  *pool
	count atomic.Int64 // loans of all outs
	mu    sync.Mutex
	outs  []*out
}

// recall has data used by nobody any more: what was not sent of it is copied.
func (l *lender) recall(data []byte) {
	if len(data) < lendFrom || l.count.Load() == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.outs {
		o.recall(data)
	}
}

// free has a buffer go to the pool, once it is sent if it is lent.
func (l *lender) free(data []byte) {
	if len(data) >= lendFrom && l.count.Load() > 0 {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, o := range l.outs {
			if o.freeSent(data) {
				return
			}
		}
	}
	l.pool.put(data)
}

func (l *lender) add(o *out) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.outs = append(l.outs, o)
}

// forget takes back what o has borrowed; it sends nothing any more.
func (l *lender) forget(o *out) {
	o.endLoans()
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.outs {
		if l.outs[i] == o {
			l.outs = append(l.outs[:i], l.outs[i+1:]...)
			return
		}
	}
}

// lend files data without copying them; the caller holds the lock.
func (o *out) lend(data []byte) {
	f := &o.filed
	f.loans = append(f.loans, loan{at: len(f.buf), end: f.size, data: data})
	o.lender.count.Add(1)
}

// settleLoans ends the loans of what was sent; the caller holds the lock.
func (o *out) settleLoans() {
	g := &o.going
	for g.gone < len(g.loans) && g.loans[g.gone].end <= o.pos {
		o.endLoan(&g.loans[g.gone])
		g.gone++
	}
}

func (o *out) endLoan(l *loan) {
	if l.data == nil {
		return
	}
	if l.free {
		o.lender.pool.put(l.data)
	}
	l.data = nil
	o.lender.count.Add(-1)
}

// find is the loan of data that is not over, or nil; the caller holds the lock.
// The newest ones come first: most buffers are freed as soon as they are filed.
func (o *out) find(data []byte) *loan {
	for _, l := range []*load{&o.filed, &o.going} {
		for i := len(l.loans) - 1; i >= l.gone; i-- {
			if l.loans[i].is(data) {
				return &l.loans[i]
			}
		}
	}
	return nil
}

func (o *out) freeSent(data []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	l := o.find(data)
	if l != nil {
		l.free = true
	}
	return l != nil
}

func (o *out) recall(data []byte) {
	o.io.Lock() // the kernel does not read it now
	defer o.io.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	if l := o.find(data); l != nil {
		l.data = append([]byte(nil), l.data...)
	}
}

var errOutClosed = errors.New("the connection is over")

// endLoans ends all loans of an out that sends nothing any more.
func (o *out) endLoans() {
	o.io.Lock()
	defer o.io.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failed == nil {
		o.failed = errOutClosed
	}
	for _, l := range []*load{&o.going, &o.filed} {
		for i := l.gone; i < len(l.loans); i++ {
			o.endLoan(&l.loans[i])
		}
	}
}

// writeLent hands the socket what it takes of a load with loans.
func (o *out) writeLent(fd uintptr) (int, error) {
	o.io.Lock()
	defer o.io.Unlock()
	o.gather()
	if len(o.vecs) == 0 {
		return 0, errOutClosed
	}
	n, _, errno := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(unsafe.SliceData(o.vecs))), uintptr(len(o.vecs)))
	clear(o.vecs)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// gather lists what is not sent of the load, up to maxVecs parts.
func (o *out) gather() {
	g := &o.going
	o.vecs = o.vecs[:0]
	at, pos := 0, 0 // in buf; in the load
	if g.gone > 0 {
		at, pos = g.loans[g.gone-1].at, g.loans[g.gone-1].end
	}
	add := func(p []byte) {
		begin := pos
		pos += len(p)
		if pos <= o.pos || len(o.vecs) == maxVecs {
			return
		}
		p = p[max(o.pos-begin, 0):]
		v := unix.Iovec{Base: unsafe.SliceData(p)}
		v.SetLen(len(p))
		o.vecs = append(o.vecs, v)
	}
	for i := g.gone; i < len(g.loans) && len(o.vecs) < maxVecs; i++ {
		l := &g.loans[i]
		if l.data == nil {
			o.vecs = o.vecs[:0] // taken back: the connection is over
			return
		}
		add(g.buf[at:l.at])
		add(l.data)
		at = l.at
	}
	add(g.buf[at:])
}
