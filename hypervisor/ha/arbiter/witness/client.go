package witness

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	"github.com/pollux-project/pollux/hypervisor/ha/control"
)

// ClientConfig says where the witness is, whom to believe, and who asks.
type ClientConfig struct {
	Address     netip.AddrPort
	Fingerprint string // of the witness's certificate, "sha256:" and 64 digits; or
	CA          []byte // in PEM: who signs it, for the witness's address
	Certificate tls.Certificate
	TTL         time.Duration // of this node's lease
}

// Client limits, our own.
const (
	clientConns = 8
	dialTime    = 3 * time.Second
	watchPause  = time.Second // between two tries
)

// Client is the witness as an arbiter. It is safe for concurrent use.
type Client struct {
	cfg  ClientConfig
	http *http.Client
	// ctx ends with Close.
	ctx    context.Context
	cancel context.CancelFunc
	closed atomic.Bool
}

var _ arbiter.Arbiter = (*Client)(nil)

// NewClient returns an arbiter; nothing is sent before it is asked.
func NewClient(cfg ClientConfig) (*Client, error) {
	switch {
	case !cfg.Address.IsValid() || cfg.Address.Port() == 0:
		return nil, errors.New("witness: no address")
	case len(cfg.Certificate.Certificate) == 0:
		return nil, errors.New("witness: no certificate of this node")
	case cfg.TTL < minTTL || cfg.TTL > maxTTL:
		return nil, fmt.Errorf("witness: a lease of %v, expected %v to %v", cfg.TTL, minTTL, maxTTL)
	}
	t, err := cfg.tls()
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: dialTime, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	c := &Client{cfg: cfg, http: &http.Client{Transport: &http.Transport{
		DialContext: d.DialContext, TLSClientConfig: t, TLSHandshakeTimeout: dialTime, Protocols: protocols,
		MaxConnsPerHost: clientConns, MaxIdleConnsPerHost: clientConns, IdleConnTimeout: time.Minute,
		MaxResponseHeaderBytes: 8 << 10, DisableCompression: true,
	}}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

func (cfg *ClientConfig) tls() (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cfg.Certificate}}
	if cfg.Fingerprint != "" {
		t.InsecureSkipVerify = true // the fingerprint is all that counts
		t.VerifyConnection = func(s tls.ConnectionState) error {
			if got := control.Fingerprint(s.PeerCertificates[0].Raw); got != cfg.Fingerprint {
				return fmt.Errorf("it has the certificate %s, and [arbiter.witness] of cluster.toml has %s: compare with `pollux-witness status`", got, cfg.Fingerprint)
			}
			return nil
		}
		return t, nil
	}
	t.RootCAs = x509.NewCertPool()
	if !t.RootCAs.AppendCertsFromPEM(cfg.CA) {
		return nil, errors.New("witness: neither a fingerprint nor a CA in PEM")
	}
	return t, nil
}

// unreachable is any error by which nothing is known.
func unreachable(err error) error {
	return fmt.Errorf("%w: witness: %w", arbiter.ErrUnreachable, err)
}

// ask sends one request and returns the answer; a refusal is an error.
func (c *Client) ask(ctx context.Context, method, path string, q *request) (*response, error) {
	if c.closed.Load() {
		return nil, unreachable(errors.New("closed"))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(c.ctx, cancel)
	defer stop()
	var body io.Reader
	if q != nil {
		b, err := json.Marshal(q)
		if err != nil {
			return nil, unreachable(fmt.Errorf("encode a request: %w", err))
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, "https://"+c.cfg.Address.String()+path, body)
	if err != nil {
		return nil, unreachable(err)
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return nil, unreachable(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxResponse))
	if err != nil {
		return nil, unreachable(err)
	}
	return parseResponse(answer.StatusCode, text)
}

func parseResponse(status int, text []byte) (*response, error) {
	var a response
	switch err := json.Unmarshal(text, &a); {
	case err != nil:
		return nil, unreachable(fmt.Errorf("status %d with an answer that is no JSON", status))
	case a.Refused != nil:
		return nil, a.Refused.err()
	case a.Error != "":
		return nil, unreachable(errors.New(a.Error))
	case status != http.StatusOK:
		return nil, unreachable(fmt.Errorf("status %d", status))
	}
	return &a, nil
}

// Acquire carries a claim out.
func (c *Client) Acquire(ctx context.Context, claim arbiter.Claim) (arbiter.Record, error) {
	a, err := c.ask(ctx, http.MethodPost, pathAcquire, &request{Claim: &claim})
	if err != nil {
		return arbiter.Record{}, err
	}
	// An answer that cannot be this claim's grants nothing.
	if a.Record == nil || a.Record.Resource != claim.Resource || a.Record.Owner != claim.Node || a.Record.Term <= max(claim.Seen, claim.MinTerm) {
		return arbiter.Record{}, unreachable(errors.New("its answer is not for this claim"))
	}
	return *a.Record, nil
}

// Renew makes or prolongs a lease.
func (c *Client) Renew(ctx context.Context, node, session string) error {
	_, err := c.ask(ctx, http.MethodPost, pathRenew, &request{Node: node, Session: session, TTLMS: c.cfg.TTL.Milliseconds()})
	return err
}

// Release says that node has demoted.
func (c *Client) Release(ctx context.Context, resource, node string, term uint64) error {
	_, err := c.ask(ctx, http.MethodPost, pathRelease, &request{Resource: resource, Node: node, Term: term})
	return err
}

// Resign ends a lease.
func (c *Client) Resign(ctx context.Context, node, session string) error {
	_, err := c.ask(ctx, http.MethodPost, pathResign, &request{Node: node, Session: session})
	return err
}

// Observe returns records and leases.
func (c *Client) Observe(ctx context.Context, resources ...string) (arbiter.View, error) {
	a, err := c.ask(ctx, http.MethodPost, pathObserve, &request{Resources: resources})
	if err != nil {
		return arbiter.View{}, err
	}
	if a.View == nil || len(a.View.Records) != len(resources) {
		return arbiter.View{}, unreachable(errors.New("its answer is not for this question"))
	}
	for i, r := range a.View.Records {
		if r.Resource != resources[i] {
			return arbiter.View{}, unreachable(errors.New("its answer is not for this question"))
		}
	}
	return *a.View, nil
}

// Watch calls changed when something may have changed; also when the witness is
// lost, and when it is back.
func (c *Client) Watch(ctx context.Context, changed func()) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(c.ctx, cancel)
	defer stop()
	epoch, version, isLost, isFirst := "", uint64(0), false, true
	for ctx.Err() == nil {
		wait, end := context.WithTimeout(ctx, watchTime+dialTime+5*time.Second)
		a, err := c.ask(wait, http.MethodGet, fmt.Sprintf("%s?since=%d&epoch=%s", pathWatch, version, epoch), nil)
		end()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !isLost {
				changed()
			}
			isLost = true
			select {
			case <-ctx.Done():
			case <-time.After(watchPause):
			}
			continue
		case isLost || isFirst || a.Epoch != epoch || a.Version != version:
			changed()
		}
		epoch, version, isLost, isFirst = a.Epoch, a.Version, false, false
	}
}

// TTL is how long a lease lasts.
func (c *Client) TTL() time.Duration { return c.cfg.TTL }

// Close ends all that waits. What is asked later gets ErrUnreachable.
func (c *Client) Close() error {
	c.closed.Store(true)
	c.cancel()
	c.http.CloseIdleConnections()
	return nil
}
