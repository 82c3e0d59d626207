package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/protocol/adm"
)

// Bounds of the control socket, our own.
const (
	maxAdminConns     = 64               // clients at a time; one more waits in the socket's queue
	adminWriteTimeout = 10 * time.Second // a client that doesn't read for this long is dropped
)

// An adminServer answers polluxadm on the control socket.
type adminServer struct {
	d    *Daemon
	l    *net.UnixListener
	log  zerolog.Logger
	stop context.CancelFunc
	ctx  context.Context
	wg   sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// listenAdmin opens the control socket at path with mode 0600. A socket file
// that nobody listens on any more is replaced; one that answers is refused.
func listenAdmin(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := removeStaleSocket(path); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return l, nil
}

// removeStaleSocket removes the socket file that a killed process left.
func removeStaleSocket(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case fi.Mode()&os.ModeSocket == 0:
		return fmt.Errorf("%s exists and is not a socket", path)
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
		return fmt.Errorf("%s is in use by another process", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

func newAdminServer(d *Daemon, l *net.UnixListener) *adminServer {
	ctx, stop := context.WithCancel(context.Background())
	s := &adminServer{d: d, l: l, log: d.log, ctx: ctx, stop: stop, conns: map[net.Conn]struct{}{}}
	s.wg.Add(1)
	go s.acceptLoop()
	return s
}

func (s *adminServer) acceptLoop() {
	defer s.wg.Done()
	slots := make(chan struct{}, maxAdminConns)
	for {
		select {
		case slots <- struct{}{}:
		case <-s.ctx.Done():
			return
		}
		conn, err := s.l.Accept()
		if err != nil {
			if s.ctx.Err() != nil {
				return
			}
			s.log.Error().Err(err).Msg("control socket: accept")
			<-slots
			select { // out of descriptors, most likely: give others time
			case <-time.After(100 * time.Millisecond):
			case <-s.ctx.Done():
				return
			}
			continue
		}
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			defer func() { <-slots }()
			s.serve(conn)
		}()
	}
}

// close ends all connections, those in the middle of a command after it.
func (s *adminServer) close() {
	s.stop()
	s.l.Close()
	s.mu.Lock()
	for c := range s.conns {
		c.SetReadDeadline(time.Unix(1, 0)) // wakes readers; a running command still answers
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *adminServer) serve(conn net.Conn) {
	s.mu.Lock()
	s.conns[conn] = struct{}{}
	s.mu.Unlock()
	if s.ctx.Err() != nil { // close has passed over conns already
		conn.SetReadDeadline(time.Unix(1, 0))
	}
	defer func() {
		s.mu.Lock()
		delete(s.conns, conn)
		s.mu.Unlock()
		conn.Close()
	}()
	lines := adm.NewLineReader(conn, adm.MaxRequest)
	for {
		line, err := lines.Line()
		if err != nil {
			if pe := (*adm.ProtocolError)(nil); errors.As(err, &pe) {
				s.refuse(conn, adm.Request{}, err)
			} else if !errors.Is(err, io.EOF) && s.ctx.Err() == nil {
				s.log.Warn().Err(err).Msg("control socket: connection closed")
			}
			return
		}
		req, err := adm.DecodeRequest(line)
		if err != nil {
			s.refuse(conn, req, err)
			return
		}
		if req.Cmd == adm.CmdEvents {
			s.stream(conn, lines, req)
			return
		}
		data, err := s.d.execute(req)
		if werr := s.respond(conn, req, data, err); werr != nil {
			s.log.Warn().Err(werr).Str("cmd", string(req.Cmd)).Msg("control socket: the client did not take its answer")
			return
		}
	}
}

// refuse answers a line that is no request, logs why and ends the conversation.
func (s *adminServer) refuse(conn net.Conn, req adm.Request, err error) {
	s.log.Warn().Err(err).Msg("control socket: connection closed: bad request")
	// The client is wrong already; whether it reads this doesn't matter.
	_ = s.respond(conn, req, nil, &adm.Error{
		Exit: adm.ExitEnvironment, Text: err.Error(),
		Advice: "polluxadm and polluxd must be of the same version; restart polluxd after an upgrade",
	})
}

func (s *adminServer) respond(conn net.Conn, req adm.Request, data any, err error) error {
	resp := adm.Response{V: adm.Version, ID: req.ID, OK: err == nil}
	if err != nil {
		e := asError(err)
		resp.Code, resp.Number, resp.Error, resp.Advice = e.Exit, e.Number, e.Text, e.Advice
	} else if data != nil {
		b, merr := json.Marshal(data)
		if merr != nil {
			return merr
		}
		resp.Data = b
	}
	return s.send(conn, resp)
}

func (s *adminServer) send(conn net.Conn, v any) error {
	line, err := adm.AppendLine(nil, v, adm.MaxResponse)
	if err != nil {
		return err
	}
	if err := conn.SetWriteDeadline(time.Now().Add(adminWriteTimeout)); err != nil {
		return err
	}
	_, err = conn.Write(line)
	return err
}

// stream sends events until the client or the daemon goes.
func (s *adminServer) stream(conn net.Conn, lines *adm.LineReader, req adm.Request) {
	sub := s.d.hub.subscribe(req.Resource) // first, so that nothing falls in between
	defer s.d.hub.unsubscribe(sub)
	if err := s.respond(conn, req, nil, nil); err != nil {
		return
	}
	gone := make(chan struct{})
	go func() { // the client says nothing more: whatever comes ends the stream
		defer close(gone)
		if line, err := lines.Line(); err == nil {
			s.log.Warn().Int("bytes", len(line)).Msg("control socket: connection closed: request during an event stream")
		}
	}()
	defer func() {
		conn.SetReadDeadline(time.Unix(1, 0))
		<-gone
	}()
	st, err := s.d.status("")
	if err != nil {
		return
	}
	for _, r := range st.Resources {
		if req.Resource != "" && r.Name != req.Resource {
			continue
		}
		if s.send(conn, adm.Event{V: adm.Version, Kind: adm.EventStatus, Name: r.Name, Resource: &r}) != nil {
			return
		}
	}
	if s.send(conn, adm.Event{V: adm.Version, Kind: adm.EventReady}) != nil {
		return
	}
	for {
		select {
		case <-gone:
			return
		case <-s.ctx.Done():
			return
		case <-sub.wake:
		}
		for _, name := range sub.take() {
			ev := adm.Event{V: adm.Version, Kind: adm.EventGone, Name: name}
			if r := s.d.resource(name); r != nil {
				st := r.status()
				ev.Kind, ev.Resource = adm.EventStatus, &st
			}
			if s.send(conn, ev) != nil {
				return
			}
		}
	}
}
