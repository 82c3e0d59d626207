package engine

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/replication"
)

// Whatever an operator does to a pair whose term is shared, behind its manager's back:
// what the owner answers from then on is on the peer's disk, or the peer refuses to
// take over. So the owner's death loses nothing.
func TestOperatorBehindTheManager(t *testing.T) {
	reconfigure := func(n *node, change func(*Config)) error {
		cfg := n.cfg
		cfg.Volumes = append([]VolumeConfig(nil), cfg.Volumes...)
		change(&cfg)
		return n.Reconfigure(cfg)
	}
	for _, tt := range []struct {
		name string
		do   func(a, b *node) error
		back func(a, b *node) error // what takes it back, may be nil
	}{
		{"detach of the peer's disk", func(_, b *node) error { return b.Detach(t.Context(), 0, false) }, func(_, b *node) error { return b.Attach(0) }},
		{"forced detach of the peer's disk", func(_, b *node) error { return b.Detach(t.Context(), 0, true) }, func(_, b *node) error { return b.Attach(0) }},
		{"detach of the owner's disk", func(a, _ *node) error { return a.Detach(t.Context(), 0, false) }, func(a, _ *node) error { return a.Attach(0) }},
		{"invalidate of the peer", func(_, b *node) error { return b.Invalidate(0) }, nil},
		{"invalidate of the owner", func(a, _ *node) error { return a.Invalidate(0) }, nil},
		{"invalidate-remote", func(a, _ *node) error { return a.InvalidateRemote(0) }, nil},
		{"disconnect of the peer", func(_, b *node) error { return b.Disconnect(false) }, func(_, b *node) error { return b.Connect(ConnectOptions{}) }},
		{"forced disconnect of the owner", func(a, _ *node) error { return a.Disconnect(true) }, func(a, _ *node) error { return a.Connect(ConnectOptions{}) }},
		{"down of the peer", func(_, b *node) error { return b.Down() }, nil},
		{"outdate of the peer", func(_, b *node) error { return b.Outdate() }, nil},
		{"disconnect and outdate", func(_, b *node) error {
			if err := b.Disconnect(true); err != nil {
				return err
			}
			return b.Outdate()
		}, func(_, b *node) error { return b.Connect(ConnectOptions{}) }},
		{"verify", func(a, _ *node) error { return a.Verify(0, 0, 0) }, nil},
		{"suspend-io", func(a, _ *node) error { return a.SuspendIO() }, func(a, _ *node) error { return a.ResumeIO() }},
		{"new-current-uuid", func(a, _ *node) error { return a.NewCurrentUUID(0, false) }, nil},
		{"new-current-uuid of the peer", func(_, b *node) error { return b.NewCurrentUUID(0, false) }, nil},
		{"new-current-uuid --clear-bitmap", func(a, _ *node) error { return a.NewCurrentUUID(0, true) }, nil},
		{"primary --force of the peer", func(_, b *node) error { return b.Primary(true) }, nil},
		{"plain primary of the peer", func(_, b *node) error { return b.Primary(false) }, nil},
		{"secondary of the owner, in use", func(a, _ *node) error { return a.Secondary() }, nil},
		{"freeze and thaw", func(a, _ *node) error { return a.Freeze() }, func(a, _ *node) error { return a.Thaw() }},
		{"failsafe, then the peer disconnects", func(a, b *node) error {
			if err := a.Failsafe(true); err != nil {
				return err
			}
			return b.Disconnect(true)
		}, func(_, b *node) error { return b.Connect(ConnectOptions{}) }},
		{"failsafe, then the peer is killed", func(a, b *node) error {
			err := a.Failsafe(true)
			b.crash()
			b.up()
			return err
		}, func(a, _ *node) error { return a.Failsafe(false) }},
		{"failsafe, then the owner disconnects", func(a, _ *node) error {
			if err := a.Failsafe(true); err != nil {
				return err
			}
			return a.Disconnect(true)
		}, func(a, _ *node) error { return a.Connect(ConnectOptions{}) }},
		{"pause-sync, invalidate", func(_, b *node) error {
			if err := b.PauseSync(0); err != nil {
				return err
			}
			return b.Invalidate(0)
		}, func(_, b *node) error { return b.ResumeSync(0) }},
		{"protocol A of the owner", func(a, _ *node) error { return reconfigure(a, func(c *Config) { c.Net.Protocol = 'A' }) }, nil},
		{"fencing dont-care", func(a, b *node) error {
			return reconfigure(a, func(c *Config) { c.Volumes[0].Options.Fencing = replication.FencingDontCare })
		}, nil},
		{"connect --discard-my-data", func(a, b *node) error {
			if err := b.Disconnect(true); err != nil {
				return err
			}
			return b.Connect(ConnectOptions{DiscardMyData: true})
		}, nil},
	} {
		for _, back := range []bool{false, true} {
			if back && tt.back == nil {
				continue
			}
			name := tt.name
			if back {
				name += ", and back"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel() // most of it is waiting
				a, b := syncedPair(t, nil)
				if err := a.PrimaryWithTerm(5, false); err != nil {
					t.Fatal(err)
				}
				c := a.open()
				before, later := pattern(1, 4096), pattern(2, 4096)
				c.write(0, before)
				err := tt.do(a, b)
				if back {
					if berr := tt.back(a, b); berr != nil {
						t.Logf("back: %v", berr)
					}
				}
				w := c.submit(blockdev.OpWrite, 8192, later, len(later))
				answered := false
				for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end) && !answered; time.Sleep(5 * time.Millisecond) { // real disks and sockets
					answered = c.s.isDone(w) && w.Err == nil
				}
				t.Logf("command: %v; answered: %v; %s", err, answered, a.Status().Term.Frozen)
				a.crash()
				if err := errors.Join(b.PromiseTerm(6), b.PrimaryWithTerm(6, true)); err != nil {
					t.Logf("the peer refuses: %v", err)
					return
				}
				d := b.open()
				if got := d.read(0, 4096); !bytes.Equal(got, before) {
					t.Error("the peer took over, and lacks what was answered before")
				}
				if got := d.read(8192, 4096); answered && !bytes.Equal(got, later) {
					t.Error("the peer took over, and lacks what was answered since")
				}
			})
		}
	}
}
