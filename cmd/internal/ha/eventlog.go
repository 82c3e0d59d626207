package ha

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// Bounds of the event log, our own: some weeks of a quiet cluster.
const (
	eventRing     = 2000    // in memory
	eventFileSize = 4 << 20 // bytes; then it becomes FILE.1, and the old FILE.1 goes
	maxEventLine  = 64 << 10
	eventBacklog  = 256         // events that wait for the disk; later ones are kept in memory only
	eventLinger   = time.Second // for them when the log is closed
)

// An eventLog keeps what has happened: the newest in memory, all in a file of
// JSON lines, each of them for whoever follows. Nobody who adds an event waits for
// the disk: whoever decides must not stand still with it. Safe for concurrent use.
type eventLog struct {
	node  string
	path  string
	clock clock
	wall  func() time.Time
	full  func(err error) // called once when the file can't be written any more, nil when it can again

	lines chan []byte   // for the file
	ended chan struct{} // closed when all of them are written

	// Of the goroutine that writes.
	f      *os.File
	size   int64
	broken bool

	mu     sync.Mutex
	closed bool
	missed bool          // the file lacks what came since lines was full
	ring   []adm.HAEvent // oldest first
	seq    uint64
	wake   chan struct{} // closed and replaced at each event
}

// openEventLog goes on behind the events of an earlier run.
func openEventLog(path, node string, c clock, full func(error)) (*eventLog, error) {
	l := &eventLog{node: node, path: path, clock: c, wall: time.Now, full: full, wake: make(chan struct{})}
	l.lines, l.ended = make(chan []byte, eventBacklog), make(chan struct{})
	for _, p := range []string{path + ".1", path} {
		if err := l.read(p); err != nil {
			return nil, fmt.Errorf("event log: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("event log: %w", err)
	}
	l.f = f
	if fi, err := f.Stat(); err == nil {
		l.size = fi.Size()
	}
	go l.run()
	return l, nil
}

func (l *eventLog) run() {
	defer close(l.ended)
	for line := range l.lines {
		l.write(line)
	}
	l.f.Close() //nolint:errcheck // the log is for people: what it lacks is in the ring
}

// read takes the newest events of a file; a line that a crash has cut is left out.
func (l *eventLog) read(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, maxEventLine)
	for sc.Scan() {
		if e, err := adm.DecodeHAEvent(sc.Bytes()); err == nil {
			l.keep(e)
			l.seq = max(l.seq, e.Seq)
		}
	}
	return sc.Err()
}

func (l *eventLog) keep(e adm.HAEvent) {
	if len(l.ring) >= 2*eventRing {
		l.ring = slices.Delete(l.ring, 0, len(l.ring)-eventRing)
	}
	l.ring = append(l.ring, e)
}

// add completes e and files it.
func (l *eventLog) add(e adm.HAEvent) adm.HAEvent {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq++
	e.V, e.Seq, e.Node = adm.Version, l.seq, l.node
	e.Time, e.MS = l.wall().UTC(), l.clock.now()
	if e.Level == "" {
		e.Level = adm.HALevelInfo
	}
	l.keep(e)
	l.file(e)
	close(l.wake)
	l.wake = make(chan struct{})
	return e
}

// file hands an event to the goroutine that writes; under the lock.
func (l *eventLog) file(e adm.HAEvent) {
	line, err := adm.AppendLine(nil, e, maxEventLine)
	if err != nil || l.closed {
		return // too long for anybody who reads the file, or the end of this process
	}
	select {
	case l.lines <- line:
		if l.missed && l.full != nil {
			go l.full(nil)
		}
		l.missed = false
	default:
		if !l.missed && l.full != nil {
			go l.full(errStuck) // it may want to add an event
		}
		l.missed = true
	}
}

var errStuck = errors.New("its disk does not answer")

func (l *eventLog) write(line []byte) {
	var err error
	if l.size+int64(len(line)) > eventFileSize {
		err = l.rotate()
	}
	if err == nil {
		var n int
		n, err = l.f.Write(line)
		l.size += int64(n)
	}
	if was := l.broken; was != (err != nil) {
		l.broken = err != nil
		if l.full != nil {
			l.full(err)
		}
	}
}

func (l *eventLog) rotate() error {
	if err := os.Rename(l.path, l.path+".1"); err != nil {
		return err
	}
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	l.f.Close() //nolint:errcheck // the log is for people: what it lacks is in the ring
	l.f, l.size = f, 0
	return nil
}

// since returns the events after seq that are still known, and a channel that is
// closed when there are more.
func (l *eventLog) since(seq uint64) ([]adm.HAEvent, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i, _ := slices.BinarySearchFunc(l.ring, seq+1, func(e adm.HAEvent, s uint64) int {
		switch {
		case e.Seq < s:
			return -1
		case e.Seq > s:
			return 1
		}
		return 0
	})
	return slices.Clone(l.ring[i:]), l.wake
}

// close waits for what is being written, but not for a disk that does not answer.
func (l *eventLog) close() {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.lines)
	}
	l.mu.Unlock()
	select {
	case <-l.ended:
	case <-time.After(eventLinger):
	}
}

// An auditLog remembers who has overridden what: one JSON line each, on disk
// before the override is carried out.
type auditLog struct {
	path string
	wall func() time.Time
	mu   sync.Mutex
}

// An auditEntry is one line of it.
type auditEntry struct {
	Time    time.Time `json:"time"`
	Node    string    `json:"node"`
	UID     uint32    `json:"uid"` // of the client on the control socket
	PID     int32     `json:"pid"`
	Command string    `json:"command"`
	VM      string    `json:"vm,omitempty"`
	Peer    string    `json:"peer,omitempty"` // declared to be off
	Force   bool      `json:"force,omitempty"`
	Text    string    `json:"text"` // what is unknown and what may be lost, as the operator was told
}

func (a *auditLog) add(e auditEntry) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	e.Time = a.wall().UTC()
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(a.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err == nil {
		_, err = f.Write(append(line, '\n'))
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	return nil
}
