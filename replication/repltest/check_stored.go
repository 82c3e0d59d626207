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

// unstored reports whether n is filing a word of an UpToDate copy of a Secondary
// that its disk does not know of, and what the superblock says instead. It is asked
// when the word is filed: when it arrives, the disk may have failed since under
// on-io-error pass_on, and rightly say Inconsistent; that word follows this one.
func (w *World) unstored(n *Node, h drbd.Header, fixed []byte) (bool, meta.Flags) {
	var p drbd.StatePacket
	if !w.judging || h.Command != drbd.CmdState || int(h.Volume) >= len(n.Vols) || p.Decode(fixed) != nil {
		return false, 0
	}
	if s := drbd.StateOf(p.Word); s.Conn != drbd.Connected || s.Disk != drbd.UpToDate || s.Role == drbd.Primary {
		return false, 0
	}
	k := n.Vols[h.Volume].known(durable)
	return k.bitmap != nil && k.sb.Flags&meta.MDFConsistent == 0, k.sb.Flags
}

// announced: when a target tells the source that its resync is finished, that is
// on its disk: the source forgets what it was about. b is such a word, unstored,
// that arrives at n.
func (w *World) announced(n *Node, b []byte, sb meta.Flags) {
	h, err := drbd.DecodeHeader100(b)
	if err != nil {
		return // receive tells
	}
	vol := int(h.Volume)
	if c := n.state(vol).Conn; c == drbd.SyncSource || c == drbd.PausedSyncS {
		w.fail("%s/%d: the peer said that its resync was finished when its superblock was %v", n.name, vol, sb)
	}
}
