//go:build invariants

package replication

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// TestInvariantsNotice breaks one thing at a time behind the core's back.
func TestInvariantsNotice(t *testing.T) {
	for _, tt := range []struct {
		says string
		do   func(r *Resource, v *volume)
	}{
		{"are in use", func(r *Resource, _ *volume) { r.req.used++ }},
		{"transfer log", func(r *Resource, _ *volume) { r.req.log.push(0) }},
		{"unacknowledged epochs", func(r *Resource, _ *volume) { r.send_.unacked.push(sentEpoch{count: 1}) }},
		{"no state to stay in", func(_ *Resource, v *volume) { v.st.Pdsk = drbd.UpToDate }},
		{"overlapping writes", func(_ *Resource, v *volume) {
			v.active.insert(0, 8, peerWrite, 1)
			v.active.insert(4, 8, resyncWrite, 2)
		}},
		{"is done", func(_ *Resource, v *volume) { v.meta.next, v.meta.done = 1, 1 }},
	} {
		t.Run(tt.says, func(t *testing.T) {
			r := New(Config{Name: "r0", Net: DefaultNetOptions()})
			r.AddVolume(0, DefaultDiskOptions())
			r.mustHold()
			tt.do(r, r.vols[0])
			defer func() {
				if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), tt.says) {
					t.Errorf("panic %v", p)
				}
			}()
			r.mustHold()
		})
	}
}
