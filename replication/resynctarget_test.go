package replication

import (
	"math/rand/v2"
	"testing"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// BenchmarkAskResync is what one block of 4 KiB costs the target, of 1 % random
// dirty bits of a device of 1 TiB: found, asked for, answered (as equal), with
// half of max-buffers under way.
func BenchmarkAskResync(b *testing.B) {
	const sectors = 1 << 31
	r := New(Config{Name: "r0", Net: DefaultNetOptions()})
	o := DefaultDiskOptions()
	o.CMaxRateKiB = 1 << 31 // no limit
	r.AddVolume(0, o)
	v := r.vols[0]
	v.bitmap, v.size = meta.NewBitmap(sectors), sectors
	rng := rand.New(rand.NewPCG(1, 1))
	for bit := uint64(0); bit < v.bitmap.Bits(); bit += 1 + rng.Uint64N(199) {
		v.bitmap.Set(bit, bit)
	}
	v.st = drbd.State{Conn: drbd.SyncTarget, Disk: drbd.Inconsistent, Pdsk: drbd.UpToDate}
	r.conn, r.now = drbd.Connected, 1
	r.beginResync(v, false)
	v.rs.ready = true
	r.askResync(v)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%2048 == 0 {
			r.now++
		}
		r.actions, r.arena = r.actions[:0], r.arena[:0]
		if v.rs.asked.len() == 0 {
			b.Fatalf("nothing is under way, %d bits are left", v.bitmap.Weight())
		}
		a := *v.rs.asked.at(0)
		if err := r.gotResyncRefusal(v, drbd.CmdRSIsInSync, drbd.BlockAck{Sector: a.sector, Size: a.size}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(v.rs.asked.len()), "under-way")
}
