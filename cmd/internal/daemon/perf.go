package daemon

import (
	"fmt"
	"time"

	"github.com/pollux-project/pollux/internal/perf"
	"github.com/pollux-project/pollux/protocol/adm"
)

// perf answers where the time of a resource's requests goes.
func (r *resource) perf(req adm.Request) (*adm.Perf, error) {
	eng := r.engine()
	if eng == nil {
		return nil, r.notUp()
	}
	spec, st := r.runningSpec(), eng.Status()
	p := &adm.Perf{
		Resource: r.name, Node: spec.Node, Peer: spec.Peer.Name, Role: st.Role, Protocol: st.Protocol, Now: time.Now().UTC(),
	}
	found := false
	for _, v := range spec.Volumes {
		if req.Volume != nil && *req.Volume != v.Number {
			continue
		}
		found = true
		m := eng.Perf(v.Number)
		if m == nil {
			continue
		}
		dirs, since := m.SinceReset()
		if req.Args.Reset {
			m.Reset()
		}
		p.Every = m.Every()
		pv := adm.PerfVolume{Volume: v.Number, Since: since.UTC()}
		for _, d := range dirs {
			pv.Directions = append(pv.Directions, perfDirection(d))
		}
		p.Volumes = append(p.Volumes, pv)
	}
	if !found {
		return nil, &adm.Error{Exit: adm.ExitRefused, Number: 127, Text: fmt.Sprintf("%s: Failure: (127) Device minor not allocated: there is no volume %d", r.name, *req.Volume)}
	}
	return p, nil
}

func perfDirection(d perf.DirTimes) adm.PerfDirection {
	out := adm.PerfDirection{Direction: d.Dir.String(), Requests: d.Requests}
	for _, h := range d.Hops {
		hop := adm.PerfHop{Hop: h.Hop.Name(d.Dir), Sum: h.Sum, Max: h.Max, Decisive: h.Critical}
		for _, b := range h.Buckets {
			hop.Buckets = append(hop.Buckets, [2]int64{b.NS, int64(b.Count)})
		}
		out.Hops = append(out.Hops, hop)
	}
	return out
}
