package control

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
)

// A Handler answers a request of another member. It may send parts before it
// returns, each of at most MaxBody bytes; an error of part means that nobody
// listens any more. ctx ends with the time limit of the request, and when the
// connection does. body is its own.
type Handler func(ctx context.Context, from string, body []byte, part func([]byte) error) ([]byte, error)

// A RemoteError is a request that the other node has refused, in its words.
type RemoteError struct {
	Node string
	Text string
}

func (e *RemoteError) Error() string { return e.Node + ": " + e.Text }

// ErrNotConnected says that a request was not sent: there is no connection to the
// node.
var ErrNotConnected = errors.New("no connection")

// ErrSlow says that a request was not sent: the node does not take what is sent.
var ErrSlow = errors.New("the node does not take what is sent to it")

// call is a request that waits for its answer.
type call struct {
	part func([]byte)
	done chan struct{}
	body []byte
	err  error
}

// Request asks another node, over the first link that stands. part, if not nil,
// gets what comes before the answer, in order; it must not block. With an error
// other than *RemoteError, ErrNotConnected and ErrSlow nobody knows whether it was
// carried out. A request to this node is answered by its own handler.
func (ch *Channel) Request(ctx context.Context, node, method string, body []byte, part func([]byte)) ([]byte, error) {
	if len(body) > MaxBody || method == "" || len(method) > maxMethod {
		return nil, fmt.Errorf("request %q of %d bytes to %s: at most %d are allowed", method, len(body), node, MaxBody)
	}
	if node == ch.id.Node {
		return ch.requestSelf(ctx, method, body, part)
	}
	c, err := ch.best(node)
	if err != nil {
		return nil, err
	}
	w := &call{part: part, done: make(chan struct{})}
	id, ok := c.expectReply(w)
	if !ok {
		return nil, fmt.Errorf("%s: %w", node, ErrNotConnected)
	}
	defer c.forget(id)
	limit := maxRequestTime
	if t, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(t))
	}
	head := requestHeader{id: id, limit: limit, method: method}.append(nil)
	if !c.send(appendFrame(nil, frameRequest, head, body)) {
		return nil, fmt.Errorf("%s: %w", node, ErrSlow)
	}
	select {
	case <-w.done:
		return w.body, w.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: no answer to %q: %w", node, method, ctx.Err())
	}
}

func (ch *Channel) requestSelf(ctx context.Context, method string, body []byte, part func([]byte)) ([]byte, error) {
	h := ch.handlers[method]
	if h == nil {
		return nil, &RemoteError{ch.id.Node, unknownMethod(method)}
	}
	answer, err := h(ctx, ch.id.Node, body, func(b []byte) error {
		if part != nil {
			part(b)
		}
		return nil
	})
	if err != nil {
		return nil, &RemoteError{ch.id.Node, err.Error()}
	}
	return answer, nil
}

func unknownMethod(method string) string {
	return fmt.Sprintf("this version of Pollux does not know the request %q: upgrade this node", printable(method))
}

// best is the connection on the first link that has a heartbeat, else any.
func (ch *Channel) best(node string) (*conn, error) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	p := ch.peers[node]
	if p == nil {
		return nil, fmt.Errorf("%s: no node of cluster %q has this name", node, ch.cluster.Name)
	}
	var any *conn
	why := []string{}
	now := ch.cfg.now()
	for _, l := range p.links {
		switch {
		case l.conn == nil:
			why = append(why, l.why)
		case now-l.since < ch.cluster.Heartbeat.Warntime.Duration:
			return l.conn, nil
		case any == nil:
			any = l.conn
		}
	}
	if any == nil {
		return nil, fmt.Errorf("%s: %w: %s", node, ErrNotConnected, strings.Join(why, "; "))
	}
	return any, nil
}

func (c *conn) expectReply(w *call) (uint64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == nil {
		return 0, false
	}
	c.nextID++
	c.waiting[c.nextID] = w
	return c.nextID, true
}

func (c *conn) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
}

// endCalls answers what waits, and ends what is worked on.
func (c *conn) endCalls(err error) {
	c.mu.Lock()
	waiting, serving := c.waiting, c.serving
	c.waiting, c.serving = nil, nil
	c.mu.Unlock()
	for _, w := range waiting {
		w.err = err
		close(w.done)
	}
	for _, cancel := range serving {
		cancel()
	}
}

func (c *conn) receivedReply(kind frameKind, b []byte) error {
	id, failed, body, err := decodeReply(kind, b)
	if err != nil {
		return err
	}
	c.mu.Lock()
	w := c.waiting[id]
	if kind == frameAnswer {
		delete(c.waiting, id)
	}
	c.mu.Unlock()
	switch {
	case w == nil: // given up
	case kind == framePart:
		if w.part != nil {
			w.part(append([]byte(nil), body...))
		}
	case failed:
		w.err = &RemoteError{c.peer.name, printableText(string(body))}
		close(w.done)
	default:
		w.body = append([]byte(nil), body...)
		close(w.done)
	}
	return nil
}

// printableText is printable for a sentence.
func printableText(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s[:min(len(s), 8<<10)], "?"))
}

func (c *conn) receivedRequest(b []byte) error {
	h, body, err := decodeRequest(b)
	if err != nil {
		return err
	}
	handler := c.ch.handlers[h.method]
	ctx, cancel := context.WithTimeout(c.ch.ctx, min(h.limit, maxRequestTime))
	c.mu.Lock()
	full := len(c.serving) >= maxRequests
	_, twice := c.serving[h.id]
	if !full && !twice && handler != nil && c.serving != nil {
		c.serving[h.id] = cancel
	}
	c.mu.Unlock()
	switch {
	case twice:
		cancel()
		return protocolErrorf("request %d twice", h.id)
	case handler == nil:
		cancel()
		c.reply(h.id, nil, errors.New(unknownMethod(h.method)))
		return nil
	case full:
		cancel()
		c.reply(h.id, nil, fmt.Errorf("%d requests are worked on already: try again", maxRequests))
		return nil
	}
	body = append([]byte(nil), body...)
	c.ch.wg.Go(func() {
		defer cancel()
		answer, err := handler(ctx, c.peer.name, body, func(part []byte) error { return c.sendPart(ctx, h.id, part) })
		c.mu.Lock()
		delete(c.serving, h.id)
		c.mu.Unlock()
		if err != nil && ctx.Err() != nil {
			return // its time is over: the caller has gone, and what was done is not known
		}
		c.reply(h.id, answer, err)
		if h.method == methodCommit && err == nil {
			c.ch.enactCommitted(c.peer.name) // this may well end the connection
		}
	})
	return nil
}

func (c *conn) sendPart(ctx context.Context, id uint64, part []byte) error {
	switch {
	case len(part) > MaxBody:
		return fmt.Errorf("part of %d bytes, at most %d are allowed", len(part), MaxBody)
	case ctx.Err() != nil:
		return ctx.Err()
	case !c.send(appendFrame(nil, framePart, binary.BigEndian.AppendUint64(nil, id), part)):
		return ErrSlow
	}
	return nil
}

// reply answers a request. A peer that is too slow for that loses its connection:
// it must not wait for ever.
func (c *conn) reply(id uint64, body []byte, err error) {
	head := append(binary.BigEndian.AppendUint64(nil, id), 0)
	if err == nil && len(body) > MaxBody {
		err = fmt.Errorf("the answer has %d bytes, at most %d are allowed", len(body), MaxBody)
	}
	if err != nil {
		head[8] = 1
		body = []byte(err.Error())
		body = body[:min(len(body), 8<<10)]
	}
	if !c.send(appendFrame(nil, frameAnswer, head, body)) {
		c.close(ErrSlow)
	}
}
