package monitor

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"time"
)

// Kind says what is asked.
type Kind string

// The kinds. The first two are asked by the caller's function.
const (
	Process Kind = "process" // the hypervisor
	Agent   Kind = "agent"   // the guest's agent
	Connect Kind = "connect" // a TCP port
	Ping    Kind = "ping"    // ICMP echo
	HTTP    Kind = "http"
)

// Spec describes a monitor.
type Spec struct {
	Kind     Kind
	Interval time.Duration // from one probe to the next; >= Timeout
	Timeout  time.Duration // of one probe
	Failures int           // so many in a row make it ill; >= 1
	Address  string        // IP for Ping, IP:PORT for Connect and HTTP
	Request  string        // Connect: what is sent; HTTP: the path, "" = "/"
	Receive  string        // regular expression for the answer; "" = any
}

// Validate says what is wrong with s.
func (s Spec) Validate() error {
	if s.Timeout <= 0 || s.Interval < s.Timeout || s.Failures < 1 {
		return fmt.Errorf("monitor %s: interval %v, timeout %v, %d failures: want an interval of at least the timeout, and one failure", s.Kind, s.Interval, s.Timeout, s.Failures)
	}
	switch s.Kind {
	case Process, Agent:
		return nil
	case Ping:
		if _, err := netip.ParseAddr(s.Address); err != nil {
			return fmt.Errorf("monitor ping: address %q: want an IP address", s.Address)
		}
		return nil
	case Connect, HTTP:
		host, port, err := net.SplitHostPort(s.Address)
		_, ipErr := netip.ParseAddr(host)
		if err != nil || ipErr != nil || port == "" || port == "0" {
			return fmt.Errorf("monitor %s: address %q: want IP:PORT", s.Kind, s.Address)
		}
		if s.Kind == HTTP && s.Request != "" && !strings.HasPrefix(s.Request, "/") {
			return fmt.Errorf("monitor http: request %q: want a path that begins with /", s.Request)
		}
		return nil
	}
	return fmt.Errorf("monitor: kind %q: want process, agent, connect, ping or http", s.Kind)
}

// A Probe asks once, as often as it is told to. Safe for concurrent use.
type Probe struct {
	spec    Spec
	receive *regexp.Regexp // nil: any answer
	ask     func(context.Context) error
}

// NewProbe returns the probe that s describes. own is what Process and Agent
// ask; other kinds ignore it.
func NewProbe(s Spec, own func(context.Context) error) (*Probe, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	p := &Probe{spec: s, ask: own}
	if s.Receive != "" {
		re, err := regexp.Compile(s.Receive)
		if err != nil {
			return nil, fmt.Errorf("monitor %s: receive %q: %w", s.Kind, s.Receive, err)
		}
		p.receive = re
	}
	switch s.Kind {
	case Process, Agent:
		if own == nil {
			return nil, fmt.Errorf("monitor %s: there is nobody to ask", s.Kind)
		}
	case Connect:
		p.ask = p.connect
	case Ping:
		p.ask = p.ping
	case HTTP:
		p.ask = p.http
	}
	return p, nil
}

// Ask probes once, for at most the spec's timeout. The error says what was
// asked, and what came instead of the answer.
func (p *Probe) Ask(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, p.spec.Timeout)
	defer cancel()
	err := p.ask(limited)
	if err == nil {
		err = limited.Err() // an answer that came too late is none
	}
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("no answer within %v: %w", p.spec.Timeout, err)
	}
	if err != nil && p.spec.Address != "" {
		return fmt.Errorf("%s %s: %w", p.spec.Kind, p.spec.Address, err)
	}
	return err
}

// Health is what a monitor knows.
type Health struct {
	Well     bool      // false until the first success, and after too many failures
	Known    bool      // there was a success or an illness yet
	Failures int       // in a row, up to now
	Why      string    // of the last failure; "" after a success
	At       time.Time // end of the probe
	Took     time.Duration
}

// Run probes until ctx is done. It calls report for the first success, for each
// change between well and ill, and for the first failure of a row. name spreads
// the times of the probes. The first probe is made at once.
func Run(ctx context.Context, name string, p *Probe, report func(Health)) {
	var h Health
	due := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for isFirst := true; ; isFirst = false {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		began := time.Now()
		err := p.Ask(ctx)
		if ctx.Err() != nil {
			return // not the answer's fault
		}
		if next, isNews := h.after(err, p.spec.Failures); isNews {
			next.At, next.Took = time.Now(), time.Since(began)
			h = next
			report(h)
		} else {
			h = next
		}
		due = p.next(due, name, isFirst)
		timer.Reset(time.Until(due))
	}
}

// next is when the following probe is due: an interval after this one was due,
// whenever that was carried out; times that have passed meanwhile (the machine
// slept) are left out. The second one is where name has its place in the interval.
func (p *Probe) next(due time.Time, name string, isFirst bool) time.Time {
	if isFirst {
		h := fnv.New64a()
		_, _ = h.Write([]byte(name)) // never fails
		place := time.Duration(h.Sum64() % uint64(p.spec.Interval))
		return due.Add(p.spec.Interval/2 + place/2)
	}
	due = due.Add(p.spec.Interval)
	if late := time.Since(due); late > 0 {
		due = due.Add(late.Truncate(p.spec.Interval) + p.spec.Interval)
	}
	return due
}

// after is the health after one more probe, and whether somebody should know.
func (h Health) after(err error, limit int) (Health, bool) {
	if err == nil {
		isNews := !h.Known || !h.Well || h.Failures > 0
		return Health{Well: true, Known: true}, isNews
	}
	isFirst := h.Failures == 0
	h.Failures++
	h.Why = err.Error()
	becameIll := h.Failures == limit
	if becameIll {
		h.Well, h.Known = false, true
	}
	return h, isFirst || becameIll
}

// errNoMatch says that the answer is not what receive wants.
var errNoMatch = errors.New("the answer does not match")
