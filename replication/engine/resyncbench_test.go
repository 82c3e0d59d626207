package engine

import (
	"testing"
	"time"
)

// BenchmarkResync is a full resync of a volume over loopback, as fast as it
// goes: c-max-rate is the highest there is, nobody else uses the disks.
func BenchmarkResync(b *testing.B) {
	const size = 512 << 20
	x, y := newPair(b, nil)
	createDisk(b, x.cfg.Volumes[0].Disk, size)
	createDisk(b, y.cfg.Volumes[0].Disk, size)
	x.up()
	y.up()
	x.await("connection", isConnected)
	if err := x.Primary(true); err != nil {
		b.Fatal(err)
	}
	x.await("first sync", inSync)
	y.await("first sync", inSync)
	c := x.open()
	for off := int64(0); off < size-1<<20; off += 1 << 20 {
		c.write(off, pattern(uint64(off), 1<<20))
	}
	c.flush()
	c.release()
	b.SetBytes(size)
	b.ResetTimer()
	for range b.N {
		began := time.Now()
		if err := y.Invalidate(0); err != nil {
			b.Fatal(err)
		}
		y.await("resync", inSync)
		x.await("resync", inSync)
		b.Logf("%.0f MiB/s", size/float64(1<<20)/time.Since(began).Seconds())
	}
}
