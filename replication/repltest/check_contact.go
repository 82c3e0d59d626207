package repltest

import (
	"strings"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// What the two nodes make of each other when they meet: a split brain that is
// none stops a service for nothing, and an operator who resolves it throws away
// good data.

// apart follows which node may have begun a generation of its own since the
// copies of v were last equal and the nodes knew it.
func (m *Model) apart(n *Node, v *Volume, from, to drbd.State, text string) {
	mv := &m.vols[v.num]
	if strings.HasPrefix(text, "new current UUID") || to.Role == drbd.Primary && (to.Conn < drbd.Connected || to.Pdsk <= drbd.Failed) {
		mv.alone[n.id] = true
	}
	if from.Role != drbd.Primary && to.Role == drbd.Primary {
		if to.Conn < drbd.Connected && to.Disk < drbd.UpToDate {
			m.w.fail("%s/%d: promoted alone, with a copy that is %v", n.name, v.num, to.Disk)
		}
		if from.Disk != to.Disk {
			mv.alone[n.id] = true // by force
		}
	}
	p := m.w.Nodes[1-n.id]
	if p.alive && n.link != nil && p.link == n.link && isPair(to) && isPair(p.state(int(v.num))) {
		mv.alone = [2]bool{}
	}
}

func isPair(s drbd.State) bool {
	return s.Conn == drbd.Connected && s.Disk == drbd.UpToDate && s.Pdsk == drbd.UpToDate
}

// handlerRun checks the reasons for which the core calls a handler.
func (m *Model) handlerRun(n *Node, vol uint16, name string) {
	if mv := &m.vols[vol]; name == "initial-split-brain" && !(mv.alone[0] && mv.alone[1]) && !m.bothPrimary() {
		m.w.fail("%s/%d: a split brain is seen, but not both nodes have gone on alone: %v", n.name, vol, mv.alone)
	}
}

// reported looks for sentences that no history of one pair should lead to.
func (m *Model) reported(n *Node, text string) {
	if strings.Contains(text, "unrelated data") && !m.renamed {
		m.w.fail("%s: two copies of one volume are taken for strangers: %s", n.name, text)
	}
}

// newUUID is an operator who begins a generation by hand.
func (m *Model) newUUID(n *Node, kind replication.CommandKind) {
	if kind == replication.CmdNewCurrentUUID {
		m.renamed = true
		for i := range m.vols {
			m.vols[i].alone[n.id] = true
		}
	}
}

// bothPrimary reports whether both nodes are Primary: then a crash, or a disk
// that was in use without its node, is a split brain by rule 41 alone.
func (m *Model) bothPrimary() bool {
	for _, n := range m.w.Nodes {
		if !n.alive || n.res.Role() != drbd.Primary {
			return false
		}
	}
	return true
}
