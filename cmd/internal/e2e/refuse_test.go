package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// ends waits for a polluxd that must not start and returns its exit code.
func (n *node) ends() int {
	n.t.Helper()
	p := n.launch()
	select {
	case <-p.done:
	case <-time.After(waitLimit):
		p.cmd.Process.Kill() //nolint:errcheck // it may end right now
		<-p.done
		n.t.Fatalf("%s: polluxd runs although it should not\n%s", n.name, n.log())
	}
	return p.cmd.ProcessState.ExitCode()
}

func TestE2EWrongConfig(t *testing.T) {
	begin(t)
	const hosts = "resource r0 { device minor 0; disk /x; meta-disk internal;\n\ton alpha { address 127.0.0.1:7788; }\n\ton bravo { address 127.0.0.2:7788; }\n"
	for _, tt := range []struct {
		name, file, text string
		want             []string
	}{
		{"unknown word", "r0.res", hosts + "\tnet { tiemout 60; }\n}\n", []string{"r0.res:4:8: ", "tiemout"}},
		{"bad number", "r0.res", hosts + "\tnet { timeout many; }\n}\n", []string{"r0.res:4:16: ", `"many"`, "expected 1 to 600"}},
		{"missing brace", "r0.res", hosts + "\tnet { timeout 60;\n", []string{"r0.res:"}},
		{"unknown key", "pollux.toml", "node-name = \"alpha\"\nresource-file = []\n", []string{"pollux.toml:2:1: ", "resource-file"}},
		{"bad toml", "pollux.toml", "node-name = alpha\n", []string{"pollux.toml:1:13: "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPair(t, options{bare: true})
			p.a.t = t
			p.a.write(tt.file, tt.text)
			if code := p.a.ends(); code != 10 {
				t.Errorf("polluxd: exit %d", code)
			}
			got := strings.TrimSpace(p.a.log())
			for _, w := range tt.want {
				if !strings.Contains(got, w) {
					t.Errorf("the message lacks %q: %s", w, got)
				}
			}
			if strings.Contains(got, "\n") {
				t.Errorf("more than a line: %s", got)
			}
			for _, f := range []string{"ctl", "nbd", "state"} {
				if _, err := os.Stat(p.a.path(f)); err == nil {
					t.Errorf("%s was made although nothing should start", f)
				}
			}
			if r := p.a.adm("sh-nop"); r.code != 10 || !strings.Contains(r.err, tt.want[0]) {
				t.Errorf("polluxadm sh-nop: %v", r)
			}
		})
	}
}

func TestE2ENoDaemon(t *testing.T) {
	begin(t)
	p := newPair(t, options{bare: true})
	for _, cmd := range []string{"up", "primary", "secondary", "connect", "attach", "status", "role", "cstate", "wait-connect"} {
		p.a.refused(20, []string{"polluxd is not running", "systemctl start polluxd"}, cmd, "r0")
	}
	p.a.must("down", "r0")
	p.a.must("create-md", "r0") // and what needs no daemon works
	p.a.must("dump-md", "r0")
	if out := p.a.must("dstate", "r0"); out != "Inconsistent\n" {
		t.Errorf("dstate from the metadata: %q", out)
	}
}

func TestE2EStateRefusals(t *testing.T) {
	begin(t, "qemu-io")
	p := newPair(t, options{global: quick})
	for _, cmd := range []string{"primary", "secondary", "connect", "disconnect", "attach", "detach", "invalidate", "outdate", "role", "cstate", "up", "adjust"} {
		p.a.refused(1, []string{"'nosuch' not defined in your config"}, cmd, "nosuch") // drbdadm's words and status
	}
	p.a.refused(10, []string{"nosuch: No such resource"}, "status", "nosuch")
	p.a.refused(1, []string{"'r0' has no volume 7"}, "detach", "r0/7")

	// One Primary only; nothing is half-done.
	p.b.refused(11, []string{"r0: State change failed: (-1) Multiple primaries not allowed by config", "polluxadm secondary r0"}, "primary", "r0")
	p.b.refused(11, []string{"(-1)"}, "primary", "--force", "r0")
	if st := p.b.status(); st.Role != "Secondary" || !healthy(st) {
		t.Errorf("after the refusal: %+v", st)
	}
	if r := run(t, "qemu-io", "-f", "raw", "-c", "read 0 512", p.b.uri("r0")); r.code == 0 || !strings.Contains(r.err, "this node is not Primary: run `polluxadm primary r0`") {
		t.Errorf("the export of a Secondary: %v", r)
	}

	// Secondary is refused while a client is connected.
	conn, err := openNBD(p.a.path("nbd"), "r0")
	if err != nil {
		t.Fatal(err)
	}
	p.a.refused(11, []string{"r0: State change failed: (-12) Device is held open by someone", "polluxadm status r0"}, "secondary", "r0")
	p.a.refused(11, []string{"(-12)"}, "down", "r0")
	if st := p.a.status(); st.Role != "Primary" || !healthy(st) || st.Volumes[0].OpenCount != 1 {
		t.Errorf("after the refusal: %+v", st)
	}
	conn.Close()
	p.a.wait("the client is gone", func(a adm.Resource) bool { return a.Volumes[0].OpenCount == 0 })
	p.a.must("secondary", "r0")
	p.a.must("secondary", "r0") // already so

	// Other wrong states.
	p.a.refused(11, []string{"r0", "(-6)"}, "outdate", "r0")
	p.a.refused(10, []string{"r0", "(124)"}, "attach", "r0")
	p.a.must("up", "r0") // up already
	p.b.must("disconnect", "r0")
	p.a.wait("the peer has left", func(a adm.Resource) bool { return a.Connection != "Connected" })
	p.b.refused(11, []string{"r0"}, "invalidate-remote", "r0")
	p.b.must("outdate", "r0")
	p.b.refused(17, []string{"r0: State change failed: (-2) Need access to UpToDate data", "--force"}, "primary", "r0")
	if st := p.b.status(); st.Role != "Secondary" || st.Volumes[0].Disk != "Outdated" {
		t.Errorf("after the refusal: %+v", st)
	}
	p.b.must("connect", "r0")
	p.inSync()
	p.b.must("down", "r0")
	p.b.must("down", "r0")
	p.b.refused(10, []string{"r0", "(158)", "polluxadm up r0"}, "primary", "r0")
	p.b.must("up", "r0")
	p.inSync()
}

// A peer that was never there.
func TestE2EMissingPeer(t *testing.T) {
	begin(t)
	p := newPair(t, options{bare: true})
	p.a.must("create-md", "r0")
	p.a.start()
	if out := p.a.must("cstate", "r0"); out != "WFConnection\n" {
		t.Errorf("cstate: %q", out)
	}
	p.a.refused(17, []string{"r0", "(-2)", "polluxadm primary --force r0"}, "primary", "r0")
	began := time.Now()
	p.a.refused(5, []string{"r0"}, "wait-connect", "--timeout=1s", "r0")
	if d := time.Since(began); d < 900*time.Millisecond || d > 5*time.Second {
		t.Errorf("wait-connect waited %v", d)
	}
	r := p.a.adm("status", "r0")
	if r.code != 0 || !strings.Contains(r.out, "bravo") || !strings.Contains(r.out, "not connected") {
		t.Errorf("status: %v", r)
	}
	p.a.must("primary", "--force", "r0")
	if out := p.a.must("dstate", "r0"); out != "UpToDate/DUnknown\n" {
		t.Errorf("dstate: %q", out)
	}
}

// Two daemons on one disk or one state directory.
func TestE2EBusy(t *testing.T) {
	begin(t)
	p := newPair(t, options{bare: true, global: quick})
	p.a.must("create-md", "r0")
	p.b.write("r0.res", strings.ReplaceAll(p.resource(p.b, quick), p.b.dir+"/disk.img", p.a.dir+"/disk.img"))
	p.a.start()
	p.b.start()
	st := p.b.status()
	if st.State != adm.StateFailed || !strings.Contains(st.Reason, "(114)") || !strings.Contains(st.Reason, p.a.path("disk.img")) {
		t.Errorf("a second polluxd on the same disk: %+v", st)
	}
	if holder := fmt.Sprintf("process %d (polluxd) has it open", p.a.proc.cmd.Process.Pid); !strings.Contains(st.Reason, holder) {
		t.Errorf("the refusal does not say %q: %s", holder, st.Reason)
	}
	p.b.refused(10, []string{"r0", "(114)", p.a.path("disk.img")}, "up", "r0")
	// The same of a metadata device.
	p.b.disk("disk.img", 32<<20)
	p.b.write("r0.res", strings.ReplaceAll(p.resource(p.b, quick), "meta-disk internal", "flexible-meta-disk "+p.a.path("disk.img")))
	p.b.refused(10, []string{"r0", "(114)", "metadata device", p.a.path("disk.img"), "(polluxd) has it open"}, "up", "r0")
	p.b.write("r0.res", strings.ReplaceAll(p.resource(p.b, quick), p.b.dir+"/disk.img", p.a.dir+"/disk.img"))
	p.b.refused(10, []string{"r0", "(114)"}, "up", "r0")
	if r := p.b.adm("status", "r0"); r.code != 0 || !strings.Contains(r.out, "(114)") {
		t.Errorf("status does not say why: %v", r)
	}
	for _, cmd := range []string{"create-md", "wipe-md"} {
		if r := p.b.adm(cmd, "--force", "r0"); r.code != 20 || !strings.Contains(r.err, p.a.path("disk.img")) {
			t.Errorf("%s of a disk in use: %v", cmd, r)
		}
	}
	if st := p.a.status(); st.State != adm.StateUp || st.Volumes[0].Disk != "Inconsistent" {
		t.Errorf("the owner of the disk: %+v", st)
	}
	if code := p.a.ends(); code != 20 {
		t.Errorf("a second polluxd in the state directory: exit %d", code)
	}
	if log := p.a.log(); !strings.Contains(log, "another polluxd (process ") {
		t.Errorf("the log does not say why: %s", log)
	}
	p.a.must("status", "r0") // the first one still answers
	p.a.stop()
	p.b.must("up", "r0") // and when it is gone the disk is free
}

func TestE2EBadDisks(t *testing.T) {
	begin(t, "mkfs.ext4")
	p := newPair(t, options{bare: true, volumes: "device minor 0; disk $DIR/disk.img; meta-disk internal;"})
	n := p.a
	n.start()
	failed := func(what string, words ...string) {
		t.Helper()
		n.refused(10, append([]string{"r0"}, words...), "up", "r0")
		if st := n.status(); st.State != adm.StateFailed {
			t.Errorf("%s: %+v", what, st)
		}
		n.refused(10, []string{"r0", "(158)"}, "primary", "--force", "r0")
		r := n.adm("status", "r0")
		for _, w := range words {
			if !strings.Contains(r.out, w) {
				t.Errorf("%s: status lacks %q: %v", what, w, r)
			}
		}
	}
	failed("no disk", "(104)", n.path("disk.img"))
	n.disk("disk.img", 32<<20)
	failed("no metadata", "(119)", "polluxadm create-md r0")
	n.disk("disk.img", 64<<10)
	failed("a tiny disk", "(111)", n.path("disk.img"))
	if r := n.adm("create-md", "r0"); r.code != 10 {
		t.Errorf("create-md on a tiny disk: %v", r)
	}

	// A disk with a file system.
	n.disk("disk.img", 32<<20)
	mustRun(t, "mkfs.ext4", "-q", "-F", n.path("disk.img"))
	before := hash(t, n.path("disk.img"))
	if r := n.adm("create-md", "r0"); r.code != 40 || !strings.Contains(r.err+r.out, "ext4") {
		t.Errorf("create-md on a file system: %v", r)
	}
	if hash(t, n.path("disk.img")) != before {
		t.Error("create-md has changed a disk that it refused")
	}
	failed("a file system", "(119)")
	if hash(t, n.path("disk.img")) != before {
		t.Error("up has changed a disk without metadata")
	}

	// Metadata that is damaged, and of a newer DRBD.
	n.disk("disk.img", 32<<20)
	n.must("create-md", "r0")
	n.must("up", "r0")
	n.must("down", "r0")
	f, err := os.OpenFile(n.path("disk.img"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const super = 32<<20 - 4096
	if _, err := f.WriteAt([]byte{0xff, 0xff, 0xff, 0xff}, super+64); err != nil { // magic and what follows
		t.Fatal(err)
	}
	failed("damaged metadata", "(119)", "create-md")
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(32 << 20); err != nil {
		t.Fatal(err)
	}
	// A second create-md of a disk with metadata asks first.
	n.must("create-md", "r0")
	if r := n.adm("create-md", "r0"); r.code != 1 {
		t.Errorf("create-md over metadata without a terminal: %v", r)
	}
	n.must("create-md", "--force", "r0")
	n.must("up", "r0")

	// Metadata of a disk that has shrunk.
	n.must("down", "r0")
	if err := f.Truncate(24 << 20); err != nil {
		t.Fatal(err)
	}
	failed("a disk that has shrunk")
}

func hash(t *testing.T, path string) string {
	t.Helper()
	return strings.Fields(mustRun(t, "sha256sum", path))[0]
}

// A port that somebody else listens on, and one resource among others.
func TestE2EPortInUse(t *testing.T) {
	begin(t)
	p := newPair(t, options{bare: true, global: quick})
	other := strings.NewReplacer("resource r0", "resource r1", "minor 0", "minor 1", "disk.img", "other.img", "global { disable-ip-verification; usage-count no; }\n", "",
		":7789", ":7790").Replace(p.resource(p.a, quick))
	p.a.write("r1.res", other)
	p.a.disk("other.img", 8<<20)
	p.a.must("create-md", "all")
	host, _, _ := strings.Cut(p.a.addr, ":")
	blocker := exec.Command("python3", "-c", fmt.Sprintf("import socket,sys\ns=socket.create_server((%q,7789))\nprint('up',flush=True)\nsys.stdin.read()", host))
	in, err := blocker.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := blocker.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := blocker.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); blocker.Wait() }) // it ends with its input
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	p.a.start()
	st := p.a.wait("status says why", func(r adm.Resource) bool { return r.LastError != "" || r.State == adm.StateFailed })
	if why := st.LastError + st.Reason; !strings.Contains(why, p.a.addr) || !strings.Contains(why, "in use") {
		t.Errorf("status: %q", why)
	}
	if r := p.a.adm("status", "r0"); !strings.Contains(r.out, "in use") {
		t.Errorf("polluxadm status: %v", r)
	}
	if st := p.a.statusOf("r1"); st.State != adm.StateUp || st.LastError != "" && strings.Contains(st.LastError, "in use") {
		t.Errorf("the other resource: %+v", st)
	}
	in.Close()
	p.b.must("create-md", "r0")
	p.b.start()
	p.wait("connected when the port is free", func(a, b adm.Resource) bool { return a.Connection == "Connected" && b.Connection == "Connected" })
}

// Peers that do not fit.
func TestE2EPeerMismatch(t *testing.T) {
	for _, tt := range []struct {
		name, alpha, bravo string
		want               []string
	}{
		{"secret", `net { cram-hmac-alg sha256; shared-secret "one"; }`, `net { cram-hmac-alg sha256; shared-secret "two"; }`, []string{"shared-secret"}},
		{"protocol", "net { protocol C; }", "net { protocol A; }", []string{"protocol"}},
		{"after-sb-0pri", "net { after-sb-0pri disconnect; }", "net { after-sb-0pri discard-zero-changes; }", []string{"after-sb policies"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			begin(t)
			p := newPair(t, options{bare: true})
			p.a.write("r0.res", p.resource(p.a, tt.alpha))
			p.b.write("r0.res", p.resource(p.b, tt.bravo))
			for _, n := range []*node{p.a, p.b} {
				n.must("create-md", "r0")
				n.start()
			}
			p.wait("both have given up", func(a, b adm.Resource) bool { return a.Connection == "StandAlone" && b.Connection == "StandAlone" })
			for _, n := range []*node{p.a, p.b} {
				r := n.adm("status", "r0")
				for _, w := range append(tt.want, "r0") {
					if !strings.Contains(r.out, w) {
						t.Errorf("%s: status lacks %q: %v", n.name, w, r)
					}
				}
			}
			// The next step: the same on both, adjust.
			p.b.write("r0.res", p.resource(p.b, tt.alpha))
			p.b.must("adjust", "r0")
			p.a.must("connect", "r0")
			p.wait("connected", func(a, b adm.Resource) bool { return a.Connection == "Connected" && b.Connection == "Connected" })
		})
	}
}

// Disks of different size: the smaller one counts; but a peer that is smaller than
// the data in use is refused.
func TestE2EPeerSize(t *testing.T) {
	begin(t, "nbdinfo")
	p := newPair(t, options{bare: true, global: quick})
	p.b.disk("disk.img", 24<<20)
	for _, n := range []*node{p.a, p.b} {
		n.must("create-md", "r0")
		n.start()
	}
	p.wait("connected", func(a, b adm.Resource) bool { return a.Connection == "Connected" && b.Connection == "Connected" })
	p.a.must("primary", "--force", "r0")
	p.inSync()
	size := p.a.status().Volumes[0].SizeBytes
	if b := p.b.status().Volumes[0].SizeBytes; size != b || size > 24<<20 || size < 23<<20 {
		t.Errorf("sizes %d and %d", size, b)
	}
	if got := strings.TrimSpace(mustRun(t, "nbdinfo", "--size", p.a.uri("r0"))); got != fmt.Sprint(size) {
		t.Errorf("the export has %s bytes, the resource %d", got, size)
	}
	// Now a peer whose new disk is too small.
	p.b.must("down", "r0")
	p.b.disk("disk.img", 16<<20)
	p.b.must("create-md", "--force", "r0")
	p.b.adm("up", "r0")
	p.a.wait("refused", func(a adm.Resource) bool { return a.Connection == "StandAlone" })
	if r := p.a.adm("status", "r0"); !strings.Contains(r.out, "peer's disk is too small") {
		t.Errorf("status does not say that the peer's disk is too small: %v", r)
	}
	if st := p.a.status(); st.Role != "Primary" || st.Volumes[0].SizeBytes != size || st.Volumes[0].Disk != "UpToDate" {
		t.Errorf("the Primary after the refusal: %+v", st)
	}
}

// A disk with the data of another cluster.
func TestE2EUnrelatedData(t *testing.T) {
	begin(t, "qemu-io")
	p := newPair(t, options{global: quick})
	mustIO(t, p.a.uri("r0"), "write -P 1 0 64k", "flush")
	p.b.must("down", "r0")
	p.a.must("disconnect", "r0")
	p.b.disk("disk.img", 32<<20)
	p.b.must("create-md", "--force", "r0")
	p.b.must("up", "r0")
	p.b.must("primary", "--force", "r0")
	mustIO(t, p.b.uri("r0"), "write -P 2 0 64k", "flush")
	p.b.must("secondary", "r0")
	p.a.must("connect", "r0")
	p.a.wait("refused", func(a adm.Resource) bool { return a.Connection == "StandAlone" })
	for _, n := range []*node{p.a, p.b} {
		n.wait("the reason", func(r adm.Resource) bool { return r.Connection == "StandAlone" || r.LastError != "" })
		if r := n.adm("status", "r0"); !strings.Contains(r.out, "nrelated") {
			t.Errorf("%s: status does not say that the data is unrelated: %v", n.name, r)
		}
	}
	mustIO(t, p.a.uri("r0"), "read -P 1 0 64k")
	p.b.must("disconnect", "r0")
	p.b.must("primary", "r0")
	mustIO(t, p.b.uri("r0"), "read -P 2 0 64k")
}

// A disk that was enlarged while nobody had it attached: internal metadata is
// no longer at the end, but nothing is lost.
func TestE2EDiskGrown(t *testing.T) {
	begin(t, "qemu-io")
	p := newPair(t, options{global: quick})
	mustIO(t, p.a.uri("r0"), "write -P 1 0 64k", "flush")
	p.a.must("secondary", "r0")
	p.a.must("down", "r0")
	if err := os.Truncate(p.a.path("disk.img"), 40<<20); err != nil {
		t.Fatal(err)
	}
	// create-md would be the wrong next step, and is not taken without a word.
	p.a.refused(10, []string{"r0", p.a.path("disk.img"), "if it was enlarged, `polluxadm check-resize r0`"}, "up", "r0")
	if r := p.a.adm("create-md", "r0"); r.code != 1 {
		t.Errorf("create-md on a disk with data: %v", r)
	}
	if err := os.Truncate(p.a.path("disk.img"), 32<<20); err != nil {
		t.Fatal(err)
	}
	p.a.must("up", "r0")
	p.inSync()
	p.equalDisks("disk.img", usable32)
	// The other way, with both daemons stopped: the metadata is moved to the new end.
	if err := os.Truncate(p.a.path("disk.img"), 40<<20); err != nil {
		t.Fatal(err)
	}
	p.a.must("check-resize", "r0")
	p.a.must("check-resize", "r0")
	p.a.start()
	p.b.start()
	p.inSync()
	p.equalDisks("disk.img", usable32)
}

// A daemon that stands still: questions end, with the right code.
func TestE2EDaemonHangs(t *testing.T) {
	begin(t)
	p := newPair(t, options{bare: true})
	p.a.must("create-md", "r0")
	p.a.start()
	p.a.signal(syscall.SIGSTOP)
	p.a.refused(20, []string{"polluxd: no answer within 10 seconds"}, "role", "r0")
	p.a.signal(syscall.SIGCONT)
	p.a.must("role", "r0")
}

// A node whose name no resource knows has nothing to run, and says so.
func TestE2EOtherNode(t *testing.T) {
	begin(t)
	p := newPair(t, options{bare: true})
	p.a.write("pollux.toml", settings("gamma"))
	p.a.proc = p.a.launch()
	poll(t, "polluxd is ready", func() bool { return strings.Contains(p.a.log(), "0 of 0 resources") })
	if !strings.Contains(p.a.log(), `no \"on gamma\" in `) {
		t.Errorf("the log does not say why there is no resource: %s", p.a.log())
	}
	p.a.stop()
}
