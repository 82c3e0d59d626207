package bench

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/conf"
)

// What is written for polluxd is read by its own parser.
func TestConfigurationIsValid(t *testing.T) {
	dir := t.TempDir()
	p := &pair{lab: &lab{dir: dir}, volumes: []volume{
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
	write(filepath.Join(dir, "bench.res"), resourceText(dir, p.volumes, [][2]int{{7001, 7002}, {7003, 7004}, {7005, 7006}}))
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

func TestCases(t *testing.T) {
	names := func(cfg Config) (all []string) {
		for _, c := range cases(cfg) {
			all = append(all, c.String())
		}
		return all
	}
	if diff := cmp.Diff([]string{"buffered QD32 Pollux, protocol C", "buffered QD32 Pollux, protocol C, TLS"}, names(Config{Only: regexp.MustCompile("buffered QD32 Pollux")})); diff != "" {
		t.Error(diff)
	}
	want := []string{
		"direct QD1 Pollux, protocol C", "direct QD1 Pollux, protocol B", "direct QD1 Pollux, protocol A",
		"direct QD1 quorum, threads", "direct QD1 quorum, native", "direct QD1 quorum, io_uring",
	}
	if diff := cmp.Diff(want, names(Config{Isolated: true, Only: regexp.MustCompile("direct QD1 ")})); diff != "" {
		t.Error(diff)
	}
	for _, name := range names(Config{}) {
		if strings.Contains(name, "quorum") && !strings.Contains(name, "nbdkit") {
			t.Errorf("%s isn't fair without a namespace", name)
		}
	}
}

func TestParseFio(t *testing.T) {
	// Shortened from fio 3.33, with the kind of warning that precedes the JSON.
	const text = `fio: this platform has a quirk
{ "fio version" : "fio-3.33", "jobs" : [ { "jobname" : "bench", "error" : 5,
  "write" : { "iops" : 7197.4, "total_ios" : 21593, "lat_ns" : { "min" : 60, "percentile" : { "50.000000" : 125440, "99.000000" : 370688 } } } } ] }`
	got, writes, err := parseFio(text)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Sample{IOPS: 7197.4, P50: 125.4, P99: 370.7, Errors: 5}); got != want || writes != 21593 {
		t.Errorf("got %+v and %d writes, want %+v and 21593", got, writes, want)
	}
	for _, bad := range []string{"", "no JSON", "{", `{"jobs":[]}`, `{"jobs":[{"write":{"total_ios":0}}]}`} {
		if _, _, err := parseFio(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
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
	p := &pair{lab: l, bin: l.dir, daemons: []*process{d}}
	if err := p.adm(context.Background(), "a", "wait-sync", "r"); err == nil || !strings.Contains(err.Error(), "polluxd of a has ended") {
		t.Error(err)
	}
	if err := l.close(false); err != nil {
		t.Error(err)
	}
}

func TestFootprintLimit(t *testing.T) {
	if got, want := (Footprint{StorageBytes: 3 << 30}).Limit(), int64(64<<20+96<<10); got != want {
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
	cfg.setDefaults()
	err := cfg.Validate()
	if err == nil || !strings.Contains(err.Error(), "make build") || !strings.Contains(err.Error(), "volumes of 1 and 1024 MiB") {
		t.Error(err)
	}
}
