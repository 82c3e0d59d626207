package load

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/bench/result"
	"github.com/pollux-project/pollux/protocol/nbd"
)

// errStopped ends the other connections when one has failed.
var errStopped = errors.New("stopped")

// A worker is one connection, or one of a file's.
type worker interface {
	run(clock) error
	stop()
	records() *recorder
	close() error
}

func (c *conn) records() *recorder  { return &c.rec }
func (c *conn) close() error        { return unix.Close(c.fd) }
func (l *filer) records() *recorder { return &l.rec }

// Run loads what place names, an NBD URI or the path of a file, and returns
// when the last answer is there. The error is that of the spec, of connecting,
// or of the first connection that broke; answers that are errors are counted
// in the result instead. It has the runtime use a thread for each connection: who
// calls it several times at once sets GOMAXPROCS for all of them before.
func Run(ctx context.Context, place string, s Spec) (*Result, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	noise, err := newPayloads(s.Seed, s.Workload.BlockBytes)
	if err != nil {
		return nil, fmt.Errorf("memory for payloads: %w", err)
	}
	defer noise.free() //nolint:errcheck // memory that was mapped can be unmapped
	workers, done, err := open(ctx, place, &s, noise)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", place, err)
	}
	defer done()
	// A connection that blocks keeps its processor of the Go runtime: with one
	// for each none waits for another, and nothing is handed over.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), runtime.NumCPU(), len(workers)+2)))
	res, err := perform(ctx, workers, &s)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", place, err)
	}
	return res, nil
}

// open connects all of them; done closes them.
func open(ctx context.Context, place string, s *Spec, noise *payloads) (workers []worker, done func(), err error) {
	done = func() {
		for _, w := range workers {
			_ = w.close() // nothing is written by it
		}
	}
	defer func() {
		if err != nil {
			done()
		}
	}()
	if !strings.Contains(place, "://") {
		f, err := openFile(place, s)
		if err != nil {
			return nil, done, err
		}
		for n := range s.Workload.Depth {
			l, err := newFiler(f, s, n, noise)
			if err != nil {
				return nil, done, errors.Join(err, f.Close())
			}
			workers = append(workers, l)
		}
		all := done
		return workers, func() { all(); _ = f.Close() }, nil
	}
	a, err := ParseURI(place)
	if err != nil {
		return nil, done, err
	}
	for n := range s.Workload.Connections {
		fd, info, err := dial(ctx, a)
		if err != nil {
			return workers, done, err
		}
		workers = append(workers, newConn(fd, s, n, noise))
		if err := fits(info, s); err != nil {
			return workers, done, err
		}
	}
	return workers, done, nil
}

// openFile never makes a file: what is measured exists.
func openFile(path string, s *Spec) (*os.File, error) {
	mode := os.O_RDWR
	if s.Workload.Op == result.OpRead {
		mode = os.O_RDONLY
	}
	if s.Workload.Class == result.ClassDirect {
		mode |= unix.O_DIRECT
	}
	f, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, 2)
	if err == nil && s.OffsetBytes+s.SizeBytes > size {
		err = fmt.Errorf("it has %d bytes, the load would use %d from byte %d on", size, s.SizeBytes, s.OffsetBytes)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// fits reports why an export can't take the load.
func fits(info nbd.ExportInfo, s *Spec) error {
	w := s.Workload
	switch {
	case s.OffsetBytes+s.SizeBytes > int64(info.Size):
		return fmt.Errorf("the export has %d bytes, the load would use %d from byte %d on", info.Size, s.SizeBytes, s.OffsetBytes)
	case w.Op != result.OpRead && info.Flags&nbd.ReadOnly != 0:
		return errors.New("the export is read-only")
	case w.Op != result.OpRead && w.Class == result.ClassFlush && info.Flags&nbd.SendFlush == 0:
		return errors.New("the export has no flush")
	case w.Op != result.OpRead && w.Class == result.ClassFUA && info.Flags&nbd.SendFUA == 0:
		return errors.New("the export has no FUA")
	case w.Connections > 1 && info.Flags&nbd.CanMultiConn == 0 && w.Op != result.OpRead && w.Class != result.ClassBuffered && w.Class != result.ClassDirect:
		return errors.New("the export does not allow several connections (NBD_FLAG_CAN_MULTI_CONN): a flush on one would not cover the others")
	case info.Blocks.Maximum > 0 && uint32(w.BlockBytes) > info.Blocks.Maximum:
		return fmt.Errorf("the export takes requests of %d bytes at most", info.Blocks.Maximum)
	case info.Blocks.Minimum > 0 && uint32(w.BlockBytes)%info.Blocks.Minimum != 0:
		return fmt.Errorf("the export takes only multiples of %d bytes", info.Blocks.Minimum)
	}
	return nil
}

// perform starts all workers at once and waits for all.
func perform(ctx context.Context, workers []worker, s *Spec) (*Result, error) {
	k := clock{start: time.Now(), record: s.Warmup, end: s.Warmup + s.Duration}
	if s.Count > 0 {
		k.record, k.end = 0, 0
	}
	over := make(chan struct{})
	stop := sync.OnceFunc(func() {
		for _, w := range workers {
			w.stop()
		}
	})
	var watchers, running sync.WaitGroup
	watchers.Go(func() {
		select {
		case <-ctx.Done():
			stop()
		case <-over:
		}
	})
	watchers.Go(func() { s.announce(k, over) })
	errs := make([]error, len(workers))
	for i, w := range workers {
		running.Go(func() {
			if errs[i] = w.run(k); errs[i] != nil {
				stop()
			}
		})
	}
	running.Wait()
	close(over)
	watchers.Wait()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	for _, err := range errs {
		if err != nil && !errors.Is(err, errStopped) {
			return nil, err
		}
	}
	return sum(workers, k), nil
}

// announce calls Begin and End in time.
func (s *Spec) announce(k clock, over <-chan struct{}) {
	wait := func(until time.Duration) {
		select {
		case <-time.After(time.Until(k.start.Add(until))):
		case <-over:
		}
	}
	wait(k.record)
	if s.Begin != nil {
		s.Begin()
	}
	if k.end > 0 {
		wait(k.end)
	} else {
		<-over
	}
	if s.End != nil {
		s.End()
	}
}

func sum(workers []worker, k clock) *Result {
	r := &Result{Latency: result.NewHistogram(), Started: k.start, Seconds: (k.end - k.record).Seconds()}
	last := time.Duration(0)
	for _, w := range workers {
		rec := w.records()
		r.Ops += rec.ops
		r.Bytes += rec.bytes
		r.Errors += rec.errors
		if r.Refusal == nil {
			r.Refusal = rec.refusal
		}
		r.Latency.Merge(rec.latency)
		r.Trace = append(r.Trace, rec.trace...)
		last = max(last, rec.last)
	}
	if k.end == 0 {
		r.Seconds = last.Seconds()
	}
	return r
}
