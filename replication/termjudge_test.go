package replication

import (
	"strings"
	"testing"

	"github.com/pollux-project/pollux/replication/meta"
)

// Which of a term's two records counts, and when neither is believed.
func TestJudgeTerm(t *testing.T) {
	rec := func(seq uint64, change func(*meta.TermRecord)) meta.TermRecord {
		r := meta.TermRecord{
			Seq: seq, NameHash: meta.NameHash("r0"), DeviceUUID: 77, CurrentUUID: 0x100, Term: 4, Promised: 5, Sole: 0x100, SoleTerm: 4,
		}
		if change != nil {
			change(&r)
		}
		return r
	}
	for _, tt := range []struct {
		name       string
		disk, file meta.TermRecord
		noFile     bool
		unknown    string
		promised   uint64
	}{
		{"equal", rec(9, nil), rec(9, nil), false, "", 5},
		{"a crash between the two", rec(9, nil), rec(10, func(r *meta.TermRecord) { r.Promised = 6 }), false, "", 6},
		{"no state directory at all", rec(9, nil), meta.TermRecord{}, true, "", 5},
		{"neither", meta.TermRecord{}, meta.TermRecord{}, false, "no record", 0},
		{"the state directory's is lost", rec(9, nil), meta.TermRecord{}, false, "has lost its record", 5},
		{"the disk's is lost", meta.TermRecord{}, rec(9, nil), false, "knows no terms", 5},
		{"the state directory was rolled back", rec(9, nil), rec(8, func(r *meta.TermRecord) { r.Promised = 3 }), false, "rolled back", 5},
		{"the disk was rolled back", rec(9, func(r *meta.TermRecord) { r.Promised = 3 }), rec(11, nil), false, "rolled back", 5},
		{"the disk of another node", rec(9, func(r *meta.TermRecord) { r.DeviceUUID = 88 }), rec(9, nil), false, "older than its UUIDs", 5},
		{"disks were exchanged, and count alike", rec(9, nil), rec(9, func(r *meta.TermRecord) { r.DeviceUUID = 88 }), false, "another disk", 5},
		{"another resource's file", rec(9, nil), rec(9, func(r *meta.TermRecord) { r.NameHash++ }), false, "has lost its record", 5},
		{"the generation was changed by somebody else", rec(9, func(r *meta.TermRecord) { r.CurrentUUID = 0x200 }), rec(9, nil), false, "older than its UUIDs", 5},
	} {
		sb := meta.Superblock{DeviceUUID: 77, Term: tt.disk}
		sb.UUIDs.Current = 0x101
		got, unknown := judgeTerm("r0", 0, &sb, tt.file, tt.noFile)
		if (unknown == "") != (tt.unknown == "") || !strings.Contains(unknown, tt.unknown) {
			t.Errorf("%s: unknown %q, want %q", tt.name, unknown, tt.unknown)
		}
		if got.Promised != tt.promised {
			t.Errorf("%s: promised %d, want %d", tt.name, got.Promised, tt.promised)
		}
		if unknown != "" && got.Sole != 0 {
			t.Errorf("%s: the mark of a sole writer is believed", tt.name)
		}
	}
}
