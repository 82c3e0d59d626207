package engine

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/protocol/drbd"
)

// TestResyncUnderWrites: application writes go on while blocks are resynced,
// on the same ranges; no resync block overwrites a newer one.
func TestResyncUnderWrites(t *testing.T) {
	a, b := syncedPair(t, func(c *Config) {
		c.Volumes[0].Options.CPlanAhead = 0 // a fixed rate, so that it lasts
		c.Volumes[0].Options.ResyncRateKiB = 8 << 10
	})
	c := a.open()
	if err := b.Disconnect(false); err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < 8<<20; off += 1 << 20 {
		c.write(off, pattern(uint64(off), 1<<20))
	}
	if err := b.Connect(ConnectOptions{}); err != nil {
		t.Fatal(err)
	}
	a.await("start of the resync", func(s Status) bool { return s.Volumes[0].Conn == drbd.SyncSource })
	rng := rand.New(rand.NewPCG(1, 2))
	written := 0
	for a.Status().Volumes[0].Conn == drbd.SyncSource {
		off := int64(rng.IntN(8<<20/4096)) * 4096
		c.write(off, pattern(rng.Uint64(), 4096*(1+rng.IntN(8))))
		written++
	}
	if written < 20 {
		t.Fatalf("only %d writes met the resync", written)
	}
	a.await("resync", inSync)
	b.await("resync", inSync)
	c.finish(b)
}

// TestResyncIsResumed: an interrupted resync goes on where it was.
func TestResyncIsResumed(t *testing.T) {
	a, b := syncedPair(t, func(c *Config) {
		c.Volumes[0].Options.CPlanAhead = 0
		c.Volumes[0].Options.ResyncRateKiB = 4 << 10
	})
	c := a.open()
	if err := b.Disconnect(false); err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < 8<<20; off += 1 << 20 {
		c.write(off, pattern(uint64(off), 1<<20))
	}
	if err := b.Connect(ConnectOptions{}); err != nil {
		t.Fatal(err)
	}
	a.await("half of the resync", func(s Status) bool {
		v := s.Volumes[0]
		return v.Conn == drbd.SyncSource && v.OutOfSyncBytes < 5<<20
	})
	if s := b.Status(); s.Volumes[0].Disk != drbd.Inconsistent {
		t.Fatalf("the target's disk is %v in the middle of a resync", s.Volumes[0].Disk)
	}
	b.crash()
	a.await("loss of the peer", func(s Status) bool { return s.Conn < drbd.Connected })
	if left := a.Status().Volumes[0].OutOfSyncBytes; left == 0 || left >= 6<<20 {
		t.Fatalf("%d bytes left after the interruption", left)
	}
	b.up()
	if err := b.Primary(false); err == nil {
		t.Fatal("a half synced copy was promoted without --force")
	}
	a.await("rest of the resync", inSync)
	b.await("rest of the resync", inSync)
	c.finish(b)
}

// TestDirectDisks runs the O_DIRECT class: writes in parallel, by workers.
func TestDirectDisks(t *testing.T) {
	a, b := syncedPair(t, func(c *Config) { c.Volumes[0].Direct = true })
	c := a.open()
	manyWrites(t, c, 400)
	c.flush()
	c.finish(b)
}

// manyWrites keeps 32 overlapping writes under way.
func manyWrites(t *testing.T, c *client, n int) {
	t.Helper()
	slots := make(chan struct{}, 32)
	errs := make(chan error, n)
	rng := rand.New(rand.NewPCG(3, 4))
	for range n {
		slots <- struct{}{}
		off, size := int64(rng.IntN(512))*4096, 512*(1+rng.IntN(64))
		r := c.submit(blockdev.OpWrite, off, pattern(rng.Uint64(), size), size)
		go func() {
			errs <- c.s.wait(r)
			<-slots
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
}

// TestTwoVolumes: both volumes of a resource share one connection and one
// ordered stream; a flush of one is not disturbed by the other.
func TestTwoVolumes(t *testing.T) {
	a, b := newPair(t, func(c *Config) {
		second := c.Volumes[0]
		second.Number, second.Minor = 1, 1
		second.Disk = filepath.Join(filepath.Dir(second.Disk), c.Node+"-1.img")
		c.Volumes = append(c.Volumes, second)
		createDisk(t, second.Disk, testSize)
	})
	for _, n := range []*node{a, b} {
		n.up()
		if err := n.Attach(1); err != nil {
			t.Fatal(err)
		}
	}
	both := func(s Status) bool {
		return s.Volumes[0].Conn == drbd.Connected && s.Volumes[1].Conn == drbd.Connected
	}
	a.await("connection", both)
	b.await("connection", both)
	if err := a.Primary(true); err != nil {
		t.Fatal(err)
	}
	synced := func(s Status) bool {
		for _, v := range s.Volumes {
			if v.Conn != drbd.Connected || v.Disk != drbd.UpToDate || v.PeerDisk != drbd.UpToDate {
				return false
			}
		}
		return true
	}
	a.await("both volumes", synced)
	b.await("both volumes", synced)
	c := a.open()
	release, err := a.Volume(1).Open("test")
	if err != nil {
		t.Fatal(err)
	}
	want := pattern(9, 64<<10)
	s := newSink()
	for i := range 50 {
		c.write(int64(i)*4096, want[:4096])
		r := &blockdev.Request{Op: blockdev.OpWrite, Offset: int64(i) * 8192, Length: 8192, Data: want[:8192], Sink: s}
		a.Volume(1).Submit([]*blockdev.Request{r})
		if err := s.wait(r); err != nil {
			t.Fatal(err)
		}
	}
	c.flush()
	release()
	c.finish(b)
	x, y := *a, *b
	x.cfg.Volumes, y.cfg.Volumes = a.cfg.Volumes[1:], b.cfg.Volumes[1:]
	assertEqualDisks(t, &x, &y)
	if !bytes.Equal(x.diskData()[:8192], want[:8192]) {
		t.Fatal("volume 1 lacks its writes")
	}
}

// TestSilentPeerTimesOut: a peer that takes requests and answers nothing is
// dropped after timeout x ko-count; the client only waits that long.
func TestSilentPeerTimesOut(t *testing.T) {
	a, b := syncedPair(t, func(c *Config) {
		c.Net.TimeoutMS, c.Net.KoCount, c.Net.PingIntMS, c.Net.PingTimeoutMS = 300, 2, 1000, 300
	})
	c := a.open()
	b.mu.Lock() // the peer's process hangs
	begun := time.Now()
	c.write(0, pattern(1, 4096))
	took := time.Since(begun)
	b.mu.Unlock()
	if took < 200*time.Millisecond || took > 5*time.Second {
		t.Fatalf("the write took %v", took)
	}
	a.await("resync", inSync)
}

// TestReboot: after a reboot a former Primary is Secondary.
func TestReboot(t *testing.T) {
	a, b := syncedPair(t, nil)
	c := a.open()
	c.write(0, pattern(1, 4096))
	a.crash()
	b.await("loss of the peer", func(s Status) bool { return s.Conn < drbd.Connected })
	a.cfg.BootID = "boot-2"
	a.up()
	a.await("resync", inSync)
	time.Sleep(100 * time.Millisecond)
	if s := a.Status(); s.Role != drbd.Secondary || s.WaitsToResume != "" {
		t.Fatalf("after a reboot the node is %v, %q", s.Role, s.WaitsToResume)
	}
}
