package ha

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/cmd/internal/service"
	"github.com/pollux-project/pollux/protocol/adm"
)

// Bounds of polluxha's socket, our own.
const (
	maxClients         = 64
	clientReadTimeout  = time.Minute      // a client that sends no whole request for this long is dropped
	clientWriteTimeout = 10 * time.Second // a client that doesn't read for this long is dropped
)

// A caller is who sent a request; the kernel says so.
type caller struct {
	uid uint32
	pid int32
}

// handler is what the server serves. progress may be called from any goroutine
// until handle returns.
type handler interface {
	handle(ctx context.Context, from caller, req adm.HARequest, progress func(adm.HAProgress)) (any, error)
	// since returns what the log has after seq, and a channel that is closed when there is more.
	since(seq uint64) ([]adm.HAEvent, <-chan struct{})
}

// A server answers polluxadm on polluxha's socket.
type server struct {
	l     *net.UnixListener
	h     handler
	log   zerolog.Logger
	clock clock
	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup
	slots chan struct{}
}

func listen(path string, h handler, c clock, log zerolog.Logger) (*server, error) {
	l, err := service.ListenPrivate(path)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &server{l: l, h: h, log: log, clock: c, ctx: ctx, stop: stop, slots: make(chan struct{}, maxClients)}
	s.wg.Add(1)
	go s.accept()
	return s, nil
}

// close ends all connections; a command that is under way is told so by its context.
func (s *server) close() {
	s.stop()
	s.l.Close()
	s.wg.Wait()
}

func (s *server) accept() {
	defer s.wg.Done()
	for {
		conn, err := s.l.AcceptUnix()
		if s.ctx.Err() != nil {
			if err == nil {
				conn.Close() //nolint:errcheck // nothing was said
			}
			return
		}
		if err != nil {
			s.log.Error().Err(err).Msg("control socket: accept")
			select { // out of descriptors, most likely: give others time
			case <-time.After(100 * time.Millisecond):
			case <-s.ctx.Done():
			}
			continue
		}
		select {
		case s.slots <- struct{}{}:
		default:
			c := &client{UnixConn: conn, s: s}
			c.answer(0, nil, &adm.Error{ //nolint:errcheck // a courtesy
				Exit: adm.ExitEnvironment, Text: "polluxha: too many clients at a time",
				Advice: "end some of the programs that run polluxadm events or wait for a command",
			})
			conn.Close() //nolint:errcheck // nothing was said
			continue
		}
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			defer func() { <-s.slots }()
			(&client{UnixConn: conn, s: s}).serve()
		}()
	}
}

// A client is one connection.
type client struct {
	*net.UnixConn
	s    *server
	from caller
	mu   sync.Mutex // progress and answer are written by different goroutines
}

func (c *client) serve() {
	stop := context.AfterFunc(c.s.ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) }) //nolint:errcheck // ends the read
	defer stop()
	defer c.Close()
	c.from = peerOf(c.UnixConn)
	lines := adm.NewLineReader(c, adm.MaxRequest)
	for {
		c.SetReadDeadline(time.Now().Add(clientReadTimeout)) //nolint:errcheck // the read fails if this did
		if c.s.ctx.Err() != nil {
			return
		}
		line, err := lines.Line()
		if err != nil {
			var pe *adm.ProtocolError
			if errors.As(err, &pe) {
				c.refuse(0, err)
			}
			return
		}
		c.SetReadDeadline(time.Time{}) //nolint:errcheck // the read fails if this did
		req, err := adm.DecodeHARequest(line)
		if err != nil {
			c.refuse(req.ID, err)
			return
		}
		if req.Cmd == adm.HAEvents {
			c.stream(lines, req)
			return
		}
		if c.command(req) != nil {
			return
		}
	}
}

// refuse answers a line that is no request; the connection ends with it.
func (c *client) refuse(id uint64, err error) {
	c.s.log.Warn().Err(err).Msg("control socket: connection closed: bad request")
	_ = c.answer(id, nil, &adm.Error{ // the client is wrong already; whether it reads this doesn't matter
		Exit: adm.ExitEnvironment, Text: err.Error(),
		Advice: "polluxadm and polluxha must be of the same version; restart polluxha after an upgrade: it touches no VM",
	})
}

func (c *client) command(req adm.HARequest) error {
	start := c.s.clock.now()
	progress := func(p adm.HAProgress) {
		p.ElapsedMS = c.s.clock.now() - start
		// A client that has gone is noticed by the answer; the command goes on without it.
		_ = c.send(adm.HAMessage{Response: adm.Response{V: adm.Version, ID: req.ID}, Progress: &p})
	}
	data, err := c.s.h.handle(c.s.ctx, c.from, req, progress)
	return c.answer(req.ID, data, err)
}

// answer sends the last line of an answer.
func (c *client) answer(id uint64, data any, err error) error {
	resp := adm.Response{V: adm.Version, ID: id, OK: err == nil}
	if err == nil && data != nil {
		resp.Data, err = json.Marshal(data)
		resp.OK = err == nil
	}
	if err != nil {
		resp.Code, resp.Error = adm.ExitEnvironment, err.Error()
		var known *adm.Error
		if errors.As(err, &known) {
			resp.Code, resp.Number, resp.Error, resp.Advice = known.Exit, known.Number, known.Text, known.Advice
		}
	}
	return c.send(adm.HAMessage{Response: resp})
}

func (c *client) send(v any) error {
	line, err := adm.AppendLine(nil, v, adm.MaxResponse)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.SetWriteDeadline(time.Now().Add(clientWriteTimeout)) //nolint:errcheck // the write fails if this did
	_, err = c.Write(line)
	return err
}

// stream sends events until the client goes, or, without Follow, to the newest.
func (c *client) stream(lines *adm.LineReader, req adm.HARequest) {
	if c.answer(req.ID, nil, nil) != nil {
		return
	}
	gone := make(chan struct{})
	go func() { // it says nothing more: whatever comes ends the stream
		defer close(gone)
		_, err := lines.Line()
		if err == nil || !errors.Is(err, io.EOF) && c.s.ctx.Err() == nil {
			c.s.log.Debug().Err(err).Msg("control socket: event stream closed")
		}
	}()
	defer func() {
		c.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // ends the read
		<-gone
	}()
	seq, ready := req.Args.Since, false
	for {
		list, more := c.s.h.since(seq)
		for _, e := range list {
			if (req.VM == "" || req.VM == e.VM) && c.send(e) != nil {
				return
			}
			seq = e.Seq
		}
		if !ready {
			ready = true
			if c.send(adm.HAEvent{V: adm.Version, Seq: seq, Kind: adm.HAEventReady}) != nil || !req.Args.Follow {
				return
			}
		}
		select {
		case <-gone:
			return
		case <-c.s.ctx.Done():
			return
		case <-more:
		}
	}
}

// peerOf asks the kernel who is at the other end of a connection.
func peerOf(conn *net.UnixConn) caller {
	c := caller{uid: ^uint32(0)}
	raw, err := conn.SyscallConn()
	if err != nil {
		return c
	}
	_ = raw.Control(func(fd uintptr) { // fails if conn is closed: then nobody is told anything
		if u, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			c = caller{uid: u.Uid, pid: u.Pid}
		}
	})
	return c
}
