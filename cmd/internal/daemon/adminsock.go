package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/cmd/internal/service"
	"github.com/pollux-project/pollux/protocol/adm"
)

// Bounds of the control socket, our own.
const (
	maxAdminConns     = 64               // clients at a time; one more ends the one that has been silent the longest
	maxAdminStreams   = 32               // of these, event streams
	adminReadTimeout  = time.Minute      // a client that sends no whole request for this long is dropped
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

	lines *zerolog.Logger // sampled: for what a client can cause without end

	mu      sync.Mutex
	conns   map[net.Conn]time.Time // since when it is silent; zero while it is answered, or has a stream
	streams int
}

// listenAdmin opens the control socket at path with mode 0600. A socket file
// that nobody listens on any more is replaced; one that answers is refused.
func listenAdmin(path string) (*net.UnixListener, error) {
	l, err := service.ListenPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return l, nil
}

func newAdminServer(d *Daemon, l *net.UnixListener) *adminServer {
	ctx, stop := context.WithCancel(context.Background())
	sampled := d.log.Sample(&zerolog.BurstSampler{Burst: 10, Period: 10 * time.Second})
	s := &adminServer{d: d, l: l, log: d.log, lines: &sampled, ctx: ctx, stop: stop, conns: map[net.Conn]time.Time{}}
	s.wg.Add(1)
	go s.acceptLoop()
	return s
}

func (s *adminServer) acceptLoop() {
	defer s.wg.Done()
	slots := make(chan struct{}, maxAdminConns)
	for {
		conn, err := s.l.Accept()
		if err != nil {
			if s.ctx.Err() != nil {
				return
			}
			s.lines.Error().Err(err).Msg("control socket: accept")
			select { // out of descriptors, most likely: give others time
			case <-time.After(100 * time.Millisecond):
			case <-s.ctx.Done():
				return
			}
			continue
		}
		if !s.makeRoom(slots) {
			conn.Close()
			return
		}
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			defer func() { <-slots }()
			s.serve(conn)
		}()
	}
}

// makeRoom takes a slot for one more connection; it reports false when the server ends.
func (s *adminServer) makeRoom(slots chan struct{}) bool {
	for {
		if len(slots) == cap(slots) {
			s.endSilent()
		}
		select {
		case slots <- struct{}{}:
			return true
		case <-s.ctx.Done():
			return false
		case <-time.After(100 * time.Millisecond): // the one that was to end has sent its request
		}
	}
}

// endSilent ends the connection that has been silent the longest; those that are
// being answered go on.
func (s *adminServer) endSilent() {
	s.mu.Lock()
	defer s.mu.Unlock()
	var oldest net.Conn
	for c, since := range s.conns {
		if !since.IsZero() && (oldest == nil || since.Before(s.conns[oldest])) {
			oldest = c
		}
	}
	if oldest != nil {
		s.conns[oldest] = time.Time{} // not again
		oldest.SetReadDeadline(time.Unix(1, 0))
		s.lines.Warn().Msg("control socket: too many connections: the one that was silent the longest is closed")
	}
}

// silent notes whether a client's request is awaited, and bounds that time.
func (s *adminServer) silent(conn net.Conn, is bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ctx.Err() != nil: // close has set the deadline
	case is:
		now := time.Now()
		s.conns[conn] = now
		conn.SetReadDeadline(now.Add(adminReadTimeout))
	default:
		s.conns[conn] = time.Time{}
		conn.SetReadDeadline(time.Time{})
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
	s.conns[conn] = time.Now()
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
		s.silent(conn, true)
		line, err := lines.Line()
		if err != nil {
			if pe := (*adm.ProtocolError)(nil); errors.As(err, &pe) {
				s.refuse(conn, adm.Request{}, err)
			} else if !errors.Is(err, io.EOF) && s.ctx.Err() == nil {
				s.lines.Warn().Err(err).Msg("control socket: connection closed")
			}
			return
		}
		s.silent(conn, false)
		req, err := adm.DecodeRequest(line)
		if err != nil {
			s.refuse(conn, req, err)
			return
		}
		if req.Cmd == adm.CmdEvents {
			s.stream(conn, lines, req)
			return
		}
		if req.Cmd == adm.CmdLease {
			s.d.guard.told(conn, req.Args.LeaseMS)
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
	s.lines.Warn().Err(err).Msg("control socket: connection closed: bad request")
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

// addStream counts an event stream in or out; it reports false if there are too many.
func (s *adminServer) addStream(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > 0 && s.streams >= maxAdminStreams {
		return false
	}
	s.streams += n
	return true
}

// stream sends events until the client or the daemon goes.
func (s *adminServer) stream(conn net.Conn, lines *adm.LineReader, req adm.Request) {
	if !s.addStream(1) {
		_ = s.respond(conn, req, nil, &adm.Error{ // it is refused either way
			Exit: adm.ExitEnvironment, Text: fmt.Sprintf("%d event streams are open already, more are refused", maxAdminStreams),
			Advice: "end some of the programs that run polluxadm events",
		})
		return
	}
	defer s.addStream(-1)
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
	known := map[string]bool{} // to the client: what is gone is said once
	for _, r := range st.Resources {
		if req.Resource != "" && r.Name != req.Resource {
			continue
		}
		known[r.Name] = true
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
			r := s.d.resource(name)
			if r == nil && !known[name] {
				continue
			}
			if known[name] = r != nil; r != nil {
				st := r.status()
				ev.Kind, ev.Resource = adm.EventStatus, &st
			}
			if s.send(conn, ev) != nil {
				return
			}
		}
	}
}
