package repltest

import (
	"math"
	"strings"
	"testing"
)

// TestCheckRegister holds the check to histories of one sector that are known
// to be right or wrong: w1 is a write of 1, r1 a read that gave 1, with start
// and end; an end of -1 is a write of unknown fate.
func TestCheckRegister(t *testing.T) {
	w := func(v stamp, start, end int64) registerOp {
		if end < 0 {
			end = math.MaxInt64
		}
		return registerOp{write: true, value: v, start: start, end: end}
	}
	r := func(v stamp, start, end int64) registerOp { return registerOp{value: v, start: start, end: end} }
	tests := []struct {
		name string
		ops  []registerOp
		want string // "" if the history is linearizable
	}{
		{"one after the other", []registerOp{w(1, 0, 1), r(1, 2, 3), w(2, 4, 5), r(2, 6, 7)}, ""},
		{"a read during a write may give either", []registerOp{w(1, 0, 1), w(2, 2, 10), r(1, 3, 4), r(2, 5, 6)}, ""},
		{"two writes at once, in either order", []registerOp{w(1, 0, 10), w(2, 0, 10), r(1, 11, 12)}, ""},
		{"a write of unknown fate is seen late", []registerOp{w(1, 0, 1), w(2, 2, -1), r(1, 3, 4), r(2, 50, 51)}, ""},
		{"a write of unknown fate is never seen", []registerOp{w(1, 0, 1), w(2, 2, -1), r(1, 3, 4), r(1, 50, 51)}, ""},
		{"an acknowledged write is lost", []registerOp{w(1, 0, 1), w(2, 2, 3), r(1, 4, 5)}, "no register"},
		{"a write that was read is taken back", []registerOp{w(1, 0, 1), w(2, 2, -1), r(2, 3, 4), r(1, 5, 6)}, "no register"},
		{"a write in flight is read, then the old data", []registerOp{w(1, 0, 1), w(2, 2, 20), r(2, 3, 4), r(1, 5, 6)}, "no register"},
		{"two values take turns", []registerOp{w(1, 0, 10), w(2, 0, 10), r(1, 11, 12), r(2, 13, 14)}, "no register"},
		{"the same, with a third read", []registerOp{w(1, 0, 20), w(2, 0, 20), r(1, 2, 3), r(2, 4, 5), r(1, 6, 7)}, "no register"},
		{"read before it was written", []registerOp{w(1, 5, 6), r(1, 2, 3)}, "before that was written"},
		{"an old write reappears after its successor was read", []registerOp{w(1, 0, -1), w(2, 2, 3), r(2, 4, 5), r(1, 6, 7), r(2, 8, 9)}, "no register"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := checkRegister(tt.ops)
			if tt.want == "" && err != nil {
				t.Errorf("checkRegister = %v, want nil", err)
			}
			if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("checkRegister = %v, want an error with %q", err, tt.want)
			}
		})
	}
}
