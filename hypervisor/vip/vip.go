package vip

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Our own tuning. RFC 5227 probes for up to seven seconds, which is for hosts
// that boot at the same time; here the other side had the address for long and
// answers within a round trip, and the service is down meanwhile.
const (
	probes     = 3
	probeEvery = 100 * time.Millisecond
)

// announceAfter is when the neighbours are told after an address was added: at
// once, and again for those who missed it (a switch port that is just coming
// up); afterwards every announceEvery.
var announceAfter = []time.Duration{0, 200 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second}

const announceEvery = time.Minute

// Address is one floating address.
type Address struct {
	Prefix    netip.Prefix // the address and the length of its network's prefix
	Interface string       // "" = the one with an address in the same network
}

func (a Address) String() string {
	if a.Interface == "" {
		return a.Prefix.String()
	}
	return a.Prefix.String() + " on " + a.Interface
}

// An InUseError says that another machine answers for an address. Nothing was
// added.
type InUseError struct {
	Addr      netip.Addr
	MAC       net.HardwareAddr // who answers
	Interface string           // where the answer came from
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("address %s: already in use on the network: %s answers for it on %s; "+
		"find out which machine that is and take the address from it, or name another one", e.Addr, e.MAC, e.Interface)
}

// Config says where a Manager keeps its notes.
type Config struct {
	// Dir holds one small file for each address; created with mode 0700. It has
	// to be cleared by a reboot, as addresses are: below /run.
	Dir string
	// Log, if not nil, gets what goes wrong in the background, from any goroutine.
	Log func(text string)
}

// Validate says what is wrong with c.
func (c Config) Validate() error {
	if !filepath.IsAbs(c.Dir) {
		return fmt.Errorf("directory %q: want an absolute path", c.Dir)
	}
	return nil
}

// Manager adds and removes addresses of this machine. Safe for concurrent use;
// one at a time per directory.
type Manager struct {
	cfg Config

	mu        sync.Mutex
	busy      map[netip.Addr]chan struct{} // being added or removed; closed at the end
	announced map[netip.Addr]context.CancelFunc
	closed    bool
	wg        sync.WaitGroup
}

// New returns a Manager. What an earlier one has added stays, and is announced
// again by Add only.
func New(cfg Config) (*Manager, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("vip: %w", err)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("vip: %w", err)
	}
	return &Manager{cfg: cfg, busy: map[netip.Addr]chan struct{}{}, announced: map[netip.Addr]context.CancelFunc{}}, nil
}

// Add gives this machine the address: it asks the network, for a good 300 ms,
// and returns an *InUseError if somebody has it; else it adds it and tells the
// neighbours, now and from time to time until Remove or Close. An address that
// a Manager with the same directory has added is announced again, without a
// question. One that somebody else has added to this machine is an error.
func (m *Manager) Add(ctx context.Context, a Address) error { return m.add(ctx, a, true) }

// Free only asks: it returns an *InUseError if another machine answers for the
// address, an error if somebody else has added it to this one, and nil if Add
// would succeed, or has.
func (m *Manager) Free(ctx context.Context, a Address) error {
	addr := a.Prefix.Addr()
	done, err := m.lock(ctx, addr)
	if err != nil {
		return fmt.Errorf("address %s: %w", addr, err)
	}
	defer done()
	i, on, err := m.place(a)
	if err != nil || len(on) > 0 {
		return err
	}
	return i.mustBeFree(ctx, addr)
}

// TakeOver is Add without the question: for an address whose last owner is known
// to be cut off or deposed but may still answer. The announcements win over it
// in the neighbours' caches.
func (m *Manager) TakeOver(ctx context.Context, a Address) error { return m.add(ctx, a, false) }

func (m *Manager) add(ctx context.Context, a Address, ask bool) error {
	addr := a.Prefix.Addr()
	done, err := m.lock(ctx, addr)
	if err != nil {
		return fmt.Errorf("address %s: %w", addr, err)
	}
	defer done()
	i, on, err := m.place(a)
	if err != nil {
		return err
	}
	switch {
	case slices.ContainsFunc(on, func(h iface) bool { return h.Name != i.Name }):
		// The description has changed since; the old place must not answer.
		if err := m.drop(addr); err != nil {
			return err
		}
	case len(on) > 0:
		return m.announce(i, addr)
	}
	if ask {
		if err := i.mustBeFree(ctx, addr); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("address %s: %w", addr, err)
	}
	if err := m.note(note{Prefix: a.Prefix, Interface: i.Name}); err != nil {
		return fmt.Errorf("address %s: %w", addr, err)
	}
	if err := i.addAddress(a.Prefix); err != nil {
		return errors.Join(fmt.Errorf("address %s: add it to %s: %w", addr, i.Name, err), m.forget(addr))
	}
	return m.announce(i, addr)
}

// place returns the interface for a, and those that have it from us already.
func (m *Manager) place(a Address) (i iface, on []iface, err error) {
	addr := a.Prefix.Addr()
	if !addr.IsValid() || addr.Zone() != "" || addr.Is4In6() {
		return i, nil, fmt.Errorf("address %s: want an IP address with the length of its prefix", a.Prefix)
	}
	if on, err = holders(addr); err != nil {
		return i, nil, fmt.Errorf("address %s: %w", addr, err)
	}
	if len(on) > 0 && m.read(addr) == nil {
		return i, nil, fmt.Errorf("address %s: %s has it already, and it was not added by Pollux; remove it there (ip address del), or name another address", addr, on[0].Name)
	}
	if i, err = chooseInterface(a); err != nil {
		return i, nil, fmt.Errorf("address %s: %w", addr, err)
	}
	return i, on, nil
}

func (i iface) mustBeFree(ctx context.Context, addr netip.Addr) error {
	mac, err := i.whoHas(ctx, addr)
	if err != nil {
		return fmt.Errorf("address %s: ask the network who has it: %w", addr, err)
	}
	if mac != nil {
		return &InUseError{Addr: addr, MAC: mac, Interface: i.Name}
	}
	return nil
}

// Remove takes the address from this machine. One that is not there, or was not
// added by a Manager with this directory, is no error: it stays as it is.
func (m *Manager) Remove(ctx context.Context, addr netip.Addr) error {
	done, err := m.lock(ctx, addr)
	if err != nil {
		return fmt.Errorf("address %s: %w", addr, err)
	}
	defer done()
	return m.drop(addr)
}

// drop does what Remove does, under the address's lock.
func (m *Manager) drop(addr netip.Addr) error {
	m.mu.Lock()
	if stop := m.announced[addr]; stop != nil {
		stop()
		delete(m.announced, addr)
	}
	m.mu.Unlock()
	if m.read(addr) == nil {
		return nil
	}
	on, err := holders(addr)
	if err != nil {
		return fmt.Errorf("address %s: %w", addr, err)
	}
	for _, i := range on {
		if err := i.delAddress(addr); err != nil {
			return fmt.Errorf("address %s: remove it from %s: %w", addr, i.Name, err)
		}
	}
	if err := m.forget(addr); err != nil {
		return fmt.Errorf("address %s: %w", addr, err)
	}
	return nil
}

// Held returns the addresses that this machine has from a Manager with this
// directory, sorted. Notes of addresses that are not there any more are removed.
func (m *Manager) Held(ctx context.Context) ([]Address, error) {
	notes, err := m.notes()
	if err != nil {
		return nil, fmt.Errorf("look for floating addresses: %w", err)
	}
	var held []Address
	for _, n := range notes {
		addr := n.Prefix.Addr()
		done, err := m.lock(ctx, addr)
		if err != nil {
			return nil, fmt.Errorf("address %s: %w", addr, err)
		}
		on, err := holders(addr)
		if err == nil && len(on) == 0 {
			err = m.forget(addr)
		} else if err == nil {
			held = append(held, Address{Prefix: n.Prefix, Interface: on[0].Name})
		}
		done()
		if err != nil {
			return nil, fmt.Errorf("address %s: %w", addr, err)
		}
	}
	slices.SortFunc(held, func(a, b Address) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Interface, b.Interface))
	})
	return held, nil
}

// Close ends the announcements. The addresses stay.
func (m *Manager) Close() {
	m.mu.Lock()
	m.closed = true
	for _, stop := range m.announced {
		stop()
	}
	m.mu.Unlock()
	m.wg.Wait()
}

// lock makes the caller the only one to touch the address.
func (m *Manager) lock(ctx context.Context, addr netip.Addr) (unlock func(), err error) {
	for {
		m.mu.Lock()
		other := m.busy[addr]
		if other == nil {
			mine := make(chan struct{})
			m.busy[addr] = mine
			m.mu.Unlock()
			return func() {
				m.mu.Lock()
				delete(m.busy, addr)
				m.mu.Unlock()
				close(mine)
			}, nil
		}
		m.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// announce tells the neighbours now, which counts, and goes on in the
// background, where a failure is only logged.
func (m *Manager) announce(i iface, addr netip.Addr) error {
	if err := i.announce(addr); err != nil {
		return fmt.Errorf("address %s: it was added, but the neighbours could not be told on %s: %w", addr, i.Name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	if stop := m.announced[addr]; stop != nil {
		stop()
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.announced[addr] = cancel
	m.wg.Go(func() { m.repeat(ctx, i, addr) })
	return nil
}

func (m *Manager) repeat(ctx context.Context, i iface, addr netip.Addr) {
	for n := 1; ; n++ {
		wait := announceEvery
		if n < len(announceAfter) {
			wait = announceAfter[n] - announceAfter[n-1]
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		if err := i.announce(addr); err != nil && m.cfg.Log != nil {
			m.cfg.Log(fmt.Sprintf("address %s: tell the neighbours again on %s: %v", addr, i.Name, err))
		}
	}
}
