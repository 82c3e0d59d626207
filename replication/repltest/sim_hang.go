package repltest

import "github.com/pollux-project/pollux/replication"

// hangFeature is disks that stop to answer, disk-timeout and read-balancing.
var hangFeature = feature{
	name: "disk-timeout",
	choose: func(d *dice, c *Config) {
		if d.chance(0.3) {
			c.Disk[0].ReadBalancing = replication.ReadBalancing(d.pick(int(replication.Striping1M) + 1))
			c.Disk[1].ReadBalancing = replication.ReadBalancing(d.pick(int(replication.Striping1M) + 1))
		}
		if d.chance(0.6) {
			return
		}
		for i := range c.Disk {
			c.Disk[i].DiskTimeoutMS = int64(300 + d.pick(3000))
		}
	},
	troubles: []*trouble{
		{"hang the disks", 5, func(s *sim, n *Node) {
			n.Hang()
			s.w.after(s.w.jitter(6_000_000), n.Unhang)
		}},
	},
	heal: func(s *sim) {
		for _, n := range s.w.Nodes {
			n.Unhang()
		}
	},
}

// stuckDisks is what a node has asked of its disks while they hang.
type stuckDisks struct {
	on  bool
	ops []stuckOp
}

type stuckOp struct {
	life int
	f    func()
}

// Hang has the node's disks take orders and not answer.
func (n *Node) Hang() { n.stuck.on = true }

// Unhang has them do, late, what they were asked for. Of what a process asked
// for that is gone nobody hears.
func (n *Node) Unhang() {
	ops := n.stuck.ops
	n.stuck = stuckDisks{}
	for _, op := range ops {
		n.w.after(n.w.diskDelay(), func() {
			if n.alive && n.life == op.life {
				op.f()
			}
		})
	}
}
