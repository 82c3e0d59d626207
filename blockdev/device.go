// Package blockdev holds what every storage part of Pollux shares: the Device
// that a resource keeps its data on, and the Request that a client of an
// export makes.
//
// All offsets and lengths are in bytes. A Device is safe for concurrent use;
// callers keep overlapping writes apart themselves.
package blockdev

import (
	"fmt"

	"github.com/pollux-project/pollux/internal/perf"
)

// A Device is a backing or metadata device: a block device or a plain file.
//
// A write is in the page cache (buffered) or handed to the device (direct)
// when WriteAt returns; it is on stable storage once a Sync that began after
// that has returned nil. A failed Sync means that earlier writes may be lost:
// callers fail the disk and never retry it.
type Device interface {
	// ReadAt fills p from off. A short read is an error.
	ReadAt(p []byte, off int64) (int, error)
	// WriteAt writes all of p at off.
	WriteAt(p []byte, off int64) (int, error)
	// WriteFUA is WriteAt whose data is on stable storage on return.
	WriteFUA(p []byte, off int64) error
	// Zero makes the range read back as zeroes; mayUnmap allows to free its
	// blocks. The result is the same on every kind of Device, so that two
	// copies stay equal.
	Zero(off, length int64, mayUnmap bool) error
	// Sync puts all completed writes on stable storage (fdatasync).
	Sync() error
	// Size is the usable capacity in bytes.
	Size() int64
	// BlockSize is the logical block size in bytes, 512 or 4096: requests
	// that are not aligned to it work, but slowly.
	BlockSize() int
	// Direct reports whether the page cache is bypassed (O_DIRECT). WriteAt of
	// a device that is not direct normally returns without waiting for the disk.
	Direct() bool
	// Close releases the device and its exclusive claim.
	Close() error
}

// Op is what a Request asks for.
type Op uint8

// The operations of a Request.
const (
	OpRead Op = iota + 1
	OpWrite
	OpFlush
	OpTrim
	OpZero
)

func (o Op) String() string {
	switch o {
	case OpRead:
		return "read"
	case OpWrite:
		return "write"
	case OpFlush:
		return "flush"
	case OpTrim:
		return "trim"
	case OpZero:
		return "write-zeroes"
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// A Request is one operation of a client on a volume. The export fills it in,
// hands it over with Backend.Submit and must not touch it, or Data, until its
// Sink has been told that it is complete.
type Request struct {
	Op      Op
	FUA     bool // the data is on stable storage on every copy before completion
	NoUnmap bool // OpZero: keep the blocks allocated
	Offset  int64
	Length  uint32 // at most MaxRequest for reads and writes
	Data    []byte // OpWrite: the payload; OpRead: filled in; len(Data) == Length
	Err     error  // the result, set before Sink.Completed
	// Moved, set before Sink.Completed: the memory that Data was is still in use
	// by a disk that hangs, and must never be used again. Data is now what was read.
	Moved  bool
	Sink   Sink
	Cookie uint64 // the Sink's own
	// Trace takes the times of a request that is measured; nil for all others.
	Trace *perf.Trace
}

// MaxRequest is the largest Length of a read or write Request, in bytes. It is
// the largest request of the DRBD 8.4 protocol (drbd84-protocol, P_DATA).
const MaxRequest = 1 << 20

// MaxDiscard is the largest Length of a trim or write-zeroes Request, in bytes
// (DRBD 8.4 with feature WSAME).
const MaxDiscard = 128 << 20

// A Sink hears of completed requests. Both methods may be called from any
// goroutine, also from within Submit, and must not block on the client.
type Sink interface {
	// Completed takes the request back; its reply may be held until Flush.
	Completed(r *Request)
	// Flush ends a batch of completions: replies go out.
	Flush()
}

// An IOError is a failed operation on a Device.
type IOError struct {
	Op     string // "read", "write", "sync", ...
	Path   string
	Offset int64 // bytes
	Length int64 // bytes
	Err    error
}

func (e *IOError) Error() string {
	return fmt.Sprintf("%s: %s of %d bytes at %d: %v", e.Path, e.Op, e.Length, e.Offset, e.Err)
}

// Unwrap returns the cause, normally a syscall.Errno.
func (e *IOError) Unwrap() error { return e.Err }
