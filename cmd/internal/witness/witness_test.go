package witness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/witness"
	"github.com/pollux-project/pollux/hypervisor/ha/control"
)

// The test's binary is the program, too.
func TestMain(m *testing.M) {
	if os.Getenv("POLLUX_WITNESS") != "" {
		os.Exit(Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// witnessHost is a host with a witness, as a process.
type witnessHost struct {
	t    testing.TB
	dir  string
	addr netip.AddrPort
	cmd  *exec.Cmd
	log  *bytes.Buffer
}

func free(t testing.TB) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func (h *witnessHost) start() {
	h.t.Helper()
	h.cmd = exec.Command(os.Args[0], "run", "--dir", h.dir, "--listen", h.addr.String(), "--log-format", "json")
	h.cmd.Env = append(os.Environ(), "POLLUX_WITNESS=1")
	h.log = &bytes.Buffer{}
	h.cmd.Stderr = h.log
	if err := h.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) { // nothing tells when; bounded
		if code, _ := h.call("status"); code == exitOK {
			return
		}
		if time.Now().After(end) {
			h.t.Fatalf("it does not start:\n%s", h.log)
		}
	}
}

func (h *witnessHost) stop(sig syscall.Signal) error {
	h.t.Helper()
	if err := h.cmd.Process.Signal(sig); err != nil {
		h.t.Fatal(err)
	}
	return h.cmd.Wait()
}

// call runs a command of the program here, and returns all that it prints.
func (h *witnessHost) call(args ...string) (int, string) {
	var out bytes.Buffer
	code := Main(append([]string{"--dir", h.dir}, args...), strings.NewReader(""), &out, &out)
	return code, out.String()
}

func newWitnessHost(t testing.TB) *witnessHost {
	t.Helper()
	h := &witnessHost{t: t, dir: t.TempDir(), addr: free(t)}
	h.start()
	t.Cleanup(func() {
		if h.cmd.ProcessState == nil {
			_ = h.stop(syscall.SIGKILL) // killed is what it says
		}
	})
	return h
}

func newCluster(t testing.TB, name string) (control.Store, *control.Identity) {
	t.Helper()
	dir := t.TempDir()
	s := control.Store{Dir: filepath.Join(dir, "cluster"), File: filepath.Join(dir, "cluster.toml")}
	if _, err := control.Init(s, control.InitOptions{Cluster: name, Node: "a", Links: []netip.AddrPort{free(t)}}); err != nil {
		t.Fatal(err)
	}
	id, _, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	return s, id
}

func TestCommands(t *testing.T) {
	h := newWitnessHost(t)
	office, id := newCluster(t, "office")
	other, _ := newCluster(t, "office") // another one of the same name
	want := func(code int, text string, args ...string) string {
		t.Helper()
		got, out := h.call(args...)
		if got != code || !strings.Contains(out, text) {
			t.Errorf("%v: status %d\n%s\nwant %d and %q", args, got, out, code, text)
		}
		return out
	}
	out := want(0, "no clusters: pollux-witness add", "status")
	print := regexp.MustCompile(`sha256:[0-9a-f]{64}`).FindString(out)
	want(10, "is the certificate of \"a\", not of a CA", "add", "office", office.CertFile())
	want(10, "does not begin with a certificate", "add", "office", office.KeyFile())
	want(10, "no such file", "add", "office", "/nonexistent")
	want(1, "expected 1 to 48 letters", "add", "../x", office.CAFile())
	want(1, "found 1 arguments", "add", "office")
	want(1, "unknown command", "ad")
	want(0, "added cluster office", "add", "office", office.CAFile())
	want(0, "known already", "add", "office", office.CAFile())
	want(10, "known as office already", "add", "lab", office.CAFile())
	want(10, "another cluster is called office here", "add", "office", other.CAFile())

	c, err := witness.NewClient(witness.ClientConfig{Address: h.addr, Fingerprint: print, Certificate: id.TLSCertificate(), TTL: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Renew(t.Context(), "a", "s"); err != nil {
		t.Fatal(err)
	}
	want(0, "node       a, asked last", "status")
	var st witness.Status
	if err := json.Unmarshal([]byte(want(0, "", "status", "--json")), &st); err != nil || len(st.Clusters) != 1 || st.Clusters[0].Renewals != 1 || st.Fingerprint != print {
		t.Errorf("status: %+v, %v", st, err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "clusters", "bad.pem"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // a signal is not answered; bounded
		if code, out := h.call("status"); code == exitConfig && strings.Contains(out, "bad.pem does not begin") {
			break
		}
		if time.Now().After(end) {
			t.Fatal("SIGHUP is not heard")
		}
	}
	if code, out := (&witnessHost{t: t, dir: h.dir, addr: h.addr}).call("run"); code != exitEnvironment || !strings.Contains(out, "another pollux-witness") {
		t.Errorf("a second one on the directory: %d %s", code, out)
	}
	want(0, "removed cluster office", "remove", "office")
	if err := c.Renew(t.Context(), "a", "s"); !errors.Is(err, arbiter.ErrUnreachable) {
		t.Errorf("a removed cluster: %v", err)
	}
	want(10, "there is no cluster office", "remove", "office")
	if err := h.stop(syscall.SIGTERM); err != nil {
		t.Errorf("SIGTERM: %v\n%s", err, h.log)
	}
	want(20, "it is not running", "status")
	want(0, "it will know when it is started", "add", "office", office.CAFile())
}

// TestKill kills the process while claims are under way, again and again: what was
// answered is there afterwards, and terms only grow.
func TestKill(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	h := newWitnessHost(t)
	office, id := newCluster(t, "office")
	if code, out := h.call("add", "office", office.CAFile()); code != 0 {
		t.Fatal(out)
	}
	_, out := h.call("status")
	c, err := witness.NewClient(witness.ClientConfig{
		Address: h.addr, Fingerprint: regexp.MustCompile(`sha256:[0-9a-f]{64}`).FindString(out), Certificate: id.TLSCertificate(), TTL: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const resources = 8
	acked, answered := make([]uint64, resources), 0
	for round := range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var mu sync.Mutex
		for i := range resources {
			seen := acked[i]
			wg.Go(func() {
				name := fmt.Sprintf("r%d", i)
				for ctx.Err() == nil {
					rec, err := c.Acquire(ctx, arbiter.Claim{Resource: name, Node: "a", Session: "s", Seen: seen, MinTerm: seen, InSync: []string{"a"}, Members: []string{"a"}})
					var no *arbiter.RefusedError
					switch {
					case err == nil:
						mu.Lock()
						acked[i], seen = rec.Term, rec.Term
						answered++
						mu.Unlock()
					case errors.As(err, &no):
						seen = no.Record.Term // a claim that was carried out, and not answered
					default:
						return // it is dead
					}
				}
			})
		}
		time.Sleep(time.Duration(20+rand.IntN(60)) * time.Millisecond) // the moment of death is chance: that is the test
		_ = h.stop(syscall.SIGKILL)                                    // killed is what it says
		wg.Wait()
		cancel()
		h.start()
		names := make([]string, resources)
		for i := range names {
			names[i] = fmt.Sprintf("r%d", i)
		}
		v, err := c.Observe(t.Context(), names...)
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range v.Records {
			if r.Term < acked[i] || r.Term > acked[i]+1 && acked[i] > 0 {
				t.Errorf("round %d, %s: term %d was answered, %d is there", round, r.Resource, acked[i], r.Term)
			}
			acked[i] = r.Term
		}
	}
	if answered < rounds*resources {
		t.Errorf("only %d claims were answered in %d rounds: nothing was tested", answered, rounds)
	}
	t.Logf("%d claims answered, killed %d times", answered, rounds)
}

// The manual page names all commands and options.
func TestManual(t *testing.T) {
	page, err := os.ReadFile("../../../docs/pollux-witness.8")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(page), `\-`, "-")
	var help bytes.Buffer
	Main([]string{"--help"}, strings.NewReader(""), io.Discard, &help)
	for _, word := range regexp.MustCompile(`(?m)^  -([a-z-]+)`).FindAllStringSubmatch(help.String(), -1) {
		if !strings.Contains(text, "--"+word[1]) {
			t.Errorf("docs/pollux-witness.8 does not name --%s", word[1])
		}
	}
	for _, word := range []string{"run", "add", "remove", "status"} {
		if !regexp.MustCompile(`(?m)^\.(B|BI) ` + word + `\b`).MatchString(text) {
			t.Errorf("docs/pollux-witness.8 does not explain %s", word)
		}
	}
}

// BenchmarkIdle is what the process needs while two nodes with 200 resources renew
// and watch, and nothing happens: memory, and share of a processor.
func BenchmarkIdle(b *testing.B) {
	h := newWitnessHost(b)
	office, id := newCluster(b, "office")
	if code, out := h.call("add", "office", office.CAFile()); code != 0 {
		b.Fatal(out)
	}
	_, out := h.call("status")
	c, err := witness.NewClient(witness.ClientConfig{
		Address: h.addr, Fingerprint: regexp.MustCompile(`sha256:[0-9a-f]{64}`).FindString(out), Certificate: id.TLSCertificate(), TTL: 6 * time.Second,
	})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	var names []string
	for i := range 200 {
		names = append(names, fmt.Sprintf("vm-%d", i))
		if _, err := c.Acquire(b.Context(), arbiter.Claim{Resource: names[i], Node: "a", Session: "s", InSync: []string{"a"}, Members: []string{"a"}}); err != nil {
			b.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	for range 2 {
		go c.Watch(ctx, func() {})
	}
	const seconds = 20
	for b.Loop() {
		before := cpuTime(b, h.cmd.Process.Pid)
		for i := range seconds {
			if i%2 == 0 { // TTL/3, of two nodes
				for range 2 {
					if err := c.Renew(ctx, "a", "s"); err != nil {
						b.Fatal(err)
					}
				}
				if _, err := c.Observe(ctx, names...); err != nil {
					b.Fatal(err)
				}
			}
			time.Sleep(time.Second) // it is the time that is measured
		}
		b.ReportMetric(100*(cpuTime(b, h.cmd.Process.Pid)-before).Seconds()/seconds, "%cpu")
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	var kib float64
	if _, err := fmt.Sscan(regexp.MustCompile(`VmHWM:\s+(\d+)`).FindStringSubmatch(string(text))[1], &kib); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(kib/1024, "MiB-peak")
}

// cpuTime is that of a process, user and system.
func cpuTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	var all time.Duration
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(tasks) == 0 {
		b.Fatal("no threads", err)
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue // it has ended
		}
		var ns int64
		if _, err := fmt.Sscan(string(text), &ns); err != nil {
			b.Fatal(err)
		}
		all += time.Duration(ns)
	}
	return all
}
