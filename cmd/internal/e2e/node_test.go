package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// waitLimit bounds every wait for a state of a node. It is generous: a loaded
// machine must not fail a test.
const waitLimit = 25 * time.Second

// A node is one polluxd with its own directory, disks and sockets.
type node struct {
	t    *testing.T
	name string
	dir  string
	addr string   // IP:PORT of the resource
	wrap []string // put before polluxd's command line, e.g. nsenter
	env  []string // added to polluxd's environment
	proc *process // nil while not running
}

// A process is one started polluxd.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // then: how
}

// options of a pair; zero values are small and quick.
type options struct {
	size     int64  // of each backing file, default 32 MiB
	settings string // added to pollux.toml
	global   string // into the resource: net, disk, options, handlers sections
	volumes  string // instead of one volume with internal metadata on disk.img; $DIR is the node's directory
	bare     bool   // neither create-md nor start
	addrs    [2]string
	wrap     [2][]string
}

// A pair is two nodes that hold resource r0 together.
type pair struct {
	t    *testing.T
	a, b *node
	o    options
}

const oneVolume = "device minor 0; disk $DIR/disk.img; meta-disk internal;"

// newPair makes two nodes, starts them, and makes alpha Primary with both
// disks in sync, unless the options say otherwise.
func newPair(t *testing.T, o options) *pair {
	t.Helper()
	p := configured(t, o)
	if o.bare {
		return p
	}
	for _, n := range []*node{p.a, p.b} {
		n.must("create-md", "r0")
		n.start()
	}
	p.wait("connected", func(a, b adm.Resource) bool { return a.Connection == "Connected" && b.Connection == "Connected" })
	p.a.must("primary", "--force", "r0")
	p.inSync()
	return p
}

// configured makes the directories, disks and configuration files of a pair.
func configured(t *testing.T, o options) *pair {
	t.Helper()
	root, err := os.MkdirTemp("", "e2e") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	p := &pair{t: t, o: o}
	// Addresses of our own: no other test or program is in the way.
	x, y := 16+rand.IntN(200), 1+rand.IntN(250)
	for i, to := range []**node{&p.a, &p.b} {
		addr := o.addrs[i]
		if addr == "" {
			addr = fmt.Sprintf("127.%d.%d.%d:7789", x, y, 1+i)
		}
		n := &node{t: t, name: []string{"alpha", "bravo"}[i], addr: addr, wrap: o.wrap[i]}
		n.dir = filepath.Join(root, n.name)
		*to = n
		if err := os.Mkdir(n.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(n.cleanUp)
	}
	for _, n := range []*node{p.a, p.b} {
		n.write("pollux.toml", settings(n.name)+o.settings)
		n.write("r0.res", p.resource(n, o.global))
		if o.volumes == "" {
			n.disk("disk.img", cmp.Or(o.size, 32<<20))
		}
	}
	return p
}

func settings(name string) string {
	return fmt.Sprintf("node-name = %q\nresource-files = [\"*.res\"]\ndrbd-conf = \"\"\nvm-files = []\n"+
		"control-socket = \"ctl\"\nstate-dir = \"state\"\nnbd.socket = \"nbd\"\nlog.format = \"json\"\n", name)
}

// resource is the text of r0.res on node n.
func (p *pair) resource(n *node, extra string) string {
	vols := strings.ReplaceAll(cmp.Or(p.o.volumes, oneVolume), "$DIR", n.dir)
	return fmt.Sprintf("global { disable-ip-verification; usage-count no; }\nresource r0 {\n%s\n%s\non alpha { address %s; }\non bravo { address %s; }\n}\n",
		extra, vols, p.a.addr, p.b.addr)
}

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

func (n *node) write(name, text string) {
	n.t.Helper()
	if err := os.WriteFile(n.path(name), []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) disk(name string, size int64) {
	n.t.Helper()
	f, err := os.Create(n.path(name))
	if err != nil {
		n.t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		n.t.Fatal(err)
	}
}

// launch starts polluxd without waiting for it to be ready.
func (n *node) launch() *process {
	n.t.Helper()
	logFile, err := os.OpenFile(n.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	defer logFile.Close()
	args := append(append([]string{}, n.wrap...), program("polluxd"), "--config", n.path("pollux.toml"))
	p := &process{cmd: exec.Command(args[0], args[1:]...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = logFile, logFile
	p.cmd.Env = append(os.Environ(), n.env...)
	if err := p.cmd.Start(); err != nil {
		n.t.Fatalf("%s: %v", n.name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p
}

// start starts polluxd and waits until it answers and has brought up what it can.
func (n *node) start() {
	n.t.Helper()
	if n.proc != nil {
		n.t.Fatalf("%s runs already", n.name)
	}
	n.proc = n.launch()
	p := n.proc
	poll(n.t, n.name+": polluxd answers", func() bool {
		select {
		case <-p.done:
			n.t.Fatalf("%s: polluxd ended: %v\n%s", n.name, p.err, n.log())
		default:
		}
		st, err := n.statusAll()
		return err == nil && len(st.Resources) > 0 && st.Resources[0].State != adm.StateDown
	})
}

// kill ends polluxd as a crash would.
func (n *node) kill() {
	n.t.Helper()
	n.signal(syscall.SIGKILL)
	<-n.proc.done
	n.proc = nil
}

// stop ends polluxd cleanly and returns how long that took.
func (n *node) stop() time.Duration {
	n.t.Helper()
	began := time.Now()
	n.signal(syscall.SIGTERM)
	select {
	case <-n.proc.done:
	case <-time.After(waitLimit):
		n.t.Fatalf("%s: polluxd does not stop\n%s", n.name, n.log())
	}
	if n.proc.err != nil {
		n.t.Errorf("%s: polluxd ended: %v", n.name, n.proc.err)
	}
	n.proc = nil
	return time.Since(began)
}

func (n *node) signal(s syscall.Signal) {
	n.t.Helper()
	if err := n.proc.cmd.Process.Signal(s); err != nil {
		n.t.Fatalf("%s: %v", n.name, err)
	}
}

func (n *node) cleanUp() {
	if n.proc != nil {
		n.proc.cmd.Process.Signal(syscall.SIGCONT) //nolint:errcheck // it may have ended
		n.proc.cmd.Process.Kill()                  //nolint:errcheck // likewise
		<-n.proc.done
	}
	all := readText(n.path("log"))
	for _, w := range []string{"panic:", "fatal error:", "DATA RACE"} { // the last: GOFLAGS=-race go test
		if i := strings.Index(all, w); i >= 0 {
			n.t.Errorf("%s: polluxd: %s", n.name, all[i:min(len(all), i+4096)])
		}
	}
	if n.t.Failed() {
		n.t.Logf("log of %s:\n%s", n.name, n.log())
	}
}

func (n *node) log() string {
	b, err := os.ReadFile(n.path("log"))
	if err != nil {
		return err.Error()
	}
	const most = 12 << 10
	if len(b) > most {
		b = append([]byte("...\n"), b[len(b)-most:]...)
	}
	return string(b)
}

// result is how a program ended.
type result struct {
	code     int
	out, err string
}

func (r result) String() string {
	return fmt.Sprintf("exit %d\nstdout: %s\nstderr: %s", r.code, r.out, r.err)
}

func run(t *testing.T, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*waitLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
	if ctx.Err() != nil {
		t.Fatalf("%s: no end in %v", strings.Join(args, " "), 2*waitLimit)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	r := run(t, args...)
	if r.code != 0 {
		t.Fatalf("%s: %v", strings.Join(args, " "), r)
	}
	return r.out
}

// adm runs polluxadm on this node.
func (n *node) adm(args ...string) result {
	n.t.Helper()
	return run(n.t, append([]string{program("polluxadm"), "--config", n.path("pollux.toml")}, args...)...)
}

func (n *node) must(args ...string) string {
	n.t.Helper()
	r := n.adm(args...)
	if r.code != 0 {
		n.t.Fatalf("%s: polluxadm %s: %v", n.name, strings.Join(args, " "), r)
	}
	return r.out
}

// refused runs a command that has to fail with this exit code and with all
// of these words in its message, which has to be short and name the resource.
func (n *node) refused(code int, words []string, args ...string) string {
	n.t.Helper()
	r := n.adm(args...)
	what := fmt.Sprintf("%s: polluxadm %s", n.name, strings.Join(args, " "))
	if r.code != code {
		n.t.Errorf("%s: want exit %d, got %v", what, code, r)
	}
	for _, w := range words {
		if !strings.Contains(r.err, w) {
			n.t.Errorf("%s: the message lacks %q: %v", what, w, r)
		}
	}
	if lines := strings.Count(strings.TrimSpace(r.err), "\n"); lines > 2 {
		n.t.Errorf("%s: more than a sentence and its advice: %v", what, r)
	}
	return r.err
}

// call sends one request on the control socket.
func (n *node) call(req adm.Request, data any) error {
	conn, err := net.Dial("unix", n.path("ctl"))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(waitLimit)); err != nil {
		return err
	}
	req.V, req.ID = adm.Version, 1
	line, err := adm.AppendLine(nil, req, adm.MaxRequest)
	if err != nil {
		return err
	}
	if _, err := conn.Write(line); err != nil {
		return err
	}
	if line, err = adm.NewLineReader(conn, adm.MaxResponse).Line(); err != nil {
		return err
	}
	resp, err := adm.DecodeResponse(line)
	if err != nil {
		return err
	}
	if err := resp.Err(); err != nil {
		return err
	}
	if data == nil {
		return nil
	}
	return json.Unmarshal(resp.Data, data)
}

func (n *node) statusAll() (adm.Status, error) {
	var st adm.Status
	err := n.call(adm.Request{Cmd: adm.CmdStatus}, &st)
	return st, err
}

// status is the status of r0.
func (n *node) status() adm.Resource { return n.statusOf("r0") }

func (n *node) statusOf(name string) adm.Resource {
	n.t.Helper()
	var st adm.Status
	if err := n.call(adm.Request{Cmd: adm.CmdStatus, Resource: name}, &st); err != nil {
		n.t.Fatalf("%s: status: %v\n%s", n.name, err, n.log())
	}
	return st.Resources[0]
}

// poll waits until cond holds.
func poll(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(waitLimit)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain: %s", waitLimit, what)
		}
		time.Sleep(20 * time.Millisecond) // other processes have no channel to wait on
	}
}

// wait waits for a state of r0 on this node.
func (n *node) wait(what string, cond func(adm.Resource) bool) adm.Resource {
	n.t.Helper()
	var st adm.Resource
	deadline := time.Now().Add(waitLimit)
	for {
		if st = n.status(); cond(st) {
			return st
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("%s: waited in vain: %s\n%+v\n%s", n.name, what, st, n.log())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// wait waits for a state of both nodes.
func (p *pair) wait(what string, cond func(a, b adm.Resource) bool) {
	p.t.Helper()
	deadline := time.Now().Add(waitLimit)
	for {
		a, b := p.a.status(), p.b.status()
		if cond(a, b) {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("waited in vain: %s\nalpha: %+v\nbravo: %+v", what, a, b)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// healthy reports whether a resource is connected with good data on both sides.
func healthy(r adm.Resource) bool {
	if r.Connection != "Connected" {
		return false
	}
	for _, v := range r.Volumes {
		if v.Disk != "UpToDate" || v.PeerDisk != "UpToDate" || v.Resync != nil || v.OutOfSyncBytes != 0 {
			return false
		}
	}
	return true
}

// inSync waits until both nodes say that they hold the same data.
func (p *pair) inSync() {
	p.t.Helper()
	p.wait("both in sync", func(a, b adm.Resource) bool { return healthy(a) && healthy(b) })
}

// uri is the NBD address of an export.
func (n *node) uri(export string) string { return "nbd+unix:///" + export + "?socket=" + n.path("nbd") }

// equalDisks stops both nodes and compares their backing files, the metadata
// at the end left out.
func (p *pair) equalDisks(file string, usable int64) {
	p.t.Helper()
	for _, n := range []*node{p.a, p.b} {
		if n.proc != nil {
			n.stop()
		}
	}
	equalFiles(p.t, p.a.path(file), p.b.path(file), usable)
}

func equalFiles(t *testing.T, a, b string, size int64) {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	x, y = x[:size], y[:size]
	if bytes.Equal(x, y) {
		return
	}
	differ, first := 0, -1
	for i := 0; i < len(x); i += 4096 {
		end := min(i+4096, len(x))
		if !bytes.Equal(x[i:end], y[i:end]) {
			differ++
			if first < 0 {
				first = i
			}
		}
	}
	t.Errorf("%s and %s differ in %d blocks of 4 KiB, the first at byte %d", a, b, differ, first)
}
