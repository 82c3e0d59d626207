package witness

import (
	"cmp"
	"slices"
	"time"
)

// Status is how a server fares.
type Status struct {
	Fingerprint string          `json:"fingerprint"`
	UpSeconds   int64           `json:"up_seconds"`
	Clusters    []ClusterStatus `json:"clusters"` // sorted by name
	Problems    []string        `json:"problems"` // what is wrong with files of CAs
}

// ClusterStatus is how one of its clusters fares.
type ClusterStatus struct {
	Name      string       `json:"name"`
	CA        string       `json:"ca"` // fingerprint
	Problem   string       `json:"problem,omitempty"`
	Resources int          `json:"resources"`
	LogBytes  int64        `json:"log_bytes"`
	Claims    uint64       `json:"claims"` // since the start, as are all counts
	Refused   uint64       `json:"refused"`
	Renewals  uint64       `json:"renewals"`
	Observes  uint64       `json:"observes"`
	Flushes   uint64       `json:"flushes"`
	SlowestMS float64      `json:"slowest_flush_ms"` // of the last minute with changes
	Nodes     []NodeStatus `json:"nodes"`
}

// NodeStatus is when a node asked last.
type NodeStatus struct {
	Name      string  `json:"name"`
	SilentSec float64 `json:"silent_seconds"`
}

// Status returns a snapshot.
func (s *Server) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{Fingerprint: s.Fingerprint(), UpSeconds: int64(time.Since(s.began).Seconds()), Problems: slices.Clone(s.problems)}
	for _, m := range s.clusters {
		st.Clusters = append(st.Clusters, m.status())
	}
	slices.SortFunc(st.Clusters, func(a, b ClusterStatus) int { return cmp.Compare(a.Name, b.Name) })
	return st
}

func (m *member) status() ClusterStatus {
	cs := ClusterStatus{Name: m.name, CA: m.print}
	if m.ill != nil {
		cs.Problem = m.ill.Error()
		return cs
	}
	n := m.c.status()
	cs.Problem, cs.Resources, cs.LogBytes = n.Ill, n.Resources, n.LogBytes
	cs.Claims, cs.Refused, cs.Renewals, cs.Observes, cs.Flushes = n.Claims, n.Refused, n.Renewals, n.Observes, n.Flushes
	cs.SlowestMS = float64(n.Slowest.Microseconds()) / 1000
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, at := range m.seen {
		cs.Nodes = append(cs.Nodes, NodeStatus{Name: name, SilentSec: time.Since(at).Seconds()})
	}
	slices.SortFunc(cs.Nodes, func(a, b NodeStatus) int { return cmp.Compare(a.Name, b.Name) })
	return cs
}
