package hatestbed

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/pollux-project/pollux/cmd/internal/demo/records"
)

// The client's patience. What it takes to notice that the machine is back is
// part of every outage that it measures.
const (
	dialPatience   = 200 * time.Millisecond
	answerPatience = time.Second
	clientPause    = 40 * time.Millisecond // between two records
)

const ledgerPort = "7000"

// An Acked is one record that the machine has promised to keep.
type Acked struct {
	records.Ack
	Run string // of the guest that acknowledged it: another one after each boot
	At  time.Time
}

// A Client sends numbered records to the machine, one at a time, and keeps
// what was acknowledged. Safe for concurrent use.
type Client struct {
	dial func(ctx context.Context) (net.Conn, error)

	mu     sync.Mutex
	acked  []Acked
	change chan struct{} // closed at the next acknowledgement
}

// NewClient makes a client whose connections dial makes.
func NewClient(dial func(ctx context.Context) (net.Conn, error)) *Client {
	return &Client{dial: dial, change: make(chan struct{})}
}

// Client makes the client of the rack's machine.
func (r *Rack) Client() *Client {
	return NewClient(func(ctx context.Context) (conn net.Conn, err error) {
		err = r.client.Do(func() error {
			d := net.Dialer{Timeout: dialPatience}
			conn, err = d.DialContext(ctx, "tcp", net.JoinHostPort(machineAddress, ledgerPort))
			return err
		})
		return conn, err
	})
}

// Run works until ctx is done. A record without an answer is sent again.
func (c *Client) Run(ctx context.Context) {
	for ctx.Err() == nil {
		_ = c.session(ctx) // why a connection broke tells nothing that the times don't
		select {
		case <-time.After(clientPause):
		case <-ctx.Done():
		}
	}
}

// session uses one connection until it breaks.
func (c *Client) session(ctx context.Context) error {
	s, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	for {
		number := c.next()
		line, err := s.ask(fmt.Sprintf("PUT %d", number))
		if err != nil {
			return err
		}
		word, run, _ := cutLast(line)
		ack, ok := records.ParseAck(word)
		if !ok || ack.Number != number {
			return fmt.Errorf("the machine answers %q to PUT %d", line, number)
		}
		c.note(Acked{Ack: ack, Run: run, At: time.Now()})
		select {
		case <-time.After(clientPause):
		case <-ctx.Done():
			return nil
		}
	}
}

func cutLast(line string) (before, last string, found bool) {
	if i := strings.LastIndexByte(line, ' '); i >= 0 {
		return line[:i], line[i+1:], true
	}
	return line, "", false
}

func (c *Client) next() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.acked) == 0 {
		return 1
	}
	return c.acked[len(c.acked)-1].Number + 1
}

func (c *Client) note(a Acked) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acked = append(c.acked, a)
	close(c.change)
	c.change = make(chan struct{})
}

// Acked returns what was acknowledged after a moment, oldest first; all of it
// for the zero time.
func (c *Client) Acked(after time.Time) []Acked {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := len(c.acked)
	for i > 0 && c.acked[i-1].At.After(after) {
		i--
	}
	return append([]Acked(nil), c.acked[i:]...)
}

// Wait waits for the first acknowledgement after a moment that fits.
func (c *Client) Wait(ctx context.Context, after time.Time, fits func(Acked) bool) (Acked, error) {
	for {
		c.mu.Lock()
		change := c.change
		c.mu.Unlock()
		for _, a := range c.Acked(after) {
			if fits(a) {
				return a, nil
			}
		}
		select {
		case <-change:
		case <-ctx.Done():
			return Acked{}, fmt.Errorf("no such acknowledgement: %w", ctx.Err())
		}
	}
}

// LongestGap is the longest time without an acknowledgement since a moment,
// counted from the last one before it.
func (c *Client) LongestGap(since time.Time) (longest time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(c.acked) - 1; i > 0 && c.acked[i].At.After(since); i-- {
		longest = max(longest, c.acked[i].At.Sub(c.acked[i-1].At))
	}
	return longest
}

// ReadBack asks the machine for its records from a number on.
func (c *Client) ReadBack(ctx context.Context, from uint64) (map[uint64]records.Record, error) {
	s, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	defer s.close()
	found := make(map[uint64]records.Record)
	line, err := s.ask(fmt.Sprintf("DUMP %d", from))
	for ; err == nil; line, err = s.line() {
		if line == "END" {
			return found, nil
		}
		var r records.Record
		if _, err := fmt.Sscanf(line, "REC %d %x", &r.Number, &r.Sum); err != nil {
			return nil, fmt.Errorf("the machine answers %q to DUMP: %w", line, err)
		}
		found[r.Number] = r
	}
	return nil, err
}

// session is a connection to the machine's ledger.
type session struct {
	conn  net.Conn
	lines *bufio.Scanner
	stop  func() bool
}

func (c *Client) open(ctx context.Context) (*session, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	s := &session{conn: conn, lines: bufio.NewScanner(conn)}
	s.stop = context.AfterFunc(ctx, func() { _ = conn.Close() }) // closed again later
	if hello, err := s.line(); err != nil || !strings.HasPrefix(hello, "HELLO ") {
		s.close()
		return nil, fmt.Errorf("no greeting of the machine: %q: %w", hello, err)
	}
	return s, nil
}

func (s *session) close() {
	s.stop()
	_ = s.conn.Close() // nothing is under way
}

func (s *session) ask(request string) (string, error) {
	if _, err := fmt.Fprintln(s.conn, request); err != nil {
		return "", err
	}
	return s.line()
}

func (s *session) line() (string, error) {
	if err := s.conn.SetReadDeadline(time.Now().Add(answerPatience)); err != nil {
		return "", err
	}
	if !s.lines.Scan() {
		return "", errors.Join(errors.New("the machine is silent"), s.lines.Err())
	}
	return s.lines.Text(), nil
}
