package etcd

import (
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

func TestElections(t *testing.T) {
	begin := time.Now()
	type heard struct {
		ms            int
		cluster, term uint64
	}
	for _, tt := range []struct {
		name  string
		heard []heard
		term  uint64 // that the node has written
		over  int    // ms when its lease of 1 s has ended; -1: never
	}{
		{"no election", []heard{{0, 1, 5}, {9000, 1, 5}}, 5, -1},
		{"one", []heard{{0, 1, 5}, {100, 1, 6}}, 5, 1100},
		{"three in a row count from the first", []heard{{0, 1, 5}, {100, 1, 6}, {700, 1, 7}, {1300, 1, 9}}, 5, 1100},
		{"renewed under the second", []heard{{0, 1, 5}, {100, 1, 6}, {700, 1, 7}}, 6, 1700},
		{"an answer that was overtaken begins anew", []heard{{0, 1, 5}, {100, 1, 7}, {200, 1, 6}}, 5, 1200},
		{"etcd was restored", []heard{{0, 1, 5}, {100, 1, 90}, {9000, 1, 7}}, 5, 10000},
		{"and made anew", []heard{{0, 1, 5}, {100, 1, 6}, {9000, 2, 8}}, 5, 10000},
		{"written by an older version", []heard{{0, 1, 5}, {100, 1, 6}}, 0, -1},
		{"later than all that was heard", []heard{{0, 1, 5}}, 6, -1},
	} {
		e := &elections{}
		at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
		var current uint64
		for _, h := range tt.heard {
			e.note(&etcdserverpb.ResponseHeader{ClusterId: h.cluster, RaftTerm: h.term}, at(h.ms))
			current = h.term
		}
		n := storedNode{Term: tt.term, TTLMS: 1000}
		if tt.over < 0 {
			if e.ended(n, current, at(100_000)) {
				t.Errorf("%s: the lease has ended", tt.name)
			}
			continue
		}
		if e.ended(n, current, at(tt.over)) || !e.ended(n, current, at(tt.over+1)) {
			t.Errorf("%s: the lease does not end after %d ms", tt.name, tt.over)
		}
		if e.ended(n, tt.term, at(100_000)) {
			t.Errorf("%s: an answer of the node's own term ends its lease", tt.name)
		}
	}
	e := &elections{}
	for term := range uint64(10 * keepElections) {
		e.note(&etcdserverpb.ResponseHeader{RaftTerm: term}, begin)
	}
	if len(e.seen) > keepElections {
		t.Errorf("%d elections are kept", len(e.seen))
	}
}
