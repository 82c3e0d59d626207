package repltest

import (
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// What must be durable before anybody hears of it. A crash in the moment between
// is rare; that it would have been fatal is seen without one.

// mustBeStored: the role and the term that a command was answered for are on
// every disk.
func (m *Model) mustBeStored(n *Node, c *replication.Command) {
	if !m.w.judging {
		return
	}
	for _, v := range n.Vols {
		k := v.known(durable)
		if !v.attached || n.state(int(v.num)).Disk < drbd.Inconsistent || k.bitmap == nil {
			continue // or its metadata are on the move
		}
		switch {
		case c.Kind == replication.CmdPrimary && n.res.Role() == drbd.Primary && k.sb.Flags&meta.MDFPrimaryInd == 0:
			m.w.fail("%s/%d: promoted, but the superblock does not say so: %v", n.name, v.num, k.sb.Flags)
		case (c.Kind == replication.CmdPrimary || c.Kind == replication.CmdPromiseTerm) && k.sb.Term.Promised < c.Term:
			m.w.fail("%s/%d: term %d is promised, but on disk it is %d", n.name, v.num, c.Term, k.sb.Term.Promised)
		}
	}
}

// announced: when a target tells the source that its resync is finished, that is
// on its disk: the source forgets what it was about.
func (w *World) announced(n *Node, vol int, fixed []byte) {
	var p drbd.StatePacket
	if !w.judging || p.Decode(fixed) != nil {
		return
	}
	s, mine := drbd.StateOf(p.Word), n.state(vol)
	if s.Conn != drbd.Connected || s.Disk != drbd.UpToDate || s.Role == drbd.Primary || mine.Conn != drbd.SyncSource && mine.Conn != drbd.PausedSyncS {
		return
	}
	if k := w.Nodes[1-n.id].Vols[vol].known(durable); k.bitmap != nil && k.sb.Flags&meta.MDFConsistent == 0 {
		w.fail("%s/%d: the peer says that its resync is finished, but its superblock is %v", n.name, vol, k.sb.Flags)
	}
}
