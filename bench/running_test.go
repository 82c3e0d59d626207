package bench

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/bench/result"
)

// Nothing is written to a device that holds data unless its name was given up.
func TestDestroyDataMustNameTheTarget(t *testing.T) {
	target := &running{name: "db", bytes: 1 << 30}
	write := NewWorkload(result.OpWrite, result.PatternRandom, 4096, 1, 1, result.ClassBuffered, 0)
	some := NewWorkload(result.OpMixed, result.PatternRandom, 4096, 1, 1, result.ClassBuffered, 99)
	read := NewWorkload(result.OpRead, result.PatternRandom, 4096, 1, 1, result.ClassBuffered, 0)
	for _, tt := range []struct {
		list    []result.Workload
		destroy string
		want    string // "" = it may
	}{
		{[]result.Workload{read}, "", ""},
		{[]result.Workload{read, write}, "db", ""},
		{[]result.Workload{read, write}, "", "add -destroy-data db"},
		{[]result.Workload{some}, "", "add -destroy-data db"},
		{[]result.Workload{write}, "db2", "-destroy-data names db2"},
		{[]result.Workload{read}, "db2", "-destroy-data names db2"},
	} {
		err := mayLoad(target, tt.list, tt.destroy)
		if (tt.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%d workloads, -destroy-data %q: got %v, want %q", len(tt.list), tt.destroy, err, tt.want)
		}
	}
	target.bytes = 1 << 20
	if mayLoad(target, []result.Workload{read}, "") == nil {
		t.Error("a target of 1 MiB was taken")
	}
	for _, w := range runningRows(Config{Target: "db"}) {
		if w.Op != result.OpRead {
			t.Errorf("%s is done without -destroy-data", w.Name)
		}
	}
}

func TestRunningResourceIsOursAlone(t *testing.T) {
	const ok = `[{"name":"r0","role":"Primary","devices":[{"volume":0,"disk-state":"UpToDate","open":false,"size":1048576,"pollux-export":"r0"}],` +
		`"connections":[{"connection-state":"Connected","pollux-protocol":"C"}]}]`
	got, err := ofStatus("r0", "/run/pollux/nbd.sock", ok)
	if err != nil {
		t.Fatal(err)
	}
	want := running{name: "r0", uri: "nbd+unix:///r0?socket=%2Frun%2Fpollux%2Fnbd.sock", detail: "resource r0, disk UpToDate, peer Connected, protocol C", bytes: 1 << 30}
	if diff := cmp.Diff(want, *got, cmp.AllowUnexported(running{})); diff != "" {
		t.Error(diff)
	}
	for _, tt := range []struct{ name, old, new, want string }{
		{"r0", `"role":"Primary"`, `"role":"Secondary"`, "it is Secondary: run `polluxadm primary r0`"},
		{"r0", `"open":false`, `"open":true`, "open by somebody else"},
		{"r0", `"pollux-export":"r0"`, `"pollux-export":"r0","pollux-block-device":"/dev/nbd0"`, "attached as /dev/nbd0"},
		{"r0", `"pollux-export":"r0"`, `"x":""`, "not exported"},
		{"r0/1", ok, ok, "name one, as r0/0"},
		{"r0", `"volume":0,`, `"volume":1,"pollux-export":"r0/1"},{"volume":0,`, "it has 2 volumes"},
		{"all", ok, "[" + strings.Trim(ok, "[]") + "]]," + strings.TrimPrefix(ok, "["), "status"},
	} {
		_, err := ofStatus(tt.name, "s", strings.Replace(ok, tt.old, tt.new, 1))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s with %s: got %v, want %q", tt.name, tt.new, err, tt.want)
		}
	}
}

func TestConfigRefusesWhatMeansNothing(t *testing.T) {
	bad := NewWorkload(result.OpWrite, result.PatternRandom, 1000, 1, 1, result.ClassBuffered, 0)
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{Config{DestroyData: "db"}, "-destroy-data db: there is no -target db"},
		{Config{Custom: &bad}, "blocks of 1000 bytes"},
		{Config{BandwidthMbit: 0.5}, "0.5 Mbit/s"},
		{Config{DelayMicros: -1}, "a delay of -1 us"},
		{Config{Rounds: -1}, "-1 rounds"},
	} {
		if err := tt.cfg.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
}

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]int{"512": 512, "4k": 4096, "4K": 4096, "1m": mib, "2MiB": 2 * mib, "64kb": 64 << 10} {
		if got, err := ParseBytes(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, bad := range []string{"", "k", "-4k", "4g", "0", "99999999999m"} {
		if got, err := ParseBytes(bad); err == nil {
			t.Errorf("%q was taken for %d", bad, got)
		}
	}
}

func TestNamesOfWorkloads(t *testing.T) {
	for want, w := range map[string]result.Workload{
		"randwrite-4k-qd32x4-buffered": NewWorkload(result.OpWrite, result.PatternRandom, 4096, 32, 4, result.ClassBuffered, 70),
		"seqread-1m-qd4-direct":        NewWorkload(result.OpRead, result.PatternSequential, mib, 4, 1, result.ClassDirect, 70),
		"randmixed70-512-qd1-fua":      NewWorkload(result.OpMixed, result.PatternRandom, 512, 1, 1, result.ClassFUA, 70),
	} {
		if w.Name != want {
			t.Errorf("%q, want %q", w.Name, want)
		}
	}
}

// The link's orders, as tc takes them.
func TestShaping(t *testing.T) {
	for _, tt := range []struct {
		mbit, micros float64
		want         string
	}{
		{0, 0, ""},
		{1000, 0, "tc qdisc add dev d root handle 2: tbf rate 1000mbit burst 250000 latency 100ms"},
		{0, 200, "tc qdisc add dev d root handle 1: netem delay 200us limit 100000"},
		{100, 200, "tc qdisc add dev d root handle 1: netem delay 200us limit 100000|tc qdisc add dev d parent 1:1 handle 2: tbf rate 100mbit burst 131072 latency 100ms"},
	} {
		var got []string
		for _, words := range shaping("d", tt.mbit, tt.micros) {
			got = append(got, strings.Join(words, " "))
		}
		if diff := cmp.Diff(tt.want, strings.Join(got, "|")); diff != "" {
			t.Error(diff)
		}
	}
	if _, err := newLink(context.Background(), Config{}); err == nil || !strings.Contains(err.Error(), "no network namespace") {
		t.Errorf("a link without a namespace: %v", err)
	}
}
