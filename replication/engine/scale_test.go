package engine

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// largest is as near to 16 TiB as a file on ext4 gets.
const largest = 16<<40 - 1<<20

// syncedDisk makes a sparse disk whose metadata say that it is UpToDate, a
// Secondary's, with the bits set in its bitmap that each returns.
func syncedDisk(t testing.TB, path string, size int64, page func(p int, words []uint64) bool) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		// ext4 has files of 16 TiB, tmpfs has not: the claim is about memory, not about files.
		t.Skipf("no file of %d bytes here: %v", size, err)
	}
	dev, err := blockdev.Open(path, blockdev.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	l, err := meta.NewLayout(meta.Internal, 0, size, size, 1, 8)
	if err != nil {
		t.Fatal(err)
	}
	sb := meta.NewSuperblock(l)
	sb.UUIDs = meta.UUIDs{Current: 0x1111111111111110, History: [2]uint64{0x2222222222222220}}
	sb.Flags = meta.MDFConsistent | meta.MDFWasUpToDate | meta.MDFALClean
	sb.LASize = l.Usable
	if page != nil {
		sb.UUIDs.Bitmap = 0x3333333333333330
		sb.UUIDs.Current = 0x4444444444444440
		words := make([]uint64, meta.BlockSize/8)
		block := make([]byte, meta.BlockSize)
		for p := range int(meta.BitmapBytes(l.Usable) / meta.BlockSize) {
			if !page(p, words) {
				continue
			}
			for i, w := range words {
				binary.LittleEndian.PutUint64(block[8*i:], w)
			}
			if _, err := dev.WriteAt(block, l.Bitmap+int64(p)*meta.BlockSize); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := meta.InitRing(dev, l); err != nil {
		t.Fatal(err)
	}
	if err := meta.WriteSuperblock(dev, l, sb); err != nil {
		t.Fatal(err)
	}
}

// heapInUse is what the process holds, after a collection.
func heapInUse() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

// TestMemory16TiB: two nodes with 16 TiB each in this process, whose bitmaps
// would be 512 MiB each bit by bit.
func TestMemory16TiB(t *testing.T) {
	before := heapInUse()
	a, b := newPair(t, nil)
	for _, n := range []*node{a, b} {
		syncedDisk(t, n.cfg.Volumes[0].Disk, largest, nil)
		n.up()
	}
	a.await("both UpToDate", inSync)
	if got, want := heapInUse()-before, uint64(64<<20); got > want {
		t.Errorf("two nodes of 16 TiB hold %d MiB, want at most %d", got>>20, want>>20)
	}
	if err := b.Disconnect(false); err != nil {
		t.Fatal(err)
	}
	if err := b.Invalidate(0); err != nil {
		t.Fatal(err)
	}
	if got := b.Status().Volumes[0]; got.OutOfSyncBytes != uint64(a.Volume(0).Size()) {
		t.Errorf("after invalidate %d bytes are out of sync, want all of %d", got.OutOfSyncBytes, a.Volume(0).Size())
	}
	if got, want := heapInUse()-before, uint64(96<<20); got > want {
		t.Errorf("with all of 16 TiB out of sync two nodes hold %d MiB, want at most %d", got>>20, want>>20)
	}
}

// BenchmarkHandshake16TiB is from connect to Connected with clean bitmaps.
func BenchmarkHandshake16TiB(bm *testing.B) {
	a, b := newPair(bm, nil)
	for _, n := range []*node{a, b} {
		syncedDisk(bm, n.cfg.Volumes[0].Disk, largest, nil)
		n.up()
	}
	a.await("both UpToDate", inSync)
	for bm.Loop() {
		bm.StopTimer()
		if err := a.Disconnect(false); err != nil {
			bm.Fatal(err)
		}
		b.await("the disconnect", func(s Status) bool { return s.Conn < drbd.Connected })
		bm.StartTimer()
		if err := a.Connect(ConnectOptions{}); err != nil {
			bm.Fatal(err)
		}
		a.await("both UpToDate", inSync)
	}
	bm.ReportMetric(float64(heapInUse()>>20), "MiB")
}

// BenchmarkResyncStart1TiB is from connect to the first resync request: the
// exchange of a bitmap of 1 TiB with 1 % of its bits set at random.
func BenchmarkResyncStart1TiB(bm *testing.B) {
	a, b := newPair(bm, func(c *Config) { c.Volumes[0].Options.CPlanAhead, c.Volumes[0].Options.ResyncRateKiB = 0, 250 })
	rng := rand.New(rand.NewPCG(1, 1))
	syncedDisk(bm, a.cfg.Volumes[0].Disk, 1<<40, func(_ int, words []uint64) bool {
		for i := range words {
			words[i] = 0
			for bit := range 64 {
				if rng.IntN(100) == 0 {
					words[i] |= 1 << bit
				}
			}
		}
		return true
	})
	syncedDisk(bm, b.cfg.Volumes[0].Disk, 1<<40, nil)
	// b's current UUID is a's bitmap UUID: a has written since it saw b.
	editSuperblock(bm, b.cfg.Volumes[0].Disk, func(sb *meta.Superblock, _ meta.Layout) { sb.UUIDs.Current = 0x3333333333333330 })
	a.up()
	b.up()
	syncing := func(s Status) bool { return s.Volumes[0].Resync != nil && s.Volumes[0].Counters.ReceivedBytes > 0 }
	b.await("the resync", syncing)
	for bm.Loop() {
		bm.StopTimer()
		if err := b.Disconnect(true); err != nil {
			bm.Fatal(err)
		}
		a.await("the disconnect", func(s Status) bool { return s.Conn < drbd.Connected })
		had := b.Status().Volumes[0].Counters.ReceivedBytes
		bm.StartTimer()
		if err := b.Connect(ConnectOptions{}); err != nil {
			bm.Fatal(err)
		}
		b.await("the resync", func(s Status) bool { return s.Volumes[0].Counters.ReceivedBytes > had })
	}
}
