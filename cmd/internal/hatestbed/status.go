package hatestbed

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// statusRetry is how soon a daemon that isn't there is tried again.
const statusRetry = 50 * time.Millisecond

// A Sight is the state of the resource on one host at one moment.
type Sight struct {
	At time.Time
	adm.Resource
}

// An Observer follows the events of one host's polluxd. Safe for concurrent use.
type Observer struct {
	socket string

	mu    sync.Mutex
	seen  []Sight
	alive bool
}

// NewObserver follows the daemon at a control socket.
func NewObserver(socket string) *Observer { return &Observer{socket: socket} }

// Run follows until ctx is done, through all restarts.
func (o *Observer) Run(ctx context.Context) {
	for ctx.Err() == nil {
		_ = o.follow(ctx) // the daemon ends as often as its host does
		o.mu.Lock()
		o.alive = false
		o.mu.Unlock()
		select {
		case <-time.After(statusRetry):
		case <-ctx.Done():
		}
	}
}

func (o *Observer) follow(ctx context.Context) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", o.socket)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })() // closed again below
	defer func() { _ = conn.Close() }()
	line, err := adm.AppendLine(nil, adm.Request{V: adm.Version, ID: 1, Cmd: adm.CmdEvents}, adm.MaxRequest)
	if err != nil {
		return err
	}
	if _, err := conn.Write(line); err != nil {
		return err
	}
	lines := adm.NewLineReader(conn, adm.MaxResponse)
	for {
		line, err := lines.Line()
		if err != nil {
			return err
		}
		e, err := adm.DecodeEvent(line)
		if err != nil || e.Kind != adm.EventStatus || e.Resource == nil {
			continue // the answer to the request, or the end of the first dump
		}
		o.mu.Lock()
		o.seen, o.alive = append(o.seen, Sight{At: time.Now(), Resource: *e.Resource}), true
		o.mu.Unlock()
	}
}

// Now returns the latest state; ok is false while the daemon doesn't answer.
func (o *Observer) Now() (s Sight, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.seen) == 0 || !o.alive {
		return Sight{}, false
	}
	return o.seen[len(o.seen)-1], true
}

// First returns when, after a moment, the state first fitted; zero if it never did.
func (o *Observer) First(after time.Time, fits func(Sight) bool) time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.seen {
		if s.At.After(after) && fits(s) {
			return s.At
		}
	}
	return time.Time{}
}

// Before returns the last state that was seen before a moment.
func (o *Observer) Before(when time.Time) (Sight, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := len(o.seen) - 1; i >= 0; i-- {
		if o.seen[i].At.Before(when) {
			return o.seen[i], true
		}
	}
	return Sight{}, false
}
