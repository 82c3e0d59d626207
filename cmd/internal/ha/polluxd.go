package ha

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/protocol/adm"
)

// Times of the connection to polluxd, our own. Both sides are on one machine: a
// socket that is not there is looked for again at once, then ever more rarely.
const (
	dialTimeout      = 2 * time.Second
	firstRedial      = 20 * time.Millisecond
	lastRedial       = time.Second
	maxIdleClients   = 4
	commandTimeout   = 30 * time.Second // a promotion waits for metadata on a disk, a demotion for its writes
	heartbeatTimeout = 5 * time.Second
)

// polluxd is this node's polluxd, through its control socket. Safe for concurrent use.
type polluxd struct {
	socket string
	log    zerolog.Logger

	mu   sync.Mutex
	idle []*lineConn // ready for a request
}

// A lineConn is one connection to a control socket; for one goroutine.
type lineConn struct {
	net.Conn
	lines *adm.LineReader
	id    uint64
}

func dialLines(ctx context.Context, socket string) (*lineConn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	return &lineConn{Conn: conn, lines: adm.NewLineReader(conn, adm.MaxResponse)}, nil
}

// ask sends one request and decodes its answer. A refusal is an *adm.Error, all
// else means that the connection is no good any more.
func (c *lineConn) ask(ctx context.Context, req adm.Request, data any) error {
	c.id++
	req.V, req.ID = adm.Version, c.id
	line, err := adm.AppendLine(nil, req, adm.MaxRequest)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err = c.Write(line); err == nil {
		line, err = c.lines.Line()
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return err
	}
	resp, err := adm.DecodeResponse(line)
	switch {
	case err != nil:
		return err
	case resp.ID != req.ID:
		return fmt.Errorf("answer %d to request %d", resp.ID, req.ID)
	case resp.Err() != nil:
		return resp.Err()
	case data == nil:
		return nil
	}
	return json.Unmarshal(resp.Data, data)
}

// do carries out one command. A refusal is an *adm.Error; any other error means
// that polluxd can't be reached, and the command may have been carried out.
func (p *polluxd) do(ctx context.Context, req adm.Request, data any) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	for {
		c, old := p.take()
		if !old {
			var err error
			if c, err = dialLines(ctx, p.socket); err != nil {
				return fmt.Errorf("polluxd can't be reached: %w", err)
			}
		}
		err := c.ask(ctx, req, data)
		var refused *adm.Error
		switch {
		case err == nil, errors.As(err, &refused):
			p.put(c)
			return err
		}
		c.Close()
		if old && ctx.Err() == nil && isGone(err) {
			continue // it lay idle while polluxd was restarted
		}
		return fmt.Errorf("polluxd: %s of %s: no answer: %w", req.Cmd, req.Resource, err)
	}
}

// isGone tells a connection that had ended before the request from one that broke
// during it: only then may the request be repeated unseen.
func isGone(err error) bool { return errors.Is(err, syscall.EPIPE) }

func (p *polluxd) take() (*lineConn, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.idle); n > 0 {
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		return c, true
	}
	return nil, false
}

func (p *polluxd) put(c *lineConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) >= maxIdleClients {
		c.Close()
		return
	}
	p.idle = append(p.idle, c)
}

// dropIdle ends the connections that wait for a request: the polluxd behind them is gone.
func (p *polluxd) dropIdle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.idle {
		c.Close()
	}
	p.idle = nil
}

// watch follows polluxd's event stream until ctx is done, and connects again
// whenever it ends. up is called with the daemon's description before its first
// status, down when the stream ends, status for each resource that has changed
// (with State "" if it is gone), ready after the first of all.
func (p *polluxd) watch(ctx context.Context, w storageWatcher) {
	pause := firstRedial
	for ctx.Err() == nil {
		err := p.follow(ctx, w, func() { pause = firstRedial })
		p.dropIdle()
		if ctx.Err() != nil {
			return
		}
		w.storageDown(err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, lastRedial)
	}
}

// A storageWatcher is told what polluxd tells.
type storageWatcher interface {
	storageUp(hello adm.Hello)
	storageStatus(r adm.Resource)
	storageGone(resource string)
	storageReady()
	storageDown(err error)
}

func (p *polluxd) follow(ctx context.Context, w storageWatcher, connected func()) error {
	c, err := dialLines(ctx, p.socket)
	if err != nil {
		return fmt.Errorf("polluxd can't be reached: %w", err)
	}
	defer c.Close()
	limited, cancel := context.WithTimeout(ctx, heartbeatTimeout)
	var hello adm.Hello
	err = c.ask(limited, adm.Request{Cmd: adm.CmdHello}, &hello)
	if err == nil {
		err = c.ask(limited, adm.Request{Cmd: adm.CmdEvents}, nil)
	}
	cancel()
	if err != nil {
		return fmt.Errorf("polluxd: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	connected()
	w.storageUp(hello)
	for {
		line, err := c.lines.Line()
		if err != nil {
			return fmt.Errorf("polluxd: its event stream ended: %w", err)
		}
		ev, err := adm.DecodeEvent(line)
		if err != nil {
			return err
		}
		switch ev.Kind {
		case adm.EventStatus:
			w.storageStatus(*ev.Resource)
		case adm.EventGone:
			w.storageGone(ev.Name)
		case adm.EventReady:
			w.storageReady()
		}
	}
}

func (p *polluxd) close() { p.dropIdle() }

// notThere reports whether nothing listens on a socket, as opposed to somebody
// who does not answer.
func notThere(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}
