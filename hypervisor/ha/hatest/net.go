package hatest

// A lane is one of the networks that connect the hosts.
type lane uint8

const (
	management  lane = iota // managers with one another, and with the arbiter
	replicating             // the storage, and heartbeats beside it
	lanes
)

func (l lane) String() string { return [...]string{"management", "replication"}[l] }

// network is what is between the hosts; the arbiter is the last endpoint.
type network struct {
	w    *World
	cuts [lanes][][]int // how many faults keep what i sends from reaching j
	late []int64        // µs: what an endpoint sends takes up to so much longer
}

func newNetwork(w *World, ends int) network {
	n := network{w: w, late: make([]int64, ends)}
	for l := range n.cuts {
		n.cuts[l] = make([][]int, ends)
		for i := range n.cuts[l] {
			n.cuts[l][i] = make([]int, ends)
		}
	}
	return n
}

// open reports whether what i sends reaches j.
func (n *network) open(l lane, i, j int) bool { return n.cuts[l][i][j] == 0 }

// cut keeps what i sends from j, once more or (by -1) once less.
func (n *network) cut(l lane, i, j, by int, silent bool) {
	n.cuts[l][i][j] += by
	if l == replicating {
		for _, p := range n.w.Pairs {
			p.relink(silent)
		}
	}
}

// maxArbiterJitter is what a healthy arbiter's messages may take longer, µs: question
// and answer have to fit into a quarter of a lease.
const maxArbiterJitter = 300 * millisecond

// send has f happen where j is when what i sends arrives. A message that is under
// way when the network is cut still arrives.
func (n *network) send(l lane, i, j int, f func()) {
	if !n.open(l, i, j) {
		return
	}
	d := n.w.dice.between(200, 1500)
	if n.w.dice.chance(0.02) {
		d += n.w.dice.between(0, 40*millisecond)
	}
	jitter := n.w.cfg.Jitter
	if arbiter := n.w.cfg.Hosts; i == arbiter || j == arbiter {
		jitter = min(jitter, maxArbiterJitter)
	}
	d += n.w.dice.between(0, max(n.late[i], jitter))
	n.w.after(d, f)
}
