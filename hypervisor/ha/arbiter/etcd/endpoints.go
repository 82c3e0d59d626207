package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// Our own constants. An idle connection to a host that is off is found by TCP's
// and gRPC's keepalive; requests don't wait for that.
const (
	keepaliveTime    = 10 * time.Second // gRPC's minimum
	keepaliveTimeout = 3 * time.Second
	minPause         = 20 * time.Millisecond // between two attempts
	maxPause         = 500 * time.Millisecond
)

var errClosed = errors.New("closed")

// endpoints is a connection to each endpoint, one of which is in use. It is safe
// for concurrent use.
type endpoints struct {
	attempt time.Duration
	configs []clientv3.Config

	mu       sync.Mutex
	clients  []*clientv3.Client // nil: not yet dialed
	current  int
	moved    chan struct{} // closed when another one comes into use
	isClosed bool
}

func newEndpoints(c *Config) (*endpoints, error) {
	t, err := c.tlsConfig()
	if err != nil {
		return nil, err
	}
	log := c.Log
	if log == nil {
		log = zap.NewNop()
	}
	e := &endpoints{attempt: c.attempt(), moved: make(chan struct{}), clients: make([]*clientv3.Client, len(c.Endpoints))}
	for _, endpoint := range c.Endpoints {
		e.configs = append(e.configs, clientv3.Config{
			Endpoints: []string{endpoint}, TLS: t, Username: c.User, Password: c.Password,
			DialTimeout: e.attempt, DialKeepAliveTime: keepaliveTime, DialKeepAliveTimeout: keepaliveTimeout,
			Logger: log,
		})
	}
	return e, nil
}

// client returns the connection to the nth endpoint.
func (e *endpoints) client(n int) (*clientv3.Client, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.isClosed {
		return nil, errClosed
	}
	if e.clients[n] == nil {
		c, err := clientv3.New(e.configs[n])
		if err != nil {
			return nil, err
		}
		e.clients[n] = c
	}
	return e.clients[n], nil
}

// inUse returns the endpoint in use, and what is closed when that changes.
func (e *endpoints) inUse() (int, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.current, e.moved
}

// leave puts the next endpoint into use, unless somebody has done that already.
func (e *endpoints) leave(n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.current != n || len(e.configs) == 1 {
		return
	}
	e.current = (n + 1) % len(e.configs)
	close(e.moved)
	e.moved = make(chan struct{})
}

// do calls f with one endpoint after the other until it succeeds, is refused, or
// ctx is done. f must stand being called again after it was carried out.
func (e *endpoints) do(ctx context.Context, f func(context.Context, *clientv3.Client) error) error {
	var last error
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		if ctx.Err() != nil {
			return unreachable(ctx, last)
		}
		n, _ := e.inUse()
		err := e.try(ctx, n, f)
		var refused *arbiter.RefusedError
		switch {
		case err == nil, errors.As(err, &refused):
			return err
		case isFinal(err):
			return fmt.Errorf("%w: etcd: %w", arbiter.ErrUnreachable, err)
		}
		last = err
		e.leave(n)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func (e *endpoints) try(ctx context.Context, n int, f func(context.Context, *clientv3.Client) error) error {
	c, err := e.client(n)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, e.attempt)
	defer cancel()
	if err := f(clientv3.WithRequireLeader(ctx), c); err != nil {
		return fmt.Errorf("%s: %w", e.configs[n].Endpoints[0], err)
	}
	return nil
}

func unreachable(ctx context.Context, last error) error {
	if last == nil {
		last = context.Cause(ctx)
	}
	return fmt.Errorf("%w: etcd: %w", arbiter.ErrUnreachable, last)
}

// isFinal reports whether no endpoint will say anything else: it was understood,
// and is not permitted.
func isFinal(err error) bool {
	if errors.Is(err, errClosed) {
		return true
	}
	var e rpctypes.EtcdError
	code := codes.Unknown
	if errors.As(err, &e) {
		code = e.Code()
	} else if s, ok := status.FromError(err); ok {
		code = s.Code()
	}
	switch code {
	case codes.PermissionDenied, codes.InvalidArgument, codes.Unimplemented:
		return true
	default:
		return false
	}
}

func (e *endpoints) close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.isClosed {
		return nil
	}
	e.isClosed = true
	var all []error
	for _, c := range e.clients {
		if c != nil {
			all = append(all, c.Close())
		}
	}
	if err := errors.Join(all...); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
