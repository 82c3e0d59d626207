package export

import (
	"errors"
	"syscall"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/internal/perf"
	"github.com/pollux-project/pollux/protocol/nbd"
)

// A Backend is a volume that can be served.
type Backend interface {
	// Info is asked once per connection.
	Info() Info
	// Open is asked before a client may use the volume; the text of its error
	// is shown to the client's user. release is called when the client has
	// gone and all its requests have come back.
	Open(c ClientInfo) (release func(), err error)
	// Submit takes a batch of requests; each is completed through its Sink,
	// possibly before Submit returns, in any order, and Sink.Flush ends a
	// batch of completions. The slice itself is the caller's again when Submit
	// returns. One goroutine per connection calls it. Reads and writes are at
	// most blockdev.MaxRequest long, trims and zeroes blockdev.MaxDiscard; all
	// lie inside the volume and, reads and writes, on 512-byte boundaries.
	// A read's or write's Data is aligned to 4096 bytes. A backend that can't
	// take more may block in Submit: that slows this client only.
	Submit(batch []*blockdev.Request)
}

// A Mapper is a Backend that knows where its volume has data. It is optional.
type Mapper interface {
	// Map reports the allocation of [off, off+length) in order, by calling
	// add for each stretch; add returns false when it has enough. What is not
	// reported counts as data.
	Map(off, length int64, add func(length int64, isHole bool) bool) error
}

// A Measured is a Backend some of whose requests are to carry a Trace. It is
// optional; on a nil Volume nothing is measured.
type Measured interface {
	Perf() *perf.Volume
}

// Info describes a volume to a client.
type Info struct {
	Size        int64 // bytes, a multiple of 512
	BlockSize   int   // bytes, 512 or 4096: the smallest request that is efficient
	ReadOnly    bool
	Description string
}

// ClientInfo says who wants to use an export.
type ClientInfo struct {
	Export string // the name asked for; "" is the default export
	Remote string // network address
	// PID is the client's process, if it came by a unix socket and this process
	// can see it; else 0.
	PID int
	// IsQuestion is true if it only asks what the volume is like (NBD_OPT_INFO).
	IsQuestion bool
}

// errnoOf maps a backend's error to one that NBD has. What NBD can't name is
// EIO.
func errnoOf(err error) nbd.Errno {
	if err == nil {
		return nbd.OK
	}
	var e syscall.Errno
	if !errors.As(err, &e) {
		return nbd.EIO
	}
	switch e {
	case syscall.EPERM, syscall.EROFS, syscall.EACCES:
		return nbd.EPERM
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
		return nbd.ENOSPC
	case syscall.EINVAL:
		return nbd.EINVAL
	case syscall.ESHUTDOWN:
		return nbd.ESHUTDOWN
	}
	// ENOMEM and ENOTSUP are names that NBD has, but clients do not expect
	// them of a disk.
	return nbd.EIO
}
