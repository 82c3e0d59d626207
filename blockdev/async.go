package blockdev

import (
	"errors"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An Async does reads and writes of a direct Device without a thread for each
// that waits: the kernel's aio, with an eventfd that the runtime's poller waits
// for. Nothing is begun that would block the caller (RWF_NOWAIT). Only what
// needs no bounce buffer can be done; it is neither durable nor ordered.
//
// An operation under way holds the Device open: its Close waits for the result,
// and Run has to go on until then.
type Async struct {
	d      *fileDevice
	ring   uintptr // aio_context_t
	events *os.File
	raw    syscall.RawConn
	ops    []AsyncOp  // under way, by Tag
	blocks []aioBlock // likewise
	// begun passes ops from Start to Run, as the kernel does, in terms of Go.
	begun  []atomic.Bool
	rest   atomic.Int32
	off    atomic.Bool // the file system cannot
	noSync atomic.Bool // the kernel cannot (before 4.18)
	closed atomic.Bool
	got    [asyncBatch]aioEvent
	done   [asyncBatch]AsyncResult
}

// AsyncOp is one operation; Data and what it points to are the kernel's until
// its result. Tag is the caller's, below depth, and of no other under way. IsSync
// is a Device's Sync, without Data; it is never ErrNotNow.
type AsyncOp struct {
	IsWrite bool
	IsSync  bool
	Tag     int
	Data    []byte
	Offset  int64 // bytes
}

// AsyncResult is the end of an operation. ErrNotNow asks the caller to do it
// again by WriteAt or ReadAt; other errors are as theirs.
type AsyncResult struct {
	Tag int
	Err error
}

// ErrNotNow is the result of an operation that was not done, or not whole,
// because it would have had to wait.
var ErrNotNow = errors.New("would block")

// Of our own.
const (
	asyncBatch = 64 // started and finished with one system call
	// asyncRest is how many operations are done the ordinary way after one that
	// would have blocked: the file has no blocks there, or the disk's queue is full.
	asyncRest = 64
)

// Of linux/aio_abi.h.
const (
	aioRead       = 0
	aioWrite      = 1
	aioSync       = 3 // fdatasync
	aioFlagEvents = 1
	rwfNoWait     = 8
)

type aioBlock struct {
	data    uint64
	_       uint32
	rwFlags uint32
	opcode  uint16
	_       int16
	fd      uint32
	buf     uint64
	bytes   uint64
	offset  int64
	_       uint64
	flags   uint32
	events  uint32
}

type aioEvent struct {
	data uint64
	_    uint64
	res  int64
	_    int64
}

// OpenAsync returns an Async of d with at most depth operations under way, nil
// if d is not a direct file or disk of this package, or the kernel has no aio.
func OpenAsync(dev Device, depth int) *Async {
	d, ok := dev.(*fileDevice)
	if !ok || !d.direct || !isLittleEndian() {
		return nil
	}
	a := &Async{d: d, ops: make([]AsyncOp, depth), blocks: make([]aioBlock, depth), begun: make([]atomic.Bool, depth)}
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, uintptr(depth), uintptr(unsafe.Pointer(&a.ring)), 0); errno != 0 {
		return nil // seccomp, or fs.aio-max-nr
	}
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		a.destroy()
		return nil
	}
	a.events = os.NewFile(uintptr(fd), "aio")
	if a.raw, err = a.events.SyscallConn(); err != nil {
		a.events.Close() //nolint:errcheck // it has no data
		a.destroy()
		return nil
	}
	for i := range a.blocks {
		a.blocks[i] = aioBlock{data: uint64(i), fd: uint32(d.fd), rwFlags: rwfNoWait, flags: aioFlagEvents, events: uint32(fd)}
	}
	return a
}

// isLittleEndian: struct iocb has two fields the other way round elsewhere.
func isLittleEndian() bool {
	one := uint16(1)
	return *(*byte)(unsafe.Pointer(&one)) == 1
}

// Can reports whether an operation is worth a try.
func (a *Async) Can(p []byte, off int64) bool {
	if a == nil || a.off.Load() || len(p) == 0 || !a.d.isWhole(p, off) {
		return false
	}
	if a.rest.Load() > 0 {
		a.rest.Add(-1)
		return false
	}
	return true
}

// Start begins operations and returns how many, the first ones, are under way.
// The others are to be done by WriteAt or ReadAt, which also says what is wrong
// with them.
func (a *Async) Start(ops []AsyncOp) (begun int) {
	var list [asyncBatch]*aioBlock
	for begun < len(ops) {
		n := 0
		for _, op := range ops[begun:min(len(ops), begun+asyncBatch)] {
			if op.IsSync && (a.noSync.Load() || a.d.failedSync() != nil) || a.d.begin("", op.Offset, int64(len(op.Data)), op.IsWrite) != nil {
				break
			}
			a.ops[op.Tag] = op
			b := &a.blocks[op.Tag]
			b.opcode, b.rwFlags = aioRead, rwfNoWait
			switch {
			case op.IsSync:
				b.opcode, b.rwFlags = aioSync, 0
			case op.IsWrite:
				b.opcode = aioWrite
			}
			b.buf, b.bytes, b.offset = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(op.Data)))), uint64(len(op.Data)), op.Offset
			a.begun[op.Tag].Store(true)
			list[n] = b
			n++
		}
		took := a.submit(list[:n])
		for _, op := range ops[begun+took : begun+n] {
			a.ops[op.Tag].Data = nil
			a.d.open.RUnlock()
		}
		begun += took
		if took < min(len(ops), asyncBatch) {
			return begun
		}
	}
	return begun
}

// submit returns how many the kernel has taken. The scheduler is not told of the
// call, which does not block; what is under way holds its buffers by ops.
func (a *Async) submit(list []*aioBlock) int {
	if len(list) == 0 {
		return 0
	}
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_IO_SUBMIT, a.ring, uintptr(len(list)), uintptr(unsafe.Pointer(&list[0])))
		runtime.KeepAlive(list)
		switch errno {
		case 0:
			return int(n)
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			a.rest.Store(asyncRest)
		default:
			if list[0].opcode == aioSync {
				a.noSync.Store(true)
			} else {
				a.off.Store(true)
			}
		}
		return 0
	}
}

// Run calls done with what has ended, some at a time, until Close.
func (a *Async) Run(done func([]AsyncResult)) {
	defer a.destroy()               // only now: another ring may get its address
	a.raw.Read(func(uintptr) bool { //nolint:errcheck // it ends by Close
		for !a.closed.Load() {
			n := a.reap()
			if n == 0 {
				return false // until the eventfd says so; its counter is never read: each event wakes
			}
			done(a.done[:n])
			clear(a.done[:n])
		}
		return true
	})
}

// reap makes results of the events that there are.
func (a *Async) reap() int {
	var now unix.Timespec
	n, _, errno := unix.RawSyscall6(unix.SYS_IO_GETEVENTS, a.ring, 0, asyncBatch, uintptr(unsafe.Pointer(&a.got[0])), uintptr(unsafe.Pointer(&now)), 0)
	if errno != 0 {
		return 0
	}
	for i := range a.got[:n] {
		ev := &a.got[i]
		a.begun[ev.data].Swap(false)
		op := a.ops[ev.data]
		a.ops[ev.data].Data = nil
		a.done[i] = AsyncResult{op.Tag, a.result(op, ev.res)}
		a.d.open.RUnlock()
	}
	return int(n)
}

func (a *Async) result(op AsyncOp, res int64) error {
	switch {
	case res == int64(len(op.Data)):
		return nil
	case op.IsSync:
		return a.d.ioError("sync", 0, a.d.size.Load(), a.d.keepSyncError(syscall.Errno(-res)))
	case res >= 0:
		return ErrNotNow
	}
	switch errno := syscall.Errno(-res); errno {
	case unix.EOPNOTSUPP, unix.EINVAL:
		a.off.Store(true)
		return ErrNotNow
	case unix.EAGAIN, unix.EINTR:
		a.rest.Store(asyncRest)
		return ErrNotNow
	default:
		what := "read"
		if op.IsWrite {
			what = "write"
		}
		return a.d.ioError(what, op.Offset, int64(len(op.Data)), errno)
	}
}

// Close ends Run, whose function must not call it. The Device has to be closed
// before: then nothing is under way.
func (a *Async) Close() {
	a.closed.Store(true)
	a.events.Close() //nolint:errcheck // it has no data
}

func (a *Async) destroy() {
	unix.Syscall(unix.SYS_IO_DESTROY, a.ring, 0, 0) //nolint:errcheck // the ring exists
}
