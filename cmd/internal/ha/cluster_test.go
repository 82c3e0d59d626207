package ha

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-project/pollux/cmd/internal/metacli"
	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/protocol/adm"
)

// A host is one node of a test: processes of their own, on a loopback address of
// their own.
type host struct {
	t       *testing.T
	name    string
	dir     string
	ip      string
	witness bool
	procs   map[string]*exec.Cmd
}

// network keeps tests that run at the same time apart: 127.X.Y.0/24.
var network atomic.Int32

// newCluster starts two data nodes, with arbiter etcd also a witness, each with a
// member of etcd, and returns when the VM runs.
func newCluster(t *testing.T, arbiter string) []*host {
	t.Helper()
	if testing.Short() {
		t.Skip("runs real processes for seconds")
	}
	t.Parallel()
	net := fmt.Sprintf("127.%d.%d", 20+os.Getpid()%200, network.Add(1))
	var hosts []*host
	names := []string{"a", "b", "c"}
	if arbiter != conf.ArbiterEtcd {
		names = names[:2]
	}
	for i, name := range names {
		h := &host{t: t, name: name, dir: filepath.Join(t.TempDir(), name), ip: fmt.Sprintf("%s.%d", net, i+1), witness: name == "c", procs: map[string]*exec.Cmd{}}
		if err := os.MkdirAll(h.path("run"), 0o700); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(h.power)
		hosts = append(hosts, h)
	}
	a, b := hosts[0], hosts[1]
	for _, h := range hosts {
		h.configure(a, b)
	}
	for _, h := range hosts {
		if !h.witness {
			h.start("polluxd", "--config", h.path("pollux.toml"))
		}
		h.start("polluxha", h.path("pollux.toml"))
	}
	a.daemonUntil("the copies to be connected", func(r adm.Resource) bool { return r.Connection == "Connected" })
	zero := 0
	a.daemon(adm.Request{Cmd: adm.CmdNewCurrentUUID, Resource: "web", Volume: &zero, Args: adm.Args{ClearBitmap: true}}, nil)
	a.daemonUntil("the copies to be equal", func(r adm.Resource) bool {
		return r.Volumes[0].Disk == "UpToDate" && r.Volumes[0].PeerDisk == "UpToDate"
	})
	a.ask(adm.HARequest{Cmd: adm.HAClusterInit, Args: adm.HAArgs{
		Cluster: "test", Links: []string{a.ip + ":7790"}, Arbiter: arbiter,
		ArbiterOptions: map[string]string{
			"ttl": "3s", "unsafe-short-ttl": "true", "keepalive": "200ms", "warntime": "1s", "deadtime": "3s", "initdead": "6s",
		},
	}}, nil)
	for _, h := range hosts[1:] {
		kind := adm.NodeData
		if h.witness {
			kind = adm.NodeWitness
		}
		var token adm.HAToken
		a.ask(adm.HARequest{Cmd: adm.HAClusterToken, Node: h.name, Args: adm.HAArgs{Kind: kind, Links: []string{h.ip + ":7790"}}}, &token)
		h.ask(adm.HARequest{Cmd: adm.HAClusterJoin, Args: adm.HAArgs{Token: token.Token}}, nil)
	}
	until(t, time.Minute, "the VM to run, well protected", func() string {
		var vms adm.HAVMs
		b.ask(adm.HARequest{Cmd: adm.HAVMStatus, VM: "web"}, &vms)
		vm := vms.VMs[0]
		if vm.State != adm.VMRunning || vm.Level != adm.HALevelOK && arbiter != conf.ArbiterManual || len(vm.Resources[0].InSync) != 2 {
			return fmt.Sprintf("%+v", vm)
		}
		return ""
	})
	return hosts
}

func (h *host) path(name string) string { return filepath.Join(h.dir, name) }

func (h *host) configure(a, b *host) {
	h.t.Helper()
	files := map[string]string{"pollux.toml": fmt.Sprintf(`node-name = %q
resource-files = ["*.res"]
vm-files = ["*.vm.toml"]
drbd-conf = ""
control-socket = "run/d.sock"
state-dir = "state"
[nbd]
socket = "run/nbd.sock"
[ha]
socket = "run/ha.sock"
embedded-etcd = true
[log]
level = "debug"
format = "console"
`, h.name)}
	if !h.witness {
		files["pollux.toml"] += "[resource.web]\nmanager = \"internal\"\n"
		files["web.vm.toml"] = "name = \"web\"\nresources = [\"web\"]\nprefer = { a = 100, b = 1 }\n"
		files["web.res"] = fmt.Sprintf(`global { disable-ip-verification; }
resource web {
  device /dev/drbd1 minor 1; meta-disk internal;
  net { protocol C; connect-int 1; ping-int 1; ping-timeout 10; timeout 15; }
  on a { disk %q; address ipv4 %s:7788; }
  on b { disk %q; address ipv4 %s:7788; }
}
`, a.path("disk"), a.ip, b.path("disk"), b.ip)
	}
	for name, text := range files {
		if err := os.WriteFile(h.path(name), []byte(text), 0o600); err != nil {
			h.t.Fatal(err)
		}
	}
	if h.witness {
		return
	}
	if err := os.WriteFile(h.path("disk"), make([]byte, 8<<20), 0o600); err != nil {
		h.t.Fatal(err)
	}
	h.createMD()
}

func (h *host) createMD() {
	h.t.Helper()
	var out strings.Builder
	if code := metacli.Run(metacli.Env{
		Args: []string{"polluxmeta", "--force", "1", "v08", h.path("disk"), "internal", "create-md"}, Stdout: &out, Stderr: &out, Stdin: strings.NewReader(""), Now: time.Now,
	}); code != 0 {
		h.t.Fatalf("create-md: %d\n%s", code, out.String())
	}
}

// start runs the test's program as another one.
func (h *host) start(program string, args ...string) {
	h.t.Helper()
	log, err := os.OpenFile(h.path(program+".log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), role+"="+program)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.procs[program] = cmd
	socket := map[string]string{"polluxd": "run/d.sock", "polluxha": "run/ha.sock"}[program]
	until(h.t, 20*time.Second, program+" on "+h.name+" to answer", func() string {
		c, err := net.Dial("unix", h.path(socket))
		if err != nil {
			return err.Error()
		}
		c.Close()
		return ""
	})
}

// kill ends programs with SIGKILL, all at once.
func (h *host) kill(programs ...string) {
	for _, p := range programs {
		if cmd := h.procs[p]; cmd != nil {
			cmd.Process.Kill() //nolint:errcheck // it may have ended
		}
	}
	for _, p := range programs {
		if cmd := h.procs[p]; cmd != nil {
			cmd.Wait() //nolint:errcheck // killed
			delete(h.procs, p)
		}
	}
}

func (h *host) signal(program string, s syscall.Signal) {
	h.t.Helper()
	if err := h.procs[program].Process.Signal(s); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) guest() *processWork { return &processWork{dir: h.dir, name: "web"} }

// power cuts it: everything on the host ends.
func (h *host) power() {
	h.kill("polluxd", "polluxha")
	if n, ok := h.guest().running(); ok {
		syscall.Kill(n.PID, syscall.SIGKILL) //nolint:errcheck // it may have ended
	}
	if h.t.Failed() {
		for _, name := range []string{"polluxha.log", "polluxd.log"} {
			text, _ := os.ReadFile(h.path(name))
			h.t.Logf("%s of %s:\n%s", name, h.name, tail(string(text), 8<<10))
		}
	}
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// ask sends a request to polluxha and fails the test if it is refused.
func (h *host) ask(req adm.HARequest, data any) {
	h.t.Helper()
	if err := h.try(req, data); err != nil {
		h.t.Fatalf("%s: %s: %v", h.name, req.Cmd, err)
	}
}

func (h *host) try(req adm.HARequest, data any) error {
	c, err := net.Dial("unix", h.path("run/ha.sock"))
	if err != nil {
		return err
	}
	defer c.Close()
	req.V, req.ID = adm.Version, 1
	line, err := adm.AppendLine(nil, req, adm.MaxRequest)
	if err == nil {
		_, err = c.Write(line)
	}
	if err != nil {
		return err
	}
	lines := adm.NewLineReader(c, adm.MaxResponse)
	for {
		line, err := lines.Line()
		if err != nil {
			return err
		}
		m, err := adm.DecodeHAMessage(line)
		switch {
		case err != nil:
			return err
		case m.Progress != nil:
			continue
		case m.Err() != nil:
			return m.Err()
		case data == nil:
			return nil
		}
		return json.Unmarshal(m.Data, data)
	}
}

func (h *host) daemon(req adm.Request, data any) {
	h.t.Helper()
	p := &polluxd{socket: h.path("run/d.sock")}
	defer p.close()
	if err := p.do(context.Background(), req, data); err != nil {
		h.t.Fatalf("%s: %s: %v", h.name, req.Cmd, err)
	}
}

func (h *host) daemonUntil(what string, fits func(adm.Resource) bool) {
	h.t.Helper()
	until(h.t, 30*time.Second, what, func() string {
		var st adm.Status
		h.daemon(adm.Request{Cmd: adm.CmdStatus, Resource: "web"}, &st)
		if !fits(st.Resources[0]) {
			return fmt.Sprintf("%+v", st.Resources[0])
		}
		return ""
	})
}

// until waits for a condition: why says what is missing, "" that it holds.
func until(t *testing.T, limit time.Duration, what string, why func() string) {
	t.Helper()
	end := time.Now().Add(limit)
	for {
		missing := why()
		if missing == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited %v for %s: %s", limit, what, missing)
		}
		time.Sleep(20 * time.Millisecond) // other processes are waited for
	}
}

// An entry is one line of a guest's ledger.
type entry struct {
	at     time.Time
	what   string
	number uint64
}

func (h *host) ledger() []entry {
	h.t.Helper()
	f, err := os.Open(h.guest().ledger())
	if err != nil {
		return nil
	}
	defer f.Close()
	var list []entry
	for sc := bufio.NewScanner(f); sc.Scan(); {
		w := strings.Fields(sc.Text())
		if len(w) != 3 {
			continue // cut off by a kill
		}
		ns, err := strconv.ParseInt(w[0], 10, 64)
		if err != nil {
			h.t.Fatal(err)
		}
		n, err := strconv.ParseUint(w[2], 10, 64)
		if err != nil {
			h.t.Fatal(err)
		}
		list = append(list, entry{time.Unix(0, ns), w[1], n})
	}
	return list
}

// acked is the last number that was acknowledged to a guest on this host.
func (h *host) acked() uint64 {
	list := h.ledger()
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].what == "acked" {
			return list[i].number
		}
	}
	return 0
}

// pause is the longest time between two acknowledgements since a moment, and when
// it ended.
func (h *host) pause(since time.Time) time.Duration {
	var last time.Time
	longest := time.Duration(0)
	for _, e := range h.ledger() {
		if e.what != "acked" {
			continue
		}
		if !last.IsZero() && e.at.After(since) {
			longest = max(longest, e.at.Sub(last))
		}
		last = e.at
	}
	return longest
}

// A host dies: the other one takes over, and nothing that was acknowledged is lost.
func TestClusterFailsOver(t *testing.T) {
	hosts := newCluster(t, conf.ArbiterEtcd)
	a, b := hosts[0], hosts[1]
	until(t, 10*time.Second, "some writes", func() string {
		if a.acked() < 100 {
			return fmt.Sprint(a.acked())
		}
		return ""
	})
	killed := time.Now()
	a.power()
	last := a.acked()
	until(t, 40*time.Second, "writes on b", func() string {
		if b.acked() <= last {
			return fmt.Sprintf("%d on b, %d on a", b.acked(), last)
		}
		return ""
	})
	first := b.ledger()[0]
	t.Logf("taken over %.2f s after the kill; the last number acknowledged on a was %d, b began with %d", first.at.Sub(killed).Seconds(), last, first.number)
	if first.what != "read" || first.number < last {
		t.Errorf("%d was acknowledged on a, b began with %s %d", last, first.what, first.number)
	}

	// The dead host returns: it is a follower, gets what it lacks, and takes nothing back.
	a.start("polluxd", "--config", a.path("pollux.toml"))
	a.start("polluxha", a.path("pollux.toml"))
	until(t, time.Minute, "both copies to count again", func() string {
		var vms adm.HAVMs
		a.ask(adm.HARequest{Cmd: adm.HAVMStatus, VM: "web"}, &vms)
		if vm := vms.VMs[0]; vm.State != adm.VMRunning || vm.Node != "b" || len(vm.Resources[0].InSync) != 2 {
			return fmt.Sprintf("%+v", vm)
		}
		return ""
	})
	if _, ok := a.guest().running(); ok {
		t.Error("the guest runs on both hosts")
	}

	// A planned move goes back, and loses nothing either. A broken file changes nothing.
	if err := os.WriteFile(b.path("bad.vm.toml"), []byte("name = 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.try(adm.HARequest{Cmd: adm.HAReload}, nil); err == nil || !strings.Contains(err.Error(), "bad.vm.toml:1") {
		t.Errorf("reload of a broken file: %v", err)
	}
	if err := os.Remove(b.path("bad.vm.toml")); err != nil {
		t.Fatal(err)
	}
	b.ask(adm.HARequest{Cmd: adm.HAReload}, nil)
	b.ask(adm.HARequest{Cmd: adm.HAVMMove, VM: "web", Node: "a"}, nil)
	last = b.acked()
	list := a.ledger()
	until(t, 20*time.Second, "writes on a", func() string {
		if a.acked() <= last {
			return fmt.Sprintf("%d on a, %d on b", a.acked(), last)
		}
		return ""
	})
	again := a.ledger()[len(list):]
	for _, e := range again {
		if e.what == "read" && e.number < last {
			t.Errorf("moved back: %d was acknowledged on b, a began with %d", last, e.number)
		}
	}

	// a goes down in good order: the guest moves away, and nobody waits for a lease.
	start := time.Now()
	a.ask(adm.HARequest{Cmd: adm.HANodeLeave}, nil)
	last = a.acked()
	if _, ok := a.guest().running(); ok {
		t.Error("the guest runs on a node that has left")
	}
	until(t, 20*time.Second, "writes on b", func() string {
		if b.acked() <= last {
			return fmt.Sprintf("%d on b, %d on a", b.acked(), last)
		}
		return ""
	})
	t.Logf("left in %v", time.Since(start))
}

// The peer dies: the Primary asks and goes on within half a second. Its manager
// dies, is killed again and comes back: nothing is noticed.
func TestClusterGoesOnAlone(t *testing.T) {
	hosts := newCluster(t, conf.ArbiterEtcd)
	a, b := hosts[0], hosts[1]

	start := time.Now()
	before, _ := a.guest().running()
	for range 3 {
		a.kill("polluxha")
		time.Sleep(200 * time.Millisecond) // for whatever might happen meanwhile
		a.start("polluxha", a.path("pollux.toml"))
	}
	until(t, 20*time.Second, "the new manager to see the VM", func() string {
		var vms adm.HAVMs
		a.ask(adm.HARequest{Cmd: adm.HAVMStatus, VM: "web"}, &vms)
		if vm := vms.VMs[0]; vm.State != adm.VMRunning || vm.Node != "a" {
			return fmt.Sprintf("%+v", vm)
		}
		return ""
	})
	after, ok := a.guest().running()
	if !ok || after != before {
		t.Errorf("the guest was %+v, is %+v", before, after)
	}
	if p := a.pause(start); p > time.Second {
		t.Errorf("a crash of polluxha held I/O up for %v", p)
	}
	until(t, 20*time.Second, "the cluster to be well", func() string {
		var c adm.HACluster
		a.ask(adm.HARequest{Cmd: adm.HAClusterStatus}, &c)
		if c.Level != adm.HALevelOK {
			return c.Verdict
		}
		return ""
	})

	// Told to stop while nobody answers, it does not wait for the others' etcd.
	for _, h := range hosts[1:] {
		h.signal("polluxha", syscall.SIGSTOP)
	}
	stopping := time.Now()
	a.signal("polluxha", syscall.SIGTERM)
	err := a.procs["polluxha"].Wait()
	if took := time.Since(stopping); err != nil || took > endLimit+2*time.Second {
		t.Errorf("polluxha took %v to end: %v", took, err)
	}
	for _, h := range hosts[1:] {
		h.signal("polluxha", syscall.SIGCONT)
	}
	a.start("polluxha", a.path("pollux.toml"))
	if after, ok := a.guest().running(); !ok || after != before {
		t.Errorf("the guest was %+v, is %+v", before, after)
	}
	until(t, 30*time.Second, "the cluster to be well again", func() string {
		var c adm.HACluster
		a.ask(adm.HARequest{Cmd: adm.HAClusterStatus}, &c)
		if c.Level != adm.HALevelOK {
			return c.Verdict
		}
		return ""
	})

	// Only polluxd: with the host etcd's leader may die, and be elected anew first.
	start = time.Now()
	at := a.acked()
	b.kill("polluxd")
	until(t, 20*time.Second, "I/O alone", func() string {
		if n := a.acked(); n < at+200 {
			return fmt.Sprint(n)
		}
		return ""
	})
	p := a.pause(start)
	t.Logf("the peer's death held I/O up for %v", p)
	if p > 5*time.Second { // 13 ms on a quiet machine; here etcd shares its disk with other tests
		t.Errorf("the peer's death held I/O up for %v", p)
	}
}

// A drill kills the owner's node for a while, and says how long a client waited.
func TestClusterDrill(t *testing.T) {
	hosts := newCluster(t, conf.ArbiterEtcd)
	a, b := hosts[0], hosts[1]
	until(t, 30*time.Second, "b to have heard of the third voter", func() string {
		var vms adm.HAVMs
		b.ask(adm.HARequest{Cmd: adm.HAVMStatus, VM: "web"}, &vms)
		if p := vms.VMs[0].Protection; !strings.HasSuffix(p, "a host") {
			return p
		}
		return ""
	})
	drill := adm.HARequest{Cmd: adm.HADrill, VM: "web", Args: adm.HAArgs{Kill: "primary"}}
	for _, tt := range []struct {
		on   *host
		want string
	}{{a, "on b"}, {b, "without any warning"}} {
		if err := tt.on.try(drill, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("on %s, not confirmed: %v, want %q", tt.on.name, err, tt.want)
		}
	}
	drill.Args.Confirm = "web"
	last := a.acked()
	var result adm.HADrillResult
	b.ask(drill, &result)
	t.Logf("%+v", result)
	if result.From != "a" || result.To != "b" || result.OutageMS <= 0 || len(result.Marks) < 3 {
		t.Errorf("the result is %+v", result)
	}
	until(t, 20*time.Second, "writes on b", func() string {
		if b.acked() <= last {
			return fmt.Sprint(b.acked())
		}
		return ""
	})
	if _, ok := a.guest().running(); ok {
		t.Error("the guest runs on a as well")
	}
	// polluxha of a is the same process all the time, and a member again afterwards.
	until(t, time.Minute, "a to be back", func() string {
		var c adm.HACluster
		if err := a.try(adm.HARequest{Cmd: adm.HAClusterStatus}, &c); err != nil {
			return err.Error()
		}
		for _, n := range c.Nodes {
			if !n.Online {
				return n.Name + ": " + n.Why
			}
		}
		return ""
	})
}

// Without a third party: a node that loses its peer goes on, and the other one never
// takes over by itself, only by an operator who answers for it by name.
func TestClusterManual(t *testing.T) {
	hosts := newCluster(t, conf.ArbiterManual)
	a, b := hosts[0], hosts[1]
	status := func() (vm adm.HAVM) {
		var vms adm.HAVMs
		b.ask(adm.HARequest{Cmd: adm.HAVMStatus, VM: "web"}, &vms)
		return vms.VMs[0]
	}
	until(t, 10*time.Second, "some writes", func() string {
		if a.acked() < 100 {
			return fmt.Sprint(a.acked())
		}
		return ""
	})
	drill := adm.HARequest{Cmd: adm.HADrill, VM: "web", Args: adm.HAArgs{Kill: "primary", Confirm: "web"}}
	if err := b.try(drill, nil); err == nil || !strings.Contains(err.Error(), "nobody would take it over") {
		t.Fatalf("a drill that would be an outage: %v", err)
	}
	a.power()
	last := a.acked()
	until(t, 30*time.Second, "b to say that it is a person's turn", func() string {
		if vm := status(); vm.State != adm.VMBlocked && vm.State != adm.VMUnknown {
			return fmt.Sprintf("%+v", vm)
		}
		return ""
	})
	time.Sleep(5 * time.Second) // longer than all times of this cluster: nothing happens
	if _, ok := b.guest().running(); ok {
		t.Fatal("b has taken over by itself")
	}
	vm := status()
	t.Logf("%s: %s %s; %s", vm.State, vm.Why, vm.Advice, vm.Protection)
	if vm.Why == "" || !strings.Contains(vm.Protection, "not against") {
		t.Errorf("it is told: %+v", vm)
	}

	failover := adm.HARequest{Cmd: adm.HAVMFailover, VM: "web", Args: adm.HAArgs{PeerIsDown: "a"}}
	if err := b.try(failover, nil); err == nil || !strings.Contains(err.Error(), "web") {
		t.Errorf("failover without the name: %v", err)
	} else {
		t.Logf("without the name: %v", err)
	}
	failover.Args.Confirm = "web"
	b.ask(failover, nil)
	until(t, 20*time.Second, "writes on b", func() string {
		if b.acked() <= last {
			return fmt.Sprintf("%d on b, %d on a", b.acked(), last)
		}
		return ""
	})
	audit, err := os.ReadFile(b.path("state/ha-audit.jsonl"))
	if err != nil || !strings.Contains(string(audit), `"peer":"a"`) {
		t.Errorf("the audit log has %q, %v", audit, err)
	}
}
