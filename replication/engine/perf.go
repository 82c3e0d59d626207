package engine

import (
	"fmt"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/internal/perf"
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// passed notes the time of one point of a request that is measured.
func (e *Engine) passed(b *batch, a *replication.Action) {
	t := a.Tag.(*blockdev.Request).Trace
	switch a.Point {
	case replication.PointWaits:
		t.Set(perf.Waits, b.at)
	case replication.PointStarted:
		t.Set(perf.Started, b.at)
	case replication.PointSent:
		if l := e.link; l != nil {
			l.data.time(timed{sending: t.Sending()})
		}
	case replication.PointLocal:
		t.Set(perf.LocalBegun, b.begun)
		t.Set(perf.LocalDone, b.at)
	case replication.PointAnswered:
		t.Set(perf.Acked, b.at)
		if b.readAt == 0 { // it was no packet that settled it
			t.Set(perf.AckRead, b.at)
		} else {
			t.Set(perf.AckRead, b.readAt)
		}
	default:
		panic(fmt.Sprintf("engine: no case for point %d", a.Point))
	}
}

// timed is a packet of which is measured when it is in the socket: one of a
// client's request, or the acknowledgement of a peer's write.
type timed struct {
	pos                        uint64 // its end in the stream
	sending                    perf.Sending
	vol                        *perf.Volume // of a peer's write; else nil
	read, ordered, begun, done int64
}

// maxTimed bounds how many are waited for while the socket takes nothing.
const maxTimed = 256

// time has the packet filed last measured.
func (o *out) time(t timed) {
	o.mu.Lock()
	if len(o.timed) < maxTimed {
		t.pos = o.sent + uint64(o.backlog)
		o.timed = append(o.timed, t)
	}
	o.mu.Unlock()
}

// timeSent notes which packets have left; the caller holds the lock.
func (o *out) timeSent() {
	now, n := perf.Now(), 0
	for n < len(o.timed) && o.timed[n].pos <= o.sent {
		if t := &o.timed[n]; t.vol != nil {
			t.vol.PeerWritten(t.read, t.ordered, t.begun, t.done, now)
		} else {
			t.sending.Sent(now)
		}
		n++
	}
	o.timed = o.timed[:copy(o.timed, o.timed[n:])]
}

// timePeerWrite notes a write of the peer that was stepped now, and was answered
// by that or not.
func (e *Engine) timePeerWrite(b *batch, op *localIO, isAnswered bool) {
	if l := e.link; l != nil && isAnswered {
		l.meta.time(timed{vol: op.vol.perf, read: op.stamp, ordered: op.ordered, begun: op.begun, done: b.at})
		return
	}
	op.vol.perf.PeerWritten(op.stamp, op.ordered, op.begun, b.at, 0)
}

// initPerf has the peer's writes measured.
func (l *link) initPerf() {
	for _, v := range l.e.vols {
		if v.perf != nil {
			l.samplers = append(l.samplers, v.perf.NewSampler())
		}
	}
}

// timeBatch notes when the packets were read that are stepped together.
func (l *link) timeBatch(sock drbd.Socket) {
	if l.samplers == nil {
		return
	}
	now := perf.Now()
	l.readAt[sock] = now
	if sock == drbd.DataSocket {
		for i := range l.samplers {
			l.samplers[i].Batch(now)
		}
	}
}

// timePacket picks the writes that are measured.
func (l *link) timePacket(p *packet) {
	p.stamp = 0
	if l.samplers == nil || p.header.Command != drbd.CmdData {
		return
	}
	for i, v := range l.e.vols {
		if v.cfg.Number == int(p.header.Volume) && l.samplers[i].Pick(perf.PeerWrite) {
			p.stamp = perf.Now()
		}
	}
}
