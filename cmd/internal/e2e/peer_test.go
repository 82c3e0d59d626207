package e2e

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// impatient gives a silent peer up after about two seconds.
const impatient = "net { timeout 10; ko-count 2; ping-int 2; ping-timeout 5; connect-int 2; }"

// The peer's process stands still; its sockets stay open.
func TestE2EPeerHangs(t *testing.T) {
	begin(t, "qemu-io")
	p := newPair(t, options{global: impatient})
	p.b.signal(syscall.SIGSTOP)
	began := time.Now()
	mustIO(t, p.a.uri("r0"), "write -P 1 0 1M", "flush", "read -P 1 0 1M")
	if d := time.Since(began); d < time.Second || d > 8*time.Second {
		t.Errorf("the write took %v; timeout x ko-count is 2 s, ping-int + ping-timeout 2.5 s", d)
	}
	a := p.a.status()
	if a.Role != "Primary" || a.Connection == "Connected" || a.Volumes[0].OutOfSyncBytes != 1<<20 {
		t.Errorf("alone: %+v", a)
	}
	if r := p.a.adm("status", "r0"); !strings.Contains(r.out, "bravo is not connected") {
		t.Errorf("status: %v", r)
	}
	p.b.signal(syscall.SIGCONT)
	p.inSync()
	// Without traffic the pings notice it.
	p.b.signal(syscall.SIGSTOP)
	began = time.Now()
	p.a.wait("the peer is missed", func(a adm.Resource) bool { return a.Connection != "Connected" })
	if d := time.Since(began); d > 6*time.Second {
		t.Errorf("an idle resource missed its peer after %v", d)
	}
	p.b.signal(syscall.SIGCONT)
	p.inSync()
	// The Primary stands still: the Secondary notices and does not promote itself.
	p.a.signal(syscall.SIGSTOP)
	b := p.b.wait("the Primary is missed", func(b adm.Resource) bool { return b.Connection != "Connected" })
	if b.Role != "Secondary" || b.Volumes[0].Disk != "UpToDate" {
		t.Errorf("bravo: %+v", b)
	}
	p.a.signal(syscall.SIGCONT)
	p.inSync()
	p.a.must("secondary", "r0")
	p.equalDisks("disk.img", usable32)
}

// A cable is a veth pair between two network namespaces.
type cable struct {
	t  *testing.T
	ns [2]string
}

func newCable(t *testing.T) (c *cable, o options) {
	t.Helper()
	needRoot(t, "network namespaces")
	needTool(t, "ip")
	needTool(t, "nsenter")
	id := rand.IntN(1 << 20)
	c = &cable{t: t}
	for i := range c.ns {
		c.ns[i] = fmt.Sprintf("e2e%05x%c", id, 'a'+i)
		mustRun(t, "ip", "netns", "add", c.ns[i])
		t.Cleanup(func() { run(t, "ip", "netns", "del", c.ns[i]) })
	}
	mustRun(t, "ip", "-n", c.ns[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", c.ns[1])
	for i, ns := range c.ns {
		mustRun(t, "ip", "-n", ns, "addr", "add", fmt.Sprintf("10.99.0.%d/24", i+1), "dev", "cable")
		mustRun(t, "ip", "-n", ns, "link", "set", "lo", "up")
		mustRun(t, "ip", "-n", ns, "link", "set", "cable", "up")
		o.addrs[i] = fmt.Sprintf("10.99.0.%d:7789", i+1)
		// Not "ip netns exec": that copies the mounts of other tests, and keeps
		// what they have unmounted since in use.
		o.wrap[i] = []string{"nsenter", "--net=/run/netns/" + ns}
	}
	return c, o
}

// set pulls the cable ("down") or plugs it in ("up").
func (c *cable) set(state string) {
	c.t.Helper()
	mustRun(c.t, "ip", "-n", c.ns[0], "link", "set", "cable", state)
}

func notConnected(a, b adm.Resource) bool {
	return a.Connection != "Connected" && b.Connection != "Connected"
}

func TestE2ELinkCut(t *testing.T) {
	begin(t, "qemu-io")
	c, o := newCable(t)
	o.global = impatient
	p := newPair(t, o)
	mustIO(t, p.a.uri("r0"), "write -P 1 0 1M", "flush")
	c.set("down")
	began := time.Now()
	mustIO(t, p.a.uri("r0"), "write -P 2 1M 1M", "flush", "read -P 2 1M 1M")
	if d := time.Since(began); d > 8*time.Second {
		t.Errorf("writes went on only after %v", d)
	}
	p.wait("both miss each other", notConnected)
	c.set("up")
	p.inSync()
	if got := p.b.status(); got.Role != "Secondary" {
		t.Errorf("bravo is %s", got.Role)
	}
	p.a.must("secondary", "r0")
	p.b.must("primary", "r0")
	mustIO(t, p.b.uri("r0"), "read -P 1 0 1M", "read -P 2 1M 1M")
	p.equalDisks("disk.img", usable32)
}

func TestE2ESplitBrain(t *testing.T) {
	begin(t, "qemu-io")
	c, o := newCable(t)
	o.global = impatient
	p := newPair(t, o)
	mustIO(t, p.a.uri("r0"), "write -P 1 0 1M", "flush")
	c.set("down")
	p.wait("both miss each other", notConnected)
	p.b.must("primary", "r0") // it can't know; the operator said so
	mustIO(t, p.a.uri("r0"), "write -P 2 0 64k", "flush")
	mustIO(t, p.b.uri("r0"), "write -P 3 128k 64k", "flush")
	c.set("up")
	p.wait("both stand alone", func(a, b adm.Resource) bool { return a.SplitBrain != "" && b.SplitBrain != "" })
	for _, n := range []*node{p.a, p.b} {
		st := n.status()
		if st.Connection != "StandAlone" || st.Role != "Primary" || st.Volumes[0].Disk != "UpToDate" {
			t.Errorf("%s: %+v", n.name, st)
		}
		r := n.adm("status", "r0")
		for _, w := range []string{"split brain", "connect --discard-my-data r0"} {
			if !strings.Contains(r.out, w) {
				t.Errorf("%s: status lacks %q: %v", n.name, w, r)
			}
		}
		if !strings.Contains(n.log(), "discard-my-data") {
			t.Errorf("%s: the log does not say how to resolve it", n.name)
		}
	}
	// Nobody loses data by a plain connect.
	p.a.must("connect", "r0")
	p.b.must("connect", "r0")
	p.wait("both stand alone again", func(a, b adm.Resource) bool { return a.Connection == "StandAlone" && b.Connection == "StandAlone" })
	mustIO(t, p.b.uri("r0"), "read -P 3 128k 64k")
	// The commands of the message.
	p.b.refused(10, []string{"r0"}, "connect", "--discard-my-data", "r0") // a Primary does not throw its data away
	p.b.must("secondary", "r0")
	p.b.must("connect", "--discard-my-data", "r0")
	p.a.must("connect", "r0")
	p.inSync()
	mustIO(t, p.a.uri("r0"), "read -P 2 0 64k", "read -P 1 64k 960k")
	if st := p.a.status(); st.SplitBrain != "" || st.LastError != "" {
		t.Errorf("the trouble is over: %+v", st)
	}
	p.a.must("secondary", "r0")
	p.equalDisks("disk.img", usable32)
}
