// Package haclient asks polluxha through its control socket.
//
//	var c adm.HACluster
//	err := haclient.Call(ctx, "/run/pollux/polluxha.sock", adm.HARequest{Cmd: adm.HAClusterStatus}, &c, nil)
package haclient

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// dialTimeout bounds the wait for a manager whose queue is full.
const dialTimeout = 5 * time.Second

// Client is one connection; for one goroutine.
type Client struct {
	conn  net.Conn
	lines *adm.LineReader
	id    uint64
}

// Dial connects to polluxha's socket; the error wraps the system's.
func Dial(ctx context.Context, socket string) (*Client, error) {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	return &Client{conn: conn, lines: adm.NewLineReader(conn, adm.MaxResponse)}, nil
}

// Close ends the connection; what was ordered goes on.
func (c *Client) Close() error { return c.conn.Close() }

// Call sends one request and waits for its answer until ctx is done; answer
// receives the data unless it is nil. progress gets what polluxha says meanwhile;
// nil drops it. A refusal is an *adm.Error; after any other error the connection is
// of no use.
func (c *Client) Call(ctx context.Context, req adm.HARequest, answer any, progress func(adm.HAProgress)) error {
	c.id++
	req.V, req.ID = adm.Version, c.id
	if err := req.Validate(); err != nil {
		return err
	}
	line, err := adm.AppendLine(nil, req, adm.MaxRequest)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := c.conn.Write(line); err != nil {
		return broken(ctx, fmt.Errorf("%s: %w", req.Cmd, err))
	}
	for {
		line, err := c.lines.Line()
		if err != nil {
			return broken(ctx, fmt.Errorf("no answer to %s: %w", req.Cmd, err))
		}
		m, err := adm.DecodeHAMessage(line)
		switch {
		case err != nil:
			return err
		case m.Progress != nil:
			if progress != nil {
				progress(*m.Progress)
			}
			continue
		}
		if err := m.Err(); err != nil || answer == nil {
			return err
		}
		return json.Unmarshal(m.Data, answer)
	}
}

// Event waits for the next line of an event stream.
func (c *Client) Event(ctx context.Context) (adm.HAEvent, error) {
	defer context.AfterFunc(ctx, func() { c.conn.SetReadDeadline(time.Unix(1, 0)) })()
	line, err := c.lines.Line()
	if err != nil {
		return adm.HAEvent{}, broken(ctx, err)
	}
	return adm.DecodeHAEvent(line)
}

// broken is what ended a conversation: the caller's patience, or the connection.
func broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return fmt.Errorf("polluxha: %w", err)
}

// Call is Dial, one Client.Call, and Close.
func Call(ctx context.Context, socket string, req adm.HARequest, answer any, progress func(adm.HAProgress)) error {
	c, err := Dial(ctx, socket)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Call(ctx, req, answer, progress)
}
