package engine

import (
	"os"
	"syscall"
	"testing"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// TestChecksumResync: a full resync of copies that differ in one block sends
// little else.
func TestChecksumResync(t *testing.T) {
	for _, alg := range []string{"crc32c", "sha256"} {
		t.Run(alg, func(t *testing.T) {
			a, b := syncedPair(t, func(c *Config) { c.Net.CsumsAlg = alg })
			c := a.open()
			for off := int64(0); off < testSize-2<<20; off += 1 << 20 {
				c.write(off, pattern(uint64(off), 1<<20))
			}
			c.flush()
			if err := b.Disconnect(false); err != nil {
				t.Fatal(err)
			}
			c.write(5<<20, pattern(7, 4096))
			if err := b.Invalidate(0); err != nil {
				t.Fatal(err)
			}
			before := a.Status().Volumes[0].Counters.SentBytes
			if err := b.Connect(ConnectOptions{}); err != nil {
				t.Fatal(err)
			}
			a.await("resync", inSync)
			b.await("resync", inSync)
			if sent := a.Status().Volumes[0].Counters.SentBytes - before; sent == 0 || sent > 1<<20 {
				t.Errorf("%d bytes were sent for one block that differs", sent)
			}
			c.finish(b)
		})
	}
}

// TestThinResync: what is all zeroes on the source takes no room on the target
// afterwards, and is not sent.
func TestThinResync(t *testing.T) {
	a, b := syncedPair(t, func(c *Config) { c.Volumes[0].Options.RSDiscardGranularity = 64 << 10 })
	c := a.open()
	for off := int64(0); off < testSize-2<<20; off += 1 << 20 {
		c.write(off, pattern(uint64(off), 1<<20))
	}
	c.flush()
	if err := b.Disconnect(false); err != nil {
		t.Fatal(err)
	}
	const zeroes = 4 << 20
	for off := int64(0); off < zeroes; off += 1 << 20 {
		c.write(1<<20+off, make([]byte, 1<<20))
	}
	c.write(8<<20, pattern(9, 64<<10))
	full := allocated(t, b.cfg.Volumes[0].Disk)
	before := a.Status().Volumes[0].Counters.SentBytes
	if err := b.Connect(ConnectOptions{}); err != nil {
		t.Fatal(err)
	}
	a.await("resync", inSync)
	b.await("resync", inSync)
	if s := a.Status(); !s.PeerIsPollux || s.Volumes[0].Conn != drbd.Connected {
		t.Fatalf("%+v", s)
	}
	if sent := a.Status().Volumes[0].Counters.SentBytes - before; sent > 1<<20 {
		t.Errorf("%d bytes were sent for 64 KiB of data and %d of zeroes", sent, zeroes)
	}
	if left := allocated(t, b.cfg.Volumes[0].Disk); full-left < zeroes/2 {
		t.Errorf("the target's file takes %d bytes, %d before: nothing was freed", left, full)
	}
	c.finish(b)
}

// allocated is what a file takes of its file system, in bytes.
func allocated(t *testing.T, path string) int64 {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Sys().(*syscall.Stat_t).Blocks * 512
}
