package load

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/bench/result"
)

// filer is one of the workers that load a file: each has one operation in
// flight, so there are as many of them as the depth.
type filer struct {
	file    *os.File
	places  *places
	noise   *payloads
	rec     recorder
	in      []byte // for reads, on whole pages
	left    int64  // operations that may still begin; -1 = any number
	block   int
	flags   int // of pwritev2
	flushes bool
	stopped atomic.Bool
}

// newFiler is worker n of the workload's depth, a part of one connection.
func newFiler(f *os.File, s *Spec, n int, noise *payloads) (*filer, error) {
	w := s.Workload
	in, err := unix.Mmap(-1, 0, w.BlockBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	// Each worker is a stream of its own if the workload is sequential.
	each := *s
	each.Workload.Connections = w.Depth
	l := &filer{
		file: f, places: newPlaces(&each, n), noise: noise, in: in, left: -1, block: w.BlockBytes, flushes: w.Class == result.ClassFlush,
		rec: recorder{latency: result.NewHistogram(), isTrace: s.Trace},
	}
	if w.Class == result.ClassFUA {
		l.flags = unix.RWF_DSYNC
	}
	if s.Count > 0 {
		l.left = int64(share(int(s.Count), w.Depth, n))
	}
	return l, nil
}

func (l *filer) stop() { l.stopped.Store(true) }

func (l *filer) run(k clock) error {
	l.rec.clock = k
	vec := make([][]byte, 1)
	fd := int(l.file.Fd())
	for now := time.Since(k.start); l.left != 0 && !l.rec.isOver(now); {
		if l.stopped.Load() {
			return errStopped
		}
		if l.left > 0 {
			l.left--
		}
		began := now
		offset, isRead := l.places.take()
		n, err := 0, error(nil)
		if isRead {
			n, err = unix.Pread(fd, l.in, offset)
		} else {
			vec[0] = l.noise.cut(l.places.rng, l.block)
			n, err = unix.Pwritev2(fd, vec, offset, l.flags)
			if err == nil && l.flushes {
				err = unix.Fdatasync(fd)
			}
		}
		now = time.Since(k.start)
		switch {
		case err != nil:
			l.rec.refused(fmt.Errorf("%s at byte %d: %w", l.file.Name(), offset, err))
		case n != l.block:
			l.rec.refused(fmt.Errorf("%s at byte %d: %d bytes instead of %d", l.file.Name(), offset, n, l.block))
		default:
			l.rec.took(began, now, l.block)
		}
	}
	return nil
}

func (l *filer) close() error { return unix.Munmap(l.in) }
