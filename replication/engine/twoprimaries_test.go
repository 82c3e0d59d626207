package engine

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/protocol/drbd"
)

// bothPrimary is a synced pair with clients on both nodes.
func bothPrimary(t *testing.T, direct bool) (a, b *node, ca, cb *client) {
	t.Helper()
	a, b = syncedPair(t, func(c *Config) {
		c.Net.AllowTwoPrimaries = true
		c.Volumes[0].Direct = direct
	})
	if err := b.Primary(false); err != nil {
		t.Fatal(err)
	}
	return a, b, a.open(), b.open()
}

// scribble keeps depth writes, trims and zeroes of a small area under way.
func scribble(c *client, seed uint64, n, depth int) error {
	rng := rand.New(rand.NewPCG(seed, 1))
	slots := make(chan struct{}, depth)
	errs := make(chan error, n)
	for i := range n {
		slots <- struct{}{}
		off, size := int64(rng.IntN(128))*512, 512*(1+rng.IntN(32))
		op, data := blockdev.OpWrite, pattern(rng.Uint64(), size)
		switch rng.IntN(10) {
		case 0:
			op, data = blockdev.OpTrim, nil
		case 1:
			op, data = blockdev.OpZero, nil
		}
		r := c.submit(op, off, data, size)
		go func() {
			errs <- c.s.wait(r)
			<-slots
		}()
		if i%64 == 63 {
			if err := c.s.wait(c.submit(blockdev.OpFlush, 0, nil, 0)); err != nil {
				return err
			}
		}
	}
	for range n {
		if err := <-errs; err != nil {
			return err
		}
	}
	return nil
}

func (n *node) conflicts() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.core.Snapshot(n.now()).Volumes[0].Counters.Conflicts
}

// TestTwoPrimaries has clients of both nodes write the same blocks: every write
// is answered once, without an error, the connection holds, and in the end both
// copies are equal.
func TestTwoPrimaries(t *testing.T) {
	for _, direct := range []bool{false, true} {
		t.Run(fmt.Sprintf("direct=%v", direct), func(t *testing.T) {
			a, b, ca, cb := bothPrimary(t, direct)
			var both sync.WaitGroup
			for i, c := range []*client{ca, cb} {
				both.Go(func() {
					if err := scribble(c, uint64(i+1), 600, 16); err != nil {
						t.Errorf("%s: %v", c.n.cfg.Node, err)
					}
				})
			}
			both.Wait()
			for _, n := range []*node{a, b} {
				if s := n.Status(); s.Conn != drbd.Connected || s.LastError != "" {
					t.Fatalf("%s: %v %s", n.cfg.Node, s.Conn, s.LastError)
				}
			}
			t.Logf("conflicts: %d on alpha, %d on beta", a.conflicts(), b.conflicts())
			cb.release()
			if err := b.Secondary(); err != nil {
				t.Fatal(err)
			}
			ca.write(0, pattern(7, 8192))
			ca.finish(b)
		})
	}
}

// TestTwoPrimariesSplit: both go on alone, both see the split brain, and the
// one that is told to takes the other's data.
func TestTwoPrimariesSplit(t *testing.T) {
	a, b, ca, cb := bothPrimary(t, false)
	if err := a.Disconnect(true); err != nil {
		t.Fatal(err)
	}
	b.await("loss of the peer", func(s Status) bool { return s.Conn < drbd.Connected })
	ca.write(0, pattern(1, 4096))
	cb.write(4096, pattern(2, 4096))
	if err := a.Connect(ConnectOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*node{a, b} {
		n.await("split brain", func(s Status) bool { return s.Conn == drbd.StandAlone && strings.Contains(s.SplitBrain, "split brain") })
	}
	if err := a.Connect(ConnectOptions{}); err != nil {
		t.Fatal(err)
	}
	// Refused while it is connecting, and while it is Primary: neither must have
	// the connection that comes discard anything.
	if err := a.Connect(ConnectOptions{DiscardMyData: true}); err == nil {
		t.Fatal("connect --discard-my-data was not refused while connecting")
	}
	if err := b.Connect(ConnectOptions{DiscardMyData: true}); err == nil {
		t.Fatal("connect --discard-my-data was not refused on a Primary")
	}
	cb.release()
	if err := b.Secondary(); err != nil {
		t.Fatal(err)
	}
	if err := b.Connect(ConnectOptions{DiscardMyData: true}); err != nil {
		t.Fatal(err)
	}
	a.await("resync", inSync)
	b.await("resync", inSync)
	ca.finish(b)
}

func TestTwoPrimariesNeedProtocolC(t *testing.T) {
	a, _ := newPair(t, func(c *Config) { c.Net.AllowTwoPrimaries, c.Net.Protocol = true, 'B' })
	if _, err := New(a.cfg); err == nil || !strings.Contains(err.Error(), "needs protocol C") {
		t.Fatalf("a configuration with two Primaries and protocol B gives %v", err)
	}
}
