// Package pairtest runs both sides of an arbiter of two nodes in one process: two
// hosts that boot and lose power, and the cable between them.
package pairtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/arbitertest"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/pair"
)

// Side is one side of the arbiter under test.
type Side interface {
	arbiter.Arbiter
	Serve(ctx context.Context, request []byte) ([]byte, error)
}

// Rig is two hosts, "a" and "b". It is safe for concurrent use.
type Rig struct {
	dir  string
	make func(pair.Config) (Side, error)
	// Wire, if set, may lose, delay or repeat what goes from one node to the other:
	// deliver brings it there.
	Wire func(from, to string, request []byte, deliver func([]byte) ([]byte, error)) ([]byte, error)

	mu    sync.Mutex
	sides map[string]Side
	boots map[string]int
	isCut bool
}

// NewRig returns two hosts with power whose managers don't run yet.
func NewRig(t testing.TB, newSide func(pair.Config) (Side, error)) *Rig {
	t.Helper()
	// In memory: thousands of durable writes, and no power is really lost.
	dir, err := os.MkdirTemp("/dev/shm", "pair")
	if err != nil {
		dir = t.TempDir()
	} else {
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
	}
	return &Rig{dir: dir, make: newSide, sides: map[string]Side{}, boots: map[string]int{"a": 1, "b": 1}}
}

// Other is the other node.
func Other(node string) string {
	if node == "a" {
		return "b"
	}
	return "a"
}

// File is where a node's records are.
func (r *Rig) File(node string) string { return filepath.Join(r.dir, node+".json") }

// Start starts the manager on a node, unless it runs.
func (r *Rig) Start(t testing.TB, node string) Side {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.sides[node]; s != nil {
		return s
	}
	s, err := r.make(pair.Config{
		Cluster: "c", Node: node, Peer: Other(node), File: r.File(node), Boot: fmt.Sprintf("%s-%d", node, r.boots[node]),
		TTL: 60 * time.Millisecond, Attempt: 2 * time.Second, Caller: caller{r, node},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.sides[node] = s
	return s
}

// Stop kills the manager on a node.
func (r *Rig) Stop(node string) {
	r.mu.Lock()
	s := r.sides[node]
	delete(r.sides, node)
	r.mu.Unlock()
	if s != nil {
		_ = s.Close() // it is killed
	}
}

// PowerOff takes a host's power away; its next Start is in another boot.
func (r *Rig) PowerOff(node string) {
	r.Stop(node)
	r.mu.Lock()
	r.boots[node]++
	r.mu.Unlock()
}

// Side is the manager that runs on a node, or nil.
func (r *Rig) Side(node string) Side {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sides[node]
}

// Cut cuts the cable, or mends it.
func (r *Rig) Cut(isCut bool) {
	r.mu.Lock()
	r.isCut = isCut
	r.mu.Unlock()
}

type caller struct {
	r    *Rig
	node string
}

var errNoRoute = errors.New("no route to host")

func (c caller) Call(ctx context.Context, request []byte) ([]byte, error) {
	to := Other(c.node)
	c.r.mu.Lock()
	s, isCut := c.r.sides[to], c.r.isCut
	c.r.mu.Unlock()
	if isCut || s == nil || ctx.Err() != nil {
		return nil, errNoRoute
	}
	deliver := func(b []byte) ([]byte, error) { return s.Serve(ctx, b) }
	if c.r.Wire != nil {
		return c.r.Wire(c.node, to, request, deliver)
	}
	return deliver(request)
}

// handle is a node's manager, whichever process that is now.
type handle struct {
	r    *Rig
	node string
}

// Open starts the manager on a node, and returns it for package arbitertest.
func (r *Rig) Open(t testing.TB, node string) arbiter.Arbiter {
	t.Helper()
	r.Start(t, node)
	return handle{r, node}
}

func (h handle) side() (Side, error) {
	if s := h.r.Side(h.node); s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("%w: the host is off", arbiter.ErrUnreachable)
}

func (h handle) Acquire(ctx context.Context, c arbiter.Claim) (arbiter.Record, error) {
	s, err := h.side()
	if err != nil {
		return arbiter.Record{}, err
	}
	return s.Acquire(ctx, c)
}

func (h handle) Renew(ctx context.Context, node, session string) error {
	s, err := h.side()
	if err != nil {
		return err
	}
	return s.Renew(ctx, node, session)
}

func (h handle) Release(ctx context.Context, resource, node string, term uint64) error {
	s, err := h.side()
	if err != nil {
		return err
	}
	return s.Release(ctx, resource, node, term)
}

func (h handle) Resign(ctx context.Context, node, session string) error {
	s, err := h.side()
	if err != nil {
		return err
	}
	return s.Resign(ctx, node, session)
}

func (h handle) Observe(ctx context.Context, resources ...string) (arbiter.View, error) {
	s, err := h.side()
	if err != nil {
		return arbiter.View{}, err
	}
	return s.Observe(ctx, resources...)
}

func (h handle) Watch(ctx context.Context, changed func()) {
	if s, err := h.side(); err == nil {
		s.Watch(ctx, changed)
	}
}

func (h handle) TTL() time.Duration { return 60 * time.Millisecond }

func (h handle) Close() error {
	s, err := h.side()
	if err != nil {
		return err
	}
	return s.Close()
}

// Subject is what the suite needs; Means, Fence and Cut depend on the arbiter.
func (r *Rig) Subject(t testing.TB) arbitertest.Subject {
	t.Helper()
	t.Cleanup(func() {
		r.Stop("a")
		r.Stop("b")
	})
	restart := func(t *testing.T) {
		for _, node := range []string{"a", "b"} {
			r.Stop(node)
			r.Start(t, node)
		}
	}
	return arbitertest.Subject{
		Open:    func(t *testing.T, node string) arbiter.Arbiter { return r.Open(t, node) },
		Restart: restart,
		Backup: func(t *testing.T) func(*testing.T) {
			saved := map[string][]byte{}
			for _, node := range []string{"a", "b"} {
				data, err := os.ReadFile(r.File(node))
				if err != nil {
					t.Fatal(err)
				}
				saved[node] = data
			}
			return func(t *testing.T) {
				for node, data := range saved {
					r.Stop(node)
					if err := os.WriteFile(r.File(node), data, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				restart(t)
			}
		},
		Cut: func(*testing.T) func() {
			r.Cut(true)
			return func() { r.Cut(false) }
		},
	}
}
