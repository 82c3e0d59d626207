package adm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// A manager is one connection to polluxha, the failover manager of this node;
// for one goroutine.
type manager struct {
	conn  net.Conn
	lines *adm.LineReader
	id    uint64
}

// clustered reports whether this node is in a cluster: then its virtual machines
// are polluxha's, and nobody else's.
func (a *app) clustered() (bool, error) {
	d, err := a.settings()
	if err != nil {
		return false, err
	}
	_, err = os.Stat(d.HA.ClusterFile)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// dialManager connects to polluxha.
func (a *app) dialManager(ctx context.Context) (*manager, error) {
	d, err := a.settings()
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "unix", d.HA.Socket)
	if err == nil {
		return &manager{conn: conn, lines: adm.NewLineReader(conn, adm.MaxResponse)}, nil
	}
	e := &adm.Error{Exit: adm.ExitEnvironment, Text: fmt.Sprintf("polluxha: control socket %s: %v", d.HA.Socket, err)}
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		e.Text = fmt.Sprintf("polluxha is not running: nobody listens on its control socket %s", d.HA.Socket)
		e.Advice = fmt.Sprintf("start it with: systemctl start polluxha, or by hand: polluxha --config %s. Machines that run go on without it", a.settingsPath())
	case errors.Is(err, os.ErrPermission):
		e.Advice = "run polluxadm as the user that polluxha runs as, normally root"
	}
	return nil, e
}

func (m *manager) close() { m.conn.Close() }

// call sends a request and waits for its answer, as long as polluxha needs or
// until ctx is done; meanwhile progress, if not nil, is told how far it is. data
// receives the answer if it isn't nil. A refusal is an *adm.Error.
func (m *manager) call(ctx context.Context, req adm.HARequest, data any, progress func(adm.HAProgress)) error {
	m.id++
	req.V, req.ID = adm.Version, m.id
	if err := req.Validate(); err != nil {
		return err
	}
	line, err := adm.AppendLine(nil, req, adm.MaxRequest)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { m.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := m.conn.Write(line); err != nil {
		return m.broken(ctx, err)
	}
	for {
		line, err := m.lines.Line()
		if err != nil {
			return m.broken(ctx, err)
		}
		answer, err := adm.DecodeHAMessage(line)
		if err != nil {
			return m.broken(ctx, err)
		}
		if answer.Progress != nil {
			if progress != nil {
				progress(*answer.Progress)
			}
			continue
		}
		if err := answer.Err(); err != nil {
			return err
		}
		if data == nil {
			return nil
		}
		if err := json.Unmarshal(answer.Data, data); err != nil {
			return m.broken(ctx, fmt.Errorf("answer to %s: %w", req.Cmd, err))
		}
		return nil
	}
}

// event waits for the next line of the event stream.
func (m *manager) event(ctx context.Context) (adm.HAEvent, error) {
	stop := context.AfterFunc(ctx, func() { m.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := m.lines.Line()
	if err != nil {
		return adm.HAEvent{}, m.broken(ctx, err)
	}
	return adm.DecodeHAEvent(line)
}

func (m *manager) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return &adm.Error{
		Exit: adm.ExitEnvironment, Text: fmt.Sprintf("polluxha: the connection broke before the answer: %v", err),
		Advice: "it may have been stopped or updated; what was begun goes on. See with polluxadm vm list, and its log (journalctl -u polluxha)",
	}
}
