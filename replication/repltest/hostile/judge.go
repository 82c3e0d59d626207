package hostile

import (
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// initialBlock is a block of the activity log before its first transaction.
var initialBlock = func() []byte {
	m, l := newMetadata(2048, false)
	return m.b[l.RingBlock(0):][:meta.BlockSize]
}()

// complete is the answer to a client: its write is on the local disk, if there
// was one all the time, and what a flush covers is durable.
func (n *node) complete(a *replication.Action) {
	q := a.Tag.(*request)
	if q.done {
		n.w.fail("%s: a request is answered twice", n.name)
		return
	}
	q.done, q.err = true, a.Err
	n.open--
	if q.op == replication.OpWrite {
		delete(n.writes, &q.data[0])
	}
	if a.Err != nil || n.w.cfg.net.AllowTwoPrimaries || n.w.cfg.faulty {
		return // of two writes that conflict one may be left out; a disk that fails keeps nothing
	}
	st := n.res.VolumeState(q.vol.num)
	if !q.disk || !q.vol.attached || st.Disk < drbd.Inconsistent {
		return
	}
	switch q.op { //nolint:exhaustive // others change nothing that is judged here
	case replication.OpWrite:
		if !q.local {
			n.w.fail("%s: a write at sector %d is acknowledged that is not on this node's disk (%v)", n.name, q.sector, st)
			return
		}
		for i := q.sector; i < q.sector+q.count; i++ {
			if q.vol.last[i] == q.stamp && q.vol.data.now[i] == q.stamp {
				q.vol.acked[i] = q.stamp
			}
		}
	case replication.OpFlush:
		for i, s := range q.promise {
			if s != 0 && q.vol.acked[i] == s && q.vol.data.durable[i] != s && n.disk.DiskFlushes {
				n.w.fail("%s: a flush has ended, and sector %d is not durable", n.name, i)
				return
			}
		}
	}
}

// judgePeerWrite: a peer writes here while this node is Secondary, or the target
// of a resync, or one of two Primaries.
func (n *node) judgePeerWrite(v *volume, sector, count drbd.Sector) {
	st := n.res.VolumeState(v.num)
	isTarget := st.Conn == drbd.SyncTarget || st.Conn == drbd.PausedSyncT || st.Conn == drbd.Behind
	if n.res.Role() == drbd.Primary && !n.w.cfg.net.AllowTwoPrimaries && st.Disk == drbd.UpToDate && !isTarget {
		n.w.fail("%s: a peer overwrites sector %d of an UpToDate Primary (%v)", n.name, sector, st)
	}
	if n.event == drbd.CmdRSDataReply && st.Disk == drbd.UpToDate {
		n.w.fail("%s: a block of a resync is written to an UpToDate disk (%v)", n.name, st)
	}
	clear(v.acked[sector : sector+count])
}

// judgeState: the good data of a Primary stay good, unless its operator, or a
// peer that asks in due form, gives them up.
func (n *node) judgeState(a *replication.Action) {
	f, t := a.From, a.To
	if f.Role != drbd.Primary || t.Role != drbd.Primary || f.Disk != drbd.UpToDate || n.w.cfg.faulty || n.w.cfg.givenUp {
		return
	}
	if t.Disk >= drbd.Negotiating && t.Disk < drbd.UpToDate && (n.w.link == nil || !n.w.link.asked) {
		n.w.fail("%s: an UpToDate Primary becomes %v: %s", n.name, t, a.Text)
	}
}

// judgeDisk: what was acknowledged is there.
func (n *node) judgeDisk() {
	for _, v := range n.vols {
		for i, s := range v.acked {
			if s != 0 && v.data.now[i] != s {
				n.w.fail("%s: sector %d has %d, acknowledged was %d", n.name, i, v.data.now[i], s)
				return
			}
		}
	}
	for _, vs := range n.res.Snapshot(n.w.tick()).Volumes {
		if vs.Gauges.Unacked > maxUnacked*len(n.vols) {
			n.w.fail("%s: %d requests of the peer are held", n.name, vs.Gauges.Unacked)
		}
	}
}
