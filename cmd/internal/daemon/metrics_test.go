package daemon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/pollux-project/pollux/internal/perf"
	"github.com/pollux-project/pollux/protocol/adm"
)

// measuredVolume has had one write, flush and discard, two reads, one write of
// the peer, and one of each operation of the disk.
func measuredVolume() *perf.Volume {
	v := perf.NewVolume(64)
	s := v.NewSampler()
	s.Batch(perf.Now())
	for _, d := range []perf.Dir{perf.Write, perf.ReadDir, perf.ReadDir, perf.Flush, perf.Discard} {
		s.Pick(d)
		var t perf.Trace
		const us = 1000
		t.Begin(1000 * us)
		for p, at := range map[perf.Point]int64{perf.Submitted: 1010, perf.Waits: 1011, perf.Started: 1500, perf.LocalBegun: 1510, perf.LocalDone: 1530, perf.AckRead: 1600, perf.Acked: 1601, perf.Completed: 1602} {
			t.Set(p, at*us)
		}
		t.Sending().Sent(1520 * us)
		v.Fold(d, &t, 1620*us)
	}
	v.PeerWritten(1000, 2000, 3000, 4000, 5000)
	for _, h := range []perf.Hop{perf.Fdatasync, perf.Transaction, perf.Metadata} {
		v.Add(perf.Disk, h, 3e6)
	}
	return v
}

// scraper asks a test daemon on its unix socket.
func scraper(d *testDaemon) *http.Client {
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return net.Dial("unix", d.path("metrics.sock"))
		},
	}}
}

func (d *testDaemon) scrape(path string) (int, string) {
	d.t.Helper()
	resp, err := scraper(d).Get("http://polluxd" + path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func startMeasured(t *testing.T) *testDaemon {
	t.Helper()
	w := newFakeWorld()
	w.perf = measuredVolume()
	return startDaemon(t, w, "r0.res", resText("r0", 0, 7788, 1), "r1.res", resText("r1", 1, 7789, 2),
		"pollux.toml", settingsText+"metrics.socket = \"metrics.sock\"\n")
}

func TestMetrics(t *testing.T) {
	d := startMeasured(t)
	d.wantOK(adm.CmdPrimary, "r0")
	d.wantOK(adm.CmdDown, "r1")
	code, text := d.scrape("/metrics")
	if code != 200 {
		t.Fatalf("status %d: %s", code, text)
	}
	for _, want := range []string{
		`pollux_resources{state="down"} 1`,
		`pollux_resources{state="up"} 1`,
		`pollux_resource_up{resource="r1"} 0`,
		`pollux_role{node="local",resource="r0",role="Primary"} 1`,
		`pollux_connection_state{resource="r0",state="WFConnection"} 1`,
		`pollux_disk_state{resource="r0",state="UpToDate",volume="0"} 1`,
		`pollux_size_bytes{resource="r0",volume="0"} 1.048576e+06`,
		`pollux_requests_total{kind="read",resource="r0",volume="0"} 2`,
		// 489 us: between 2^18 and 2^19 ns.
		`pollux_write_hop_seconds_bucket{hop="activity_log",resource="r0",volume="0",le="0.000262144"} 0`,
		`pollux_write_hop_seconds_bucket{hop="activity_log",resource="r0",volume="0",le="0.000524288"} 1`,
		`pollux_write_hop_seconds_sum{hop="activity_log",resource="r0",volume="0"} 0.000489`,
		`pollux_write_hop_seconds_count{hop="total",resource="r0",volume="0"} 1`,
		`pollux_write_hop_seconds_sum{hop="total",resource="r0",volume="0"} 0.00062`,
		`pollux_peer_write_hop_seconds_count{hop="local_write",resource="r0",volume="0"} 1`,
		`pollux_disk_operation_seconds_sum{operation="fdatasync",resource="r0",volume="0"} 0.003`,
	} {
		if !strings.Contains(text, "\n"+want+"\n") {
			t.Errorf("no line %s", want)
		}
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if strings.Contains(text, `resource="r1",volume`) {
		t.Error("a resource that is down has volumes")
	}
	checkMetricsManual(t, text)
	if t.Failed() {
		t.Log(text)
	}
}

// checkMetricsManual: docs/metrics.md has a row for each metric, and no other.
func checkMetricsManual(t *testing.T, scrape string) {
	t.Helper()
	manual, err := os.ReadFile("../../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	names := func(text, pattern string) []string {
		var out []string
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			out = append(out, m[1])
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	served, told := names(scrape, `(?m)^# TYPE (\S+)`), names(string(manual), "(?m)^\\| `(pollux_[a-z_]+)")
	if !slices.Equal(served, told) {
		t.Errorf("docs/metrics.md has other metrics than are served\nserved: %q\ntold:   %q", served, told)
	}
}

func TestMetricsStrangers(t *testing.T) {
	d := startMeasured(t)
	if fi, err := os.Stat(d.path("metrics.sock")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v (%v), want mode 0600", fi.Mode(), err)
	}
	for path, want := range map[string]int{"/": 404, "/debug/pprof/": 404, "/metrics/../x": 404, "/metrics": 200} {
		if code, _ := d.scrape(path); code != want {
			t.Errorf("%s: status %d, want %d", path, code, want)
		}
	}
	resp, err := scraper(d).Post("http://polluxd/metrics", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 405 {
		t.Errorf("POST: status %d, want 405", resp.StatusCode)
	}
	conn, err := net.Dial("unix", d.path("metrics.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go fmt.Fprintf(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n", bytes.Repeat([]byte("x"), 64<<10)) // it may be cut off
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.Contains(line, "431") {
		t.Errorf("a header of 64 KiB got %q, %v; want 431", line, err)
	}
	var open []net.Conn
	for range maxScrapeClients * 2 {
		c, err := net.Dial("unix", d.path("metrics.sock"))
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	shut := 0
	for _, c := range open {
		c.SetReadDeadline(time.Now().Add(200 * time.Millisecond)) // a connection that is kept says nothing
		if _, err := c.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
			shut++
		}
	}
	if shut < maxScrapeClients || shut == len(open) {
		t.Errorf("%d of %d silent connections were closed, want those beyond %d", shut, len(open), maxScrapeClients)
	}
	for _, c := range open {
		c.Close()
	}
}

func TestNoMetricsUnlessAsked(t *testing.T) {
	d := startDaemon(t, newFakeWorld(), "r0.res", resText("r0", 0, 7788, 1))
	if strings.Contains(d.log.String(), "serving metrics") {
		t.Error("metrics are served although nobody wants them")
	}
}

func TestPerfCommand(t *testing.T) {
	d := startMeasured(t)
	ask := func(args adm.Args, volume *int) adm.Perf {
		t.Helper()
		resp := d.call(adm.Request{Cmd: adm.CmdPerf, Resource: "r1", Volume: volume, Args: args})
		var p adm.Perf
		if err := resp.Err(); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(resp.Data, &p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := ask(adm.Args{}, nil)
	if len(p.Volumes) != 2 || p.Every != 64 || p.Peer != "bravo" || p.Node != "alpha" {
		t.Fatalf("got %+v, want two volumes", p)
	}
	var dirs []string
	for _, dir := range p.Volumes[0].Directions {
		dirs = append(dirs, dir.Direction)
		if last := dir.Hops[len(dir.Hops)-1]; dir.Direction != "disk" && last.Hop != "total" {
			t.Errorf("%s: the last hop is %s, want total", dir.Direction, last.Hop)
		}
	}
	if want := []string{"write", "read", "flush", "discard", "peer write", "disk"}; !slices.Equal(dirs, want) {
		t.Errorf("directions %q, want %q", dirs, want)
	}
	one := 1
	if p := ask(adm.Args{Reset: true}, &one); len(p.Volumes) != 1 || len(p.Volumes[0].Directions) == 0 {
		t.Errorf("reset has the last word on what was: %+v", p)
	}
	if p := ask(adm.Args{}, &one); len(p.Volumes[0].Directions) != 0 {
		t.Errorf("after a reset there is %+v", p.Volumes[0].Directions)
	}
	if _, text := d.scrape("/metrics"); !strings.Contains(text, `pollux_write_hop_seconds_count{hop="total",resource="r1",volume="1"} 1`) {
		t.Error("the reset of polluxadm perf took counters away from Prometheus")
	}
	nine := 9
	if resp := d.call(adm.Request{Cmd: adm.CmdPerf, Resource: "r1", Volume: &nine}); resp.Number != 127 {
		t.Errorf("volume 9: %+v, want (127)", resp)
	}
	d.wantOK(adm.CmdDown, "r1")
	if resp := d.call(adm.Request{Cmd: adm.CmdPerf, Resource: "r1"}); resp.Number != 158 {
		t.Errorf("down: %+v, want (158)", resp)
	}
}
