package bench

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/bench/result"
	"github.com/pollux-project/pollux/conf"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// What is written for polluxd is read by its own parser.
func TestConfigurationIsValid(t *testing.T) {
	dir := t.TempDir()
	p := &pair{dir: dir, volumes: []volume{
		{name: "buffered-a", protocol: 'A', io: "buffered", bytes: mib},
		{name: "direct-c", protocol: 'C', io: "direct", bytes: mib},
		{name: "buffered-c-tls", protocol: 'C', io: "buffered", bytes: mib, tls: true},
	}}
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(dir, "bench.res"), p.resourceText([][2]int{{7001, 7002}, {7003, 7004}, {7005, 7006}}))
	if err := makeCertificates(dir, nodeNames[:]); err != nil {
		t.Fatal(err)
	}
	for _, node := range nodeNames {
		if err := os.Mkdir(filepath.Join(dir, node), 0o700); err != nil {
			t.Fatal(err)
		}
		write(p.settings(node), settingsText(node, p.volumes))
		d, err := conf.LoadDaemon(p.settings(node))
		if err != nil {
			t.Fatal(err)
		}
		if got := d.Resource["direct-c"].IO; got != "direct" {
			t.Errorf("io of direct-c is %q", got)
		}
		c, err := d.LoadResources(conf.Env{})
		if err != nil {
			t.Fatal(err)
		}
		if r, err := c.Resolve("buffered-c-tls"); err != nil || !r.Net.TLS {
			t.Errorf("buffered-c-tls: %v, %v", r, err)
		}
		if len(c.Resources) != 3 || len(c.Warnings) > 0 {
			t.Errorf("%d resources, warnings %v; want 3 and none", len(c.Resources), c.Warnings)
		}
	}
}

// The rows are what people compare from one release to the next: a change of
// their names must be seen.
func TestRows(t *testing.T) {
	var b strings.Builder
	for _, r := range rows(true, false) {
		more := ""
		if r.fio {
			more = " +fio"
		}
		if r.extra {
			more += " (extra)"
		}
		fmt.Fprintf(&b, "%s: %s%s\n", r.workload.Name, strings.Join(r.targets, " "), more)
	}
	golden := filepath.Join("testdata", "rows.txt")
	if *rewrite {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Error(diff)
	}
	for _, r := range rows(false, true) {
		for _, target := range r.targets {
			if strings.HasPrefix(target, "quorum") && target != "quorum-nbdkit" {
				t.Errorf("%s: %s isn't fair without a namespace", r.workload.Name, target)
			}
		}
		if r.extra {
			t.Errorf("%s is in a quick run", r.workload.Name)
		}
	}
	seen := map[string]bool{}
	for _, r := range rows(true, false) {
		if seen[r.workload.Name] {
			t.Errorf("%s is there twice", r.workload.Name)
		}
		seen[r.workload.Name] = true
	}
}

// Every target of every row can be opened, and has a volume if it needs one.
func TestSubjects(t *testing.T) {
	s := &session{lab: &lab{dir: t.TempDir()}}
	all := s.subjects(s.pair("pair"), &quorum{lab: s.lab}, "single.raw")
	for _, r := range rows(true, false) {
		for _, target := range r.targets {
			if x := all[target]; x == nil || x.Detail == "" || x.Kind == "" {
				t.Errorf("%s: no target %s", r.workload.Name, target)
			}
		}
	}
	for _, tt := range []struct {
		target, class string
		want          volume
	}{
		{"pollux-c", result.ClassFlush, volume{name: "buffered-c", protocol: 'C', io: "buffered", bytes: 1}},
		{"pollux-c-tls", result.ClassBuffered, volume{name: "buffered-c-tls", protocol: 'C', io: "buffered", bytes: 1, tls: true}},
		{"pollux-a", result.ClassDirect, volume{name: "direct-a", protocol: 'A', io: "direct", bytes: 1}},
		{"pollux-alone", result.ClassBuffered, volume{name: "buffered-alone", protocol: 'C', io: "buffered", bytes: 1}},
	} {
		if got := volumeOf(tt.target, tt.class, 1); got != tt.want {
			t.Errorf("%s, %s: %+v", tt.target, tt.class, got)
		}
	}
}

func TestMissingToolsAreNamedWithTheirPackage(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	s := &session{lab: &lab{dir: t.TempDir()}}
	all := s.subjects(s.pair("pair"), &quorum{lab: s.lab}, "single.raw")
	for target, want := range map[string]string{
		"nbdkit-file":    "nbdkit is not installed: apt-get install nbdkit",
		"qemu-nbd":       "qemu-nbd is not installed: apt-get install qemu-utils",
		"quorum-threads": "qemu-storage-daemon is not installed: apt-get install qemu-system-common",
		"quorum-nbdkit":  "qemu-storage-daemon is not installed: apt-get install qemu-system-common; nbdkit is not installed: apt-get install nbdkit",
		"pollux-c":       "",
		"file":           "",
	} {
		if got := all[target].Skipped; got != want {
			t.Errorf("%s is skipped for %q, want %q", target, got, want)
		}
	}
}

func TestLoadedMachineIsNoticed(t *testing.T) {
	quiet, loaded := result.Sample{OthersCPUs: 0.05}, result.Sample{OthersCPUs: 0.9}
	run := &result.Run{Samples: []result.Sample{quiet, quiet, quiet}}
	if got := loadedText(run, 2); got != "" {
		t.Errorf("a quiet machine: %q", got)
	}
	run.Samples = append(run.Samples, loaded)
	if got := loadedText(run, 2); !strings.Contains(got, "during 1 of 4 samples others used more than 0.2 of its 2 CPUs (at most 0.9)") {
		t.Errorf("others' work: %q", got)
	}
	run = &result.Run{Machine: result.Machine{LoadBefore: 1.5}}
	if got := loadedText(run, 2); !strings.Contains(got, "load average was 1.5") {
		t.Errorf("a load from the beginning: %q", got)
	}
	if got, err := busyTime("cpu  100 20 30 4000 5 6 7 8 0 0\ncpu0 1"); err != nil || got != 1580*time.Millisecond {
		t.Errorf("busy %v, %v", got, err)
	}
	if _, err := busyTime("intr 1 2"); err == nil {
		t.Error("no CPU line, and no error")
	}
}

// bars of a run in which everything is made up.
func TestBars(t *testing.T) {
	run := &result.Run{Targets: []result.Target{{Name: "pollux-c", Kind: result.KindPollux}, {Name: "quorum-a", Kind: result.KindPair}, {Name: "quorum-b", Kind: result.KindPair}, {Name: "nbdkit-file", Kind: result.KindCopy}}}
	add := func(depth int, target, client string, iops int64, p50, p99 time.Duration, cpu float64) {
		h := result.NewHistogram()
		h.RecordN(p50, 90)
		h.RecordN(p99, 10)
		run.Samples = append(run.Samples, result.Sample{Round: 1, Workload: randomWrite(depth, 1, result.ClassBuffered), Target: target, Client: client, Seconds: 1, Ops: iops, Latency: h, CPUMicros: cpu})
	}
	add(1, "pollux-c", result.ClientGo, 1150, 100*time.Microsecond, 400*time.Microsecond, 50)
	add(1, "pollux-c", result.ClientFio, 1000, 101*time.Microsecond, 400*time.Microsecond, 50)
	add(1, "quorum-a", result.ClientGo, 800, time.Millisecond, time.Millisecond, 50)
	add(1, "quorum-b", result.ClientGo, 1000, time.Millisecond, time.Millisecond, 50)
	add(32, "pollux-c", result.ClientGo, 2500, time.Millisecond, time.Millisecond, 20)
	add(32, "pollux-c", result.ClientFio, 1900, time.Millisecond, time.Millisecond, 20)
	add(32, "quorum-b", result.ClientGo, 1000, time.Millisecond, time.Millisecond, 50)
	add(32, "pollux-alone", result.ClientGo, 900, time.Millisecond, time.Millisecond, 50)
	add(32, "nbdkit-file", result.ClientGo, 1000, time.Millisecond, time.Millisecond, 50)
	judgeLatency(run)
	s := &session{out: run, cfg: Config{Progress: io.Discard}, began: time.Now()}
	s.judgeClients(workload(result.OpWrite, result.PatternRandom, 4096, 1, 1, result.ClassBuffered))
	s.judgeClients(workload(result.OpWrite, result.PatternRandom, 4096, 32, 1, result.ClassBuffered))
	got := map[string]string{}
	for _, b := range run.Bars {
		got[b.What] = fmt.Sprintf("%v %.2f", b.Met, b.Ratio)
	}
	want := map[string]string{
		"4 KiB random write, buffered, QD1":                       "false 1.15",
		"4 KiB random write, buffered, QD32":                      "true 2.50",
		"the same at QD1, p99":                                    "false 4.00",
		"CPU per replicated 4 KiB write, QD32":                    "true 0.40",
		"one node alone, QD32":                                    "true 0.90",
		"own client and fio on a pair, randwrite-4k-qd1-buffered": "false 1.15",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if len(run.Notes) != 1 || !strings.Contains(run.Notes[0], "randwrite-4k-qd32-buffered, for information: IOPS +31.6 %") {
		t.Errorf("at depth the clients are compared for information: %q", run.Notes)
	}
}

func TestParseFio(t *testing.T) {
	// Shortened from fio 3.33, with the kind of warning that precedes the JSON.
	const text = `fio: this platform has a quirk
{ "fio version" : "fio-3.33", "jobs" : [ { "jobname" : "bench", "error" : 5,
  "read" : { "io_bytes" : 4096, "total_ios" : 1, "runtime" : 1000, "lat_ns" : { "bins" : { "2000" : 1 } } },
  "write" : { "io_bytes" : 40960, "total_ios" : 10, "runtime" : 2000, "lat_ns" : { "min" : 60, "bins" : { "125440" : 7, "370688" : 3 } } } } ] }`
	got, err := parseFio(text)
	if err != nil {
		t.Fatal(err)
	}
	if got.Ops != 11 || got.Bytes != 45056 || got.Seconds != 2 || got.Errors != 1 || got.Client != result.ClientFio {
		t.Errorf("got %+v", got)
	}
	if p50, top := got.Latency.PMicros(0.5), got.Latency.PMicros(1); math.Abs(p50-125.44) > 0.1 || math.Abs(top-370.7) > 0.5 {
		t.Errorf("p50 %v, max %v us", p50, top)
	}
	for _, bad := range []string{"", "no JSON", "{", `{"jobs":[]}`, `{"jobs":[{"write":{"total_ios":0}}]}`} {
		if _, err := parseFio(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// Each round begins elsewhere, and all are measured in each.
func TestInTurn(t *testing.T) {
	s := &session{}
	var order []string
	add := func(name string) func(context.Context, int) error {
		return func(_ context.Context, round int) error {
			order = append(order, fmt.Sprintf("%d%s", round, name))
			return nil
		}
	}
	if err := s.inTurn(context.Background(), 3, add("a"), add("b"), add("c")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"1a", "1b", "1c", "2b", "2c", "2a", "3c", "3a", "3b"}, order); diff != "" {
		t.Error(diff)
	}
}

func TestCopiesAreChecked(t *testing.T) {
	dir := t.TempDir()
	const size = 3*mib + 512<<10
	original, copied := filepath.Join(dir, "original"), filepath.Join(dir, "copied")
	for _, path := range []string{original, copied} {
		if err := makeImage(path, size, mib); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Size() != size {
			t.Fatalf("%v, %v: want %d bytes", info, err, int64(size))
		}
	}
	if err := isCopied(original, copied, size-mib); err != nil {
		t.Error(err)
	}
	if err := spoil(copied, size-mib); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(settle([]string{copied}), warm(original)); err != nil {
		t.Fatal(err)
	}
	if isCopied(original, copied, size-mib) == nil {
		t.Error("a spoilt copy passed")
	}
}

func TestServersAreEnded(t *testing.T) {
	l, err := newLab(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.start("sleep", "600")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cpuTicks([]*process{p}); err != nil {
		t.Error(err)
	}
	if _, err := scheduledMicros(p.pid()); err != nil {
		t.Error(err)
	}
	if err := l.close(false); err != nil {
		t.Error(err)
	}
	select {
	case <-p.ended:
	default:
		t.Error("the server runs on")
	}
	if _, err := os.Stat(l.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
}

func TestAwaitNoticesAnEndedServer(t *testing.T) {
	l, err := newLab(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.start("false")
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	err = l.await(context.Background(), p, func(context.Context) error { return errors.New("refused") })
	if err == nil || !strings.Contains(err.Error(), "has ended") || time.Since(begin) >= startTime {
		t.Errorf("after %v: %v", time.Since(begin), err)
	}
	if err := l.close(false); err != nil {
		t.Error(err)
	}
}

// A dead polluxd must not leave the benchmark waiting for the other one.
func TestOrdersEndWithADaemon(t *testing.T) {
	l, err := newLab(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.path("polluxadm"), []byte("#!/bin/sh\nexec sleep 600\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := l.start("sleep", "0.1")
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{lab: l, dir: l.dir, bin: l.dir, daemons: []*process{d}}
	if err := p.adm(context.Background(), "a", "wait-sync", "r"); err == nil || !strings.Contains(err.Error(), "polluxd of a has ended") {
		t.Error(err)
	}
	if err := l.close(false); err != nil {
		t.Error(err)
	}
}

func TestFootprintLimit(t *testing.T) {
	if got, want := (footprint{storageBytes: 3 << 30}).limit(), int64(48<<20+96<<10); got != want {
		t.Errorf("limit %d, want %d", got, want)
	}
	const status = "Name:\tpolluxd\nVmHWM:\t   27400 kB\nVmRSS:\t   17492 kB\n"
	if got, err := statusBytes(status, "VmRSS"); err != nil || got != 17492<<10 {
		t.Errorf("VmRSS %d, %v", got, err)
	}
	if _, err := statusBytes(status, "VmSwap"); err == nil {
		t.Error("a field that isn't there was read")
	}
}

func TestValidateNamesWhatIsMissing(t *testing.T) {
	cfg := Config{Bin: t.TempDir(), SizeMiB: 1}
	err := cfg.Validate()
	if err == nil || !strings.Contains(err.Error(), "make build") || !strings.Contains(err.Error(), "volumes of 1 and 1024 MiB") {
		t.Error(err)
	}
}
