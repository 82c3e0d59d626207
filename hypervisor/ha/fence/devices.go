package fence

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// Devices are all fence devices that a node can use. It is safe for concurrent use.
type Devices struct {
	agents map[string][]*agent // node to its devices

	mu    sync.Mutex
	tests map[string]Test
}

// Test is what a self-test found.
type Test struct {
	Node  string
	At    time.Time // when it ended; zero: not yet tested
	Power Power
	Err   error // nil: the node could be switched off, as far as one can tell
}

// New looks for the agents, and runs none. A node with several devices (one for
// each of its power supplies) is off when all say so.
func New(devices []Device) (*Devices, error) {
	d := &Devices{agents: map[string][]*agent{}, tests: map[string]Test{}}
	for _, device := range devices {
		a, err := newAgent(device)
		if err != nil {
			return nil, err
		}
		d.agents[device.Node] = append(d.agents[device.Node], a)
	}
	return d, nil
}

// Nodes are those that can be switched off, sorted.
func (d *Devices) Nodes() []string { return slices.Sorted(maps.Keys(d.agents)) }

// each runs f for all devices of a node at once.
func (d *Devices) each(node string, f func(*agent) error) error {
	agents := d.agents[node]
	if len(agents) == 0 {
		return fmt.Errorf("fence: nothing is configured that could switch %s off: add a [[fence]] table", node)
	}
	errs := make([]error, len(agents))
	var all sync.WaitGroup
	for i, a := range agents {
		all.Go(func() { errs[i] = f(a) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// Validate compares the options of a node's devices with what the agents know.
func (d *Devices) Validate(ctx context.Context, node string) error {
	return d.each(node, func(a *agent) error {
		_, err := a.validate(ctx)
		return err
	})
}

// Status asks whether a node has power: Off if all its devices say so, On if one
// does, else Unknown with an error.
func (d *Devices) Status(ctx context.Context, node string) (Power, error) {
	var mu sync.Mutex
	seen := map[Power]int{}
	err := d.each(node, func(a *agent) error {
		p, err := a.status(ctx)
		mu.Lock()
		seen[p]++
		mu.Unlock()
		return err
	})
	switch {
	case seen[On] > 0:
		return On, err
	case err == nil && seen[Off] > 0:
		return Off, nil
	}
	return Unknown, err
}

// Off switches a node off. It returns nil only if all its devices confirm it.
func (d *Devices) Off(ctx context.Context, node string) error {
	return d.each(node, func(a *agent) error { return a.off(ctx) })
}

// On gives a node power again. Nothing is confirmed.
func (d *Devices) On(ctx context.Context, node string) error {
	return d.each(node, func(a *agent) error { return a.on(ctx) })
}

// Reboot is Off, confirmed, and then On. The error of Off says that the node may
// never have been off; that of On wraps ErrStaysOff.
func (d *Devices) Reboot(ctx context.Context, node string) error {
	if err := d.Off(ctx, node); err != nil {
		return err
	}
	if err := d.On(ctx, node); err != nil {
		return fmt.Errorf("%w: %w", ErrStaysOff, err)
	}
	return nil
}

// ErrStaysOff says that a node was confirmed to be off and could not be switched
// on again.
var ErrStaysOff = errors.New("the node is off and stays so")

// Test looks whether a node could be switched off: the options are right, the
// device answers, and knows the host. The result is kept for Tests.
func (d *Devices) Test(ctx context.Context, node string) Test {
	t := Test{Node: node}
	t.Err = d.each(node, func(a *agent) error { return a.test(ctx) })
	if t.Err == nil {
		t.Power, t.Err = d.Status(ctx, node)
	}
	t.At = time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tests[node] = t
	return t
}

// SelfTest tests all nodes now and after each interval, one after the other, until
// ctx is done.
func (d *Devices) SelfTest(ctx context.Context, interval time.Duration) {
	for {
		for _, node := range d.Nodes() {
			if ctx.Err() != nil {
				return
			}
			d.Test(ctx, node)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(interval):
		}
	}
}

// Tests returns the last test of each node, sorted by node.
func (d *Devices) Tests() []Test {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []Test
	for _, node := range d.Nodes() {
		t := d.tests[node]
		t.Node = node
		all = append(all, t)
	}
	return all
}
