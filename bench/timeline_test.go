package bench

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/bench/load"
	"github.com/pollux-project/pollux/bench/result"
)

func TestBucketed(t *testing.T) {
	const ms = time.Millisecond
	trace := []load.Completion{ // in no order, as connections end
		{At: 250 * ms, Took: 200 * ms}, // waited while nothing was answered
		{At: 299 * ms, Took: ms},
		{At: 0, Took: 2 * ms},
		{At: 99 * ms, Took: 4 * ms},
		{At: 300 * ms, Took: 9 * ms}, // after the end
	}
	for i := range 98 {
		trace = append(trace, load.Completion{At: time.Duration(i) * ms / 2, Took: 3 * ms})
	}
	got := bucketed(trace, 300*ms, 100*ms)
	want := []result.Point{
		{T: 0, IOPS: 1000, P50Micros: 3000, P99Micros: 3000, MaxMicros: 4000},
		{T: 0.1},
		{T: 0.2, IOPS: 20, P50Micros: 1000, P99Micros: 200000, MaxMicros: 200000},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// As polluxadm events prints them when a peer goes and comes back.
const eventLines = `2026-11-21T20:00:00.000000+00:00 exists resource name:r0 role:Primary
2026-11-21T20:00:00.000000+00:00 exists connection name:r0 peer-node-id:1 conn-name:b connection:Connected role:Secondary
2026-11-21T20:00:00.000000+00:00 exists peer-device name:r0 peer-node-id:1 conn-name:b volume:0 replication:Established peer-disk:UpToDate
2026-11-21T20:00:00.000000+00:00 exists -
2026-11-21T20:00:02.500000+00:00 change connection name:r0 peer-node-id:1 conn-name:b connection:Unconnected role:Unknown
2026-11-21T20:00:02.500000+00:00 change peer-device name:r0 peer-node-id:1 conn-name:b volume:0 replication:Off peer-disk:DUnknown
2026-11-21T20:00:02.501000+00:00 change path name:r0 peer-node-id:1 conn-name:b local:ipv4:127.0.0.1:1 peer:ipv4:127.0.0.1:2 established:no
2026-11-21T20:00:06.000000+00:00 change connection name:r0 peer-node-id:1 conn-name:b connection:Connected role:Secondary
2026-11-21T20:00:06.100000+00:00 change peer-device name:r0 peer-node-id:1 conn-name:b volume:0 replication:WFBitMapS peer-disk:Consistent
2026-11-21T20:00:06.200000+00:00 change peer-device name:r0 peer-node-id:1 conn-name:b volume:0 replication:SyncSource peer-disk:Inconsistent done:0.00
2026-11-21T20:00:06.900000+00:00 change peer-device name:r0 peer-node-id:1 conn-name:b volume:0 done:50.00
2026-11-21T20:00:07.250000+00:00 change peer-device name:r0 peer-node-id:1 conn-name:b volume:0 replication:Established peer-disk:UpToDate
`

func TestMarks(t *testing.T) {
	began := time.Date(2026, 11, 21, 20, 0, 1, 0, time.UTC)
	m := &marker{began: began.Add(time.Hour)} // the load knows better
	if err := m.read(strings.NewReader(eventLines)); err != nil {
		t.Fatal(err)
	}
	m.add(began.Add(1400*time.Millisecond), textKill)
	m.add(began.Add(-time.Second), "before the load")
	m.rebase(began)
	want := []result.Mark{
		{T: 1.4, Text: textKill},
		{T: 1.501, Text: "goes on alone"},
		{T: 5, Text: "connected"},
		{T: 5.2, Text: "resync begins"},
		{T: 6.25, Text: "resync ends"},
	}
	if diff := cmp.Diff(want, m.sorted()); diff != "" {
		t.Error(diff)
	}
	if err := (&marker{}).read(strings.NewReader("no time at all\n")); err == nil {
		t.Error("a line without a time was taken")
	}
}

func TestResyncText(t *testing.T) {
	for _, tt := range []struct{ from, to, want string }{
		{"WFBitMapS", "SyncSource", "resync begins"},
		{"SyncSource", "Established", "resync ends"},
		{"SyncSource", "Off", "resync breaks off"},
		{"SyncSource", "PausedSyncS", ""},
		{"Established", "Off", ""},
	} {
		if got := resyncText(tt.from, tt.to); got != tt.want {
			t.Errorf("%s -> %s: %q, want %q", tt.from, tt.to, got, tt.want)
		}
	}
}

// The wait of a write is charged to what caused it, though it ends after the
// state that followed.
func TestPauses(t *testing.T) {
	line := result.Timeline{
		Target: "pollux-c", BucketSeconds: 1,
		Points: []result.Point{{T: 0, MaxMicros: 100}, {T: 1, MaxMicros: 200}, {T: 2}, {T: 3, MaxMicros: 2e6}, {T: 4, MaxMicros: 300}, {T: 5, MaxMicros: 50}},
		Marks:  []result.Mark{{T: 1.5, Text: textCut}, {T: 3.1, Text: "goes on alone"}, {T: 4.2, Text: textRepair}},
	}
	var got []float64
	for _, m := range pauses(line, []string{textCut, textRepair}) {
		got = append(got, m.Value)
	}
	if diff := cmp.Diff([]float64{2000, 0.3}, got); diff != "" {
		t.Error(diff)
	}
}
