package replication

// Gauges are what is under way on one volume now: the counters lo, pe, ua, ap
// and ep of /proc/drbd.
type Gauges struct {
	Local   int // operations on the local disk
	Pending int // asked of the peer, not answered
	Unacked int // asked by the peer, not answered
	App     int // requests of clients, not answered
	Epochs  int // of the peer's writes, in the connection; at least 1
}

// gauges counts what is under way on every volume. It looks through the tables
// of requests: for status, not for each request.
func (r *Resource) gauges() map[*volume]*Gauges {
	all := make(map[*volume]*Gauges, len(r.vols))
	for _, v := range r.vols {
		g := &Gauges{Local: v.local, Epochs: max(r.recv.q.len(), 1)}
		for i := range v.active.r {
			if a := &v.active.r[i]; a.kind == resyncAsked && a.id == 0 {
				g.Pending++
			}
		}
		all[v] = g
	}
	for _, c := range r.req.chunks {
		for i := range c {
			q := &c[i]
			if !q.used || q.v == nil {
				continue
			}
			g := all[q.v]
			if q.is(netPending) {
				g.Pending++
			}
			if !q.is(completed) {
				g.App++
			}
		}
	}
	for _, c := range r.peer.chunks {
		for i := range c {
			if p := &c[i]; p.used && p.v != nil && p.conn == r.connGen {
				all[p.v].Unacked++
			}
		}
	}
	return all
}
