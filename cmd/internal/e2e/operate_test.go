package e2e

import (
	"os"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/protocol/adm"
)

// Both disks are enlarged under a volume in use, and resize takes it over: the
// metadata moves, the new part is synced, new clients see the new size.
func TestE2EResize(t *testing.T) {
	begin(t, "qemu-io", "nbdinfo")
	p := newPair(t, options{global: quick})
	mustIO(t, p.a.uri("r0"), "write -P 1 0 64k", "flush")
	p.b.refused(10, []string{"(131)", "Need one primary node"}, demoted(p, "resize", "r0")...)
	p.a.must("primary", "r0")
	const grown = 48 << 20
	for _, n := range []*node{p.a, p.b} {
		if err := os.Truncate(n.path("disk.img"), grown); err != nil {
			t.Fatal(err)
		}
	}
	p.a.must("resize", "r0")
	p.inSync()
	a := p.a.status()
	if a.Volumes[0].SizeBytes <= 32<<20 {
		t.Fatalf("size is %d", a.Volumes[0].SizeBytes)
	}
	if got := strings.TrimSpace(mustRun(t, "nbdinfo", "--size", p.a.uri("r0"))); got == "" || got[0] != '5' {
		t.Errorf("a new client sees %s bytes", got)
	}
	mustIO(t, p.a.uri("r0"), "write -P 7 40M 64k", "flush", "read -P 1 0 64k")
	p.a.must("secondary", "r0")
	// It is where the next start looks for it, also after a crash.
	p.a.kill()
	p.a.start()
	p.inSync()
	p.equalDisks("disk.img", int64(a.Volumes[0].SizeBytes)) // both are stopped for it
	p.a.start()
	p.b.start()
	p.inSync()
	// Smaller again, by the operator's wish.
	p.a.must("primary", "r0")
	p.a.must("resize", "--size=20M", "r0")
	if got := p.a.status().Volumes[0].SizeBytes; got != 20<<20 {
		t.Errorf("size is %d, want 20 MiB", got)
	}
	mustIO(t, p.a.uri("r0"), "read -P 1 0 64k")
}

// demoted makes alpha Secondary before a command line is tried.
func demoted(p *pair, args ...string) []string {
	p.t.Helper()
	p.a.must("secondary", "r0")
	return args
}

// suspend-io has writes wait, and says so everywhere; resume-io lets them go.
func TestE2ESuspendIO(t *testing.T) {
	begin(t, "qemu-io")
	p := newPair(t, options{global: quick})
	p.a.must("suspend-io", "r0")
	if out := p.a.must("status", "r0"); !strings.Contains(out, "suspended") || !strings.Contains(out, "polluxadm resume-io r0") {
		t.Errorf("status:\n%s", out)
	}
	if out := p.a.must("proc"); !strings.Contains(out, " C s-----\n") {
		t.Errorf("proc:\n%s", out)
	}
	w := background(t, "qemu-io", "-f", "raw", "-c", "write -P 2 0 64k", p.a.uri("r0"))
	stillRuns(t, "a write to a suspended resource", w)
	p.a.must("resume-io", "r0")
	mustEnd(t, "the write after resume-io", w)
	mustIO(t, p.a.uri("r0"), "read -P 2 0 64k")
}

// Two new disks are taken for equal, without a first sync.
func TestE2ESkipInitialSync(t *testing.T) {
	begin(t, "qemu-io")
	p := configured(t, options{global: quick})
	for _, n := range []*node{p.a, p.b} {
		n.must("create-md", "r0")
		n.start()
	}
	p.wait("connected", func(a, b adm.Resource) bool { return a.Connection == "Connected" && b.Connection == "Connected" })
	p.a.must("new-current-uuid", "--clear-bitmap", "r0")
	p.inSync()
	if a := p.a.status(); a.Volumes[0].ReceivedBytes+a.Volumes[0].SentBytes != 0 {
		t.Errorf("something was synced: %+v", a.Volumes[0])
	}
	p.b.refused(10, []string{"(151)", "Need to be StandAlone"}, "new-current-uuid", "--clear-bitmap", "r0")
	p.a.must("primary", "r0")
	mustIO(t, p.a.uri("r0"), "write -P 3 0 64k", "flush")
}

// Options change on the live connection, by adjust and by hand, and the peer
// hears of them; a pause of the resync is seen on both nodes.
func TestE2EAdjustLive(t *testing.T) {
	begin(t, "qemu-io")
	p := newPair(t, options{global: quick})
	connected := func(what string) {
		t.Helper()
		for _, n := range []*node{p.a, p.b} {
			if strings.Contains(n.log(), "TearDown") || strings.Contains(n.log(), "Disconnecting") {
				t.Errorf("%s: %s has lost the connection", what, n.name)
			}
		}
	}
	for _, n := range []*node{p.a, p.b} {
		n.write("r0.res", p.resource(n, strings.Replace(quick, "net {", "net { protocol A;", 1)))
		n.must("adjust", "r0")
	}
	p.wait("protocol A", func(a, b adm.Resource) bool { return a.Protocol == "A" && b.Protocol == "A" })
	mustIO(t, p.a.uri("r0"), "write -P 4 0 64k", "flush")
	p.a.must("net-options", "--protocol=C", "--ping-int=5", "r0")
	p.a.must("disk-options", "--resync-rate=20M", "r0")
	if out := p.a.must("status", "r0"); !strings.Contains(out, "net protocol C; the file has A") || !strings.Contains(out, "disk resync-rate 20M") {
		t.Errorf("status:\n%s", out)
	}
	p.a.refused(10, []string{"(155)"}, "net-options", "--on-congestion=pull-ahead", "r0")
	p.a.must("adjust", "r0")
	if a := p.a.status(); a.Protocol != "A" || len(a.Changed) != 0 {
		t.Errorf("after adjust: protocol %s, changed %q", a.Protocol, a.Changed)
	}
	p.a.must("pause-sync", "r0")
	p.b.refused(10, []string{"(135)"}, "resume-sync", "r0")
	if out := p.b.must("proc"); !strings.Contains(out, "r-p---") {
		t.Errorf("proc on bravo:\n%s", out)
	}
	p.a.must("resume-sync", "r0")
	connected("all of this")
}
