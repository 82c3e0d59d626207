package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/bench/result"
	"github.com/pollux-project/pollux/conf"
)

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

func TestRows(t *testing.T) {
	names := func(isolated bool) (all []string) {
		for _, r := range rows(isolated) {
			for _, target := range r.targets {
				all = append(all, r.workload.Name+" "+target)
			}
		}
		return all
	}
	for _, name := range names(false) {
		if strings.Contains(name, "quorum") && !strings.Contains(name, "nbdkit") {
			t.Errorf("%s isn't fair without a namespace", name)
		}
	}
	if !slices.Contains(names(true), "randwrite-4k-qd32-buffered quorum-io_uring") {
		t.Errorf("a rival is missing: %q", names(true))
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
