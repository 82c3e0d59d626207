package replication_test

import (
	"testing"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// pair is two connected resources without any I/O around them: the shortest
// way of an action of one to the event of the other.
type pair struct {
	tb   testing.TB
	res  [2]*replication.Resource
	ev   replication.Event
	now  replication.Tick
	done int
	data []byte
	wire [2][2]queue // to node, socket
	sent [2]uint64
}

// queue is packets as they are filed: header, fixed part, payload.
type queue struct {
	buf []byte
	len []int
}

func newPair(tb testing.TB, protocol byte, pollux uint32) *pair {
	p := &pair{tb: tb, now: 1, data: make([]byte, 4096)}
	for i := range p.res {
		net := replication.DefaultNetOptions()
		net.Protocol = protocol
		p.res[i] = replication.New(replication.Config{Name: "r0", Net: net, Seed: uint64(i + 1)})
		opts := replication.DefaultDiskOptions()
		p.res[i].AddVolume(0, opts)
		const sectors = 1 << 16
		layout, err := meta.NewLayout(meta.FlexExternal, 0, sectors*512, 1<<20, 1, 8)
		if err != nil {
			tb.Fatal(err)
		}
		sb := meta.NewSuperblock(layout)
		sb.LASize = layout.Usable
		sb.UUIDs = meta.UUIDs{Current: 0x1234567890}
		sb.Flags |= meta.MDFConsistent | meta.MDFWasUpToDate
		p.step(i, replication.Event{Kind: replication.Attached, Disk: &replication.AttachedDisk{
			Superblock: sb, Bitmap: meta.NewBitmap(layout.Usable), AL: meta.NewActivityLog(opts.ALExtents, 1, 8),
			Usable: layout.Usable, BlockSize: 512, Options: opts,
		}})
		p.step(i, replication.Event{Kind: replication.Commanded, Command: replication.Command{Kind: replication.CmdConnect}})
	}
	for i := range p.res {
		p.step(i, replication.Event{Kind: replication.SocketsUp, Link: replication.Link{
			Version: 101, ResolveConflicts: i == 1, Features: drbd.FeatureTrim | drbd.FeatureWSame | drbd.FeatureWZeroes | pollux,
		}})
	}
	p.deliver()
	p.step(0, replication.Event{Kind: replication.Commanded, Command: replication.Command{Kind: replication.CmdPrimary}})
	p.deliver()
	if p.res[0].Role() != drbd.Primary {
		tb.Fatal("not promoted")
	}
	return p
}

func (p *pair) step(i int, ev replication.Event) {
	ev.At = p.now
	p.ev = ev
	p.do(i, p.res[i].Step(&p.ev))
}

// do executes what needs no time at once, by the events that answer it.
func (p *pair) do(i int, acts []replication.Action) {
	var later [64]replication.Action // Step's slice is reused by the nested ones
	n := 0
	for k := range acts {
		a := &acts[k]
		switch a.Kind {
		case replication.Send:
			q := &p.wire[1-i][a.Socket]
			q.buf = append(append(q.buf, a.Bytes...), a.Data...)
			q.len = append(q.len, len(a.Bytes)+len(a.Data))
			if a.Socket == drbd.DataSocket {
				p.sent[i] += uint64(len(a.Bytes) + len(a.Data))
			}
		case replication.Complete:
			if a.Err != nil {
				p.tb.Fatal(a.Err)
			}
			p.done++
		case replication.DoLocal, replication.DoPeerLocal, replication.WriteMeta, replication.SyncData:
			later[n] = *a
			n++
		default: // what a write doesn't cause
		}
	}
	for _, a := range later[:n] {
		ev := replication.Event{Volume: a.Volume, ID: a.ID, Peer: a.Peer}
		switch a.Kind {
		case replication.DoLocal:
			ev.Kind = replication.LocalDone
		case replication.DoPeerLocal:
			ev.Kind = replication.PeerLocalDone
			if a.Op == replication.OpRead {
				ev.Data = p.data[:a.Size]
			}
		case replication.WriteMeta:
			ev.Kind = replication.MetaDone
		default:
			ev.Kind = replication.Synced
		}
		p.step(i, ev)
	}
}

// deliver carries packets until none is left.
func (p *pair) deliver() {
	for busy := true; busy; {
		busy = false
		for to := range p.wire {
			for sock := range p.wire[to] {
				q := &p.wire[to][sock]
				if len(q.len) == 0 {
					continue
				}
				busy = true
				buf, lens := q.buf, q.len
				for _, n := range lens {
					p.packet(to, drbd.Socket(sock), buf[:n])
					buf = buf[n:]
				}
				q.buf, q.len = q.buf[:0], q.len[:0]
				if drbd.Socket(sock) == drbd.DataSocket {
					p.step(1-to, replication.Event{Kind: replication.DataSent, Pos: p.sent[1-to]})
				}
			}
		}
	}
}

func (p *pair) packet(to int, sock drbd.Socket, b []byte) {
	h, err := drbd.DecodeHeader100(b)
	if err != nil {
		p.tb.Fatal(err)
	}
	ev := replication.Event{Kind: replication.Received, Socket: sock, Header: h, Fixed: b[16:]}
	if h.Command == drbd.CmdData || h.Command == drbd.CmdDataReply {
		ev.Fixed, ev.Data = ev.Fixed[:24], p.data
	}
	p.step(to, ev)
}

// write is one write from the client's request to its answer, and the
// acknowledgement of its epoch.
func (p *pair) write(sector drbd.Sector) {
	p.step(0, replication.Event{Kind: replication.Submitted, Op: replication.OpWrite, Sector: sector, Size: 4096, Data: p.data})
	p.deliver()
}

// epochs lets time pass until all epochs are acknowledged.
func (p *pair) epochs() {
	for range 3 {
		p.now += 1100
		for i := range p.res {
			p.step(i, replication.Event{Kind: replication.TimerFired})
		}
		p.deliver()
	}
}

// bound has both nodes lose so many bytes at most.
func (p *pair) bound(bytes uint64) {
	for i := range p.res {
		net := replication.DefaultNetOptions()
		net.Protocol, net.MaxLossBytes, net.MaxLossMS = p.res[0].Snapshot(p.now).Protocol, bytes, 60_000
		p.step(i, replication.Event{Kind: replication.Commanded, Command: replication.Command{
			Kind: replication.CmdSetOptions, Net: net, Disk: replication.DefaultDiskOptions(),
		}})
	}
	p.deliver()
}

// TestWriteAllocs: in the steady state a write costs no allocation on either
// node, from the request to the acknowledgement of its epoch, and with a kernel
// peer to the proof of its flush.
func TestWriteAllocs(t *testing.T) {
	for _, pollux := range []uint32{drbd.FeaturePollux, 0} {
		for _, protocol := range []byte("ABCab") { // small: with a bound for what may be lost
			p := newPair(t, protocol&^0x20, pollux)
			if protocol >= 'a' {
				p.bound(16 << 10)
			}
			round := func() {
				for i := range 64 {
					p.write(drbd.Sector(i * 8))
				}
				p.epochs()
			}
			for range 8 {
				round()
			}
			p.done = 0
			if n := testing.AllocsPerRun(20, round); n != 0 {
				t.Errorf("protocol %c, features %#x: %v allocations in 64 writes", protocol, pollux, n)
			}
			if p.done != 21*64 {
				t.Errorf("protocol %c, features %#x: %d writes were answered, want %d", protocol, pollux, p.done, 21*64)
			}
			if room := p.res[0].Room(); room != 32768 {
				t.Errorf("protocol %c, features %#x: room for %d requests is left, want all 32768", protocol, pollux, room)
			}
		}
	}
}

// BenchmarkWrite is one protocol C write through both cores; ns/step is one
// Step on the hot path.
func BenchmarkWrite(b *testing.B) {
	p := newPair(b, 'C', drbd.FeaturePollux)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		p.write(drbd.Sector(n % 4096 * 8))
		if n++; n%1024 == 0 {
			p.epochs()
		}
	}
	// Submitted, LocalDone, P_DATA, PeerLocalDone, P_WRITE_ACK, P_BARRIER, P_BARRIER_ACK.
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/7, "ns/step")
}
