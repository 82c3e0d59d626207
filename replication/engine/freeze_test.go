package engine

import (
	"bytes"
	"testing"
	"time"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// frozenPair is a pair with fencing resource-and-stonith whose Primary has
// just lost its peer: a write is under way and not answered.
func frozenPair(t *testing.T, handler string) (a, b *node, c *client, w *blockdev.Request) {
	t.Helper()
	a, b = syncedPair(t, func(cfg *Config) {
		cfg.Volumes[0].Options.Fencing = replication.FencingResourceAndStonith
		if handler != "" {
			cfg.Handlers = map[string]string{"fence-peer": handler}
		}
	})
	c = a.open()
	c.write(0, pattern(1, 4096))
	b.crash()
	a.await("loss of the peer", func(s Status) bool { return s.Conn < drbd.Connected })
	w = c.submit(blockdev.OpWrite, 8192, pattern(2, 4096), 4096)
	return a, b, c, w
}

func (s *sink) isDone(r *blockdev.Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done[r]
}

func TestFreezeEndsWhenThePeerReturns(t *testing.T) {
	a, b, c, w := frozenPair(t, "")
	time.Sleep(300 * time.Millisecond)
	if c.s.isDone(w) {
		t.Fatal("a write was answered although the peer is neither there nor fenced")
	}
	if s := a.Status(); len(s.Suspended) == 0 {
		t.Fatal("status does not say that I/O is frozen")
	}
	b.up()
	if err := c.s.wait(w); err != nil {
		t.Fatal(err)
	}
	a.await("both in sync", inSync)
	c.finish(b)
}

func TestFreezeEndsWhenThePeerIsFenced(t *testing.T) {
	for name, tt := range map[string]struct {
		handler string
		goesOn  bool
	}{
		"outdated": {"exit 4", true},
		"killed":   {"exit 7", true},
		"failed":   {"exit 1", false},
	} {
		t.Run(name, func(t *testing.T) {
			a, _, c, w := frozenPair(t, tt.handler)
			if !tt.goesOn {
				time.Sleep(500 * time.Millisecond)
				if c.s.isDone(w) {
					t.Fatal("a write was answered although fencing failed")
				}
				if err := a.ResumeIO(); err != nil { // the operator has looked
					t.Fatal(err)
				}
			}
			if err := c.s.wait(w); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(c.read(8192, 4096), pattern(2, 4096)) {
				t.Fatal("the frozen write is lost")
			}
			if s := a.Status(); s.Volumes[0].UUIDs.Bitmap == 0 {
				t.Fatal("no new data generation was begun although this node writes alone")
			}
		})
	}
}
