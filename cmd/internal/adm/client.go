package adm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// dialTimeout bounds the wait for a daemon whose queue is full.
const dialTimeout = 5 * time.Second

// queryTimeout bounds the wait for what the daemon knows by heart. Commands
// have no bound of ours: a disk or a peer may need its time.
const queryTimeout = 10 * time.Second

var errNoAnswer = errors.New("no answer in time")

// errNoDaemon is the cause of the error that dial returns when nothing
// listens on the control socket.
var errNoDaemon = errors.New("polluxd is not running")

// A noDaemonError says what to do about errNoDaemon.
type noDaemonError struct {
	socket   string
	settings string // pollux.toml in use
	cause    error
}

func (e *noDaemonError) Error() string {
	return fmt.Sprintf("polluxd is not running: control socket %s: %v", e.socket, e.cause)
}

func (e *noDaemonError) Is(target error) bool { return target == errNoDaemon }

func (e *noDaemonError) advice() string {
	return fmt.Sprintf("start it with: systemctl start polluxd, or by hand: polluxd --config %s", e.settings)
}

// A client is one connection to the daemon; for one goroutine.
type client struct {
	conn  net.Conn
	lines *adm.LineReader
	id    uint64
}

// dial connects to the control socket.
func dial(ctx context.Context, socket, settings string) (*client, error) {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "unix", socket)
	switch {
	case err == nil:
		return &client{conn: conn, lines: adm.NewLineReader(conn, adm.MaxResponse)}, nil
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		cause := "there is no such file"
		if errors.Is(err, syscall.ECONNREFUSED) {
			cause = "nobody listens on it"
		}
		return nil, &noDaemonError{socket: socket, settings: settings, cause: errors.New(cause)}
	case errors.Is(err, os.ErrPermission):
		return nil, &adm.Error{
			Exit: adm.ExitEnvironment, Text: fmt.Sprintf("polluxd: control socket %s: permission denied", socket),
			Advice: "run polluxadm as the user that polluxd runs as, normally root",
		}
	}
	return nil, &adm.Error{Exit: adm.ExitEnvironment, Text: fmt.Sprintf("polluxd: control socket %s: %v", socket, err)}
}

func (c *client) close() { c.conn.Close() }

// call sends a request and waits for its answer, as long as the daemon needs
// or until ctx is done. data receives Response.Data if it isn't nil. A refusal
// is an *adm.Error.
func (c *client) call(ctx context.Context, req adm.Request, data any) error {
	c.id++
	req.V, req.ID = adm.Version, c.id
	line, err := adm.AppendLine(nil, req, adm.MaxRequest)
	if err != nil {
		return err
	}
	if req.Cmd == adm.CmdStatus || req.Cmd == adm.CmdHello || req.Cmd == adm.CmdPerf {
		limited, cancel := context.WithTimeoutCause(ctx, queryTimeout, errNoAnswer)
		defer cancel()
		ctx = limited
	}
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := c.conn.Write(line); err != nil {
		return c.broken(ctx, err)
	}
	if line, err = c.lines.Line(); err != nil {
		return c.broken(ctx, err)
	}
	resp, err := adm.DecodeResponse(line)
	if err != nil {
		return c.broken(ctx, err)
	}
	if resp.ID != req.ID && resp.OK {
		return c.broken(ctx, fmt.Errorf("answer %d to request %d", resp.ID, req.ID))
	}
	if err := resp.Err(); err != nil {
		return err
	}
	if data == nil {
		return nil
	}
	if err := json.Unmarshal(resp.Data, data); err != nil {
		return c.broken(ctx, fmt.Errorf("answer to %s: %w", req.Cmd, err))
	}
	return nil
}

// event waits for the next line of an event stream.
func (c *client) event(ctx context.Context) (adm.Event, error) {
	stop := context.AfterFunc(ctx, func() { c.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := c.lines.Line()
	if err != nil {
		return adm.Event{}, c.broken(ctx, err)
	}
	return adm.DecodeEvent(line)
}

func (c *client) broken(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errNoAnswer) {
		return &adm.Error{
			Exit: adm.ExitEnvironment, Text: fmt.Sprintf("polluxd: no answer within %d seconds", queryTimeout/time.Second),
			Advice: "it may be stopped or wait for a disk; its log says more (journalctl -u polluxd)",
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return &adm.Error{
		Exit: adm.ExitEnvironment, Text: fmt.Sprintf("polluxd: the connection broke before the answer: %v", err),
		Advice: "polluxd may have been stopped; its log says why (journalctl -u polluxd). See with polluxadm status what was done",
	}
}
