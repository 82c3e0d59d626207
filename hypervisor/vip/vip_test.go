package vip

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	addr4, prefix4 = "192.0.2.10", "192.0.2.10/24"
	addr6, prefix6 = "2001:db8::10", "2001:db8::10/64"
	// announceLimit: a frame needs microseconds; the machine may be busy.
	announceLimit = 500 * time.Millisecond
)

// A neighbour that talks to an address follows it to the other node at once,
// not after its cache has aged.
func TestMove(t *testing.T) {
	needNamespaces(t)
	for _, tt := range []struct{ name, addr, prefix string }{{"IPv4", addr4, prefix4}, {"IPv6", addr6, prefix6}} {
		t.Run(tt.name, func(t *testing.T) {
			neighbour, alpha, bravo := newLab(t)
			n := neighbour.runner
			alpha.runner.must("add", tt.prefix)
			n.must("talk", tt.addr)
			n.must("await", tt.addr, alpha.mac)

			alpha.runner.must("remove", tt.addr)
			if out := alpha.ip("address show"); strings.Contains(out, tt.addr+"/") {
				t.Errorf("alpha still has it:\n%s", out)
			}
			began, ended, _, err := bravo.runner.do("add", tt.prefix)
			if err != nil {
				t.Fatal(err)
			}
			seen := n.must("await", tt.addr, bravo.mac)
			ns, err := strconv.ParseInt(seen, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("asked for %v in all, the neighbour followed %v after that", ended.Sub(began), time.Unix(0, ns).Sub(ended))
			if d := time.Unix(0, ns).Sub(ended); d > announceLimit {
				t.Errorf("the neighbour followed after %v", d)
			}
			if d := ended.Sub(began); d < probes*probeEvery {
				t.Errorf("Add took %v, it can't have asked %d times", d, probes)
			}
		})
	}
}

// What somebody else answers for is not added, and the message says who it is.
func TestInUse(t *testing.T) {
	needNamespaces(t)
	for _, tt := range []struct{ name, addr, prefix, more string }{{"IPv4", addr4, prefix4, ""}, {"IPv6", addr6, prefix6, " nodad"}} {
		t.Run(tt.name, func(t *testing.T) {
			neighbour, alpha, bravo := newLab(t)
			alpha.ip("address add " + tt.prefix + " dev eth0" + tt.more)
			want := "already in use on the network: " + alpha.mac + " answers for it on eth0"
			for _, order := range []string{"free", "add"} {
				_, _, _, err := bravo.runner.do(order, tt.prefix)
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s = %v, want %q in it", order, err, want)
				}
			}
			if out := bravo.ip("address show"); strings.Contains(out, tt.addr+"/") {
				t.Errorf("bravo has it:\n%s", out)
			}
			if held := bravo.runner.must("held"); held != "[]" {
				t.Errorf("bravo holds %s", held)
			}
			// The last owner is known to be deposed, and still answers.
			n := neighbour.runner
			n.must("talk", tt.addr)
			n.must("await", tt.addr, alpha.mac)
			bravo.runner.must("takeover", tt.prefix)
			n.must("await", tt.addr, bravo.mac)
			alpha.ip("address del " + tt.prefix + " dev eth0")
			bravo.runner.must("free", tt.prefix)
		})
	}
}

// A crash between any two steps leaves nothing that the next manager does not
// find, or takes for what it is not.
func TestRestart(t *testing.T) {
	needNamespaces(t)
	_, alpha, _ := newLab(t)
	alpha.runner.must("add", prefix4)
	alpha.runner.must("add", prefix6, "eth0")
	alpha.runner.kill()
	r := alpha.boot()
	if held, want := r.must("held"), "["+prefix4+" on eth0 "+prefix6+" on eth0]"; held != want {
		t.Errorf("after a crash it holds %s, want %s", held, want)
	}
	began, ended, _, err := r.do("add", prefix4)
	if err != nil {
		t.Errorf("add of what it has: %v", err)
	}
	if d := ended.Sub(began); d >= probes*probeEvery {
		t.Errorf("add of what it has took %v, as if it had asked", d)
	}
	for range 2 {
		r.must("remove", addr4)
		r.must("remove", addr6)
	}
	if out := alpha.ip("address show"); strings.Contains(out, addr4) || strings.Contains(out, addr6) {
		t.Errorf("it still has them:\n%s", out)
	}

	// Written down, but not added yet.
	note := `{"prefix": "192.0.2.10/24", "interface": "eth0"}`
	if err := os.WriteFile(filepath.Join(alpha.dir, addr4+noteSuffix), []byte(note), 0o600); err != nil {
		t.Fatal(err)
	}
	if held := r.must("held"); held != "[]" {
		t.Errorf("it holds %s, which it has not", held)
	}
	if _, err := os.Stat(filepath.Join(alpha.dir, addr4+noteSuffix)); err == nil {
		t.Error("the note is still there")
	}
	r.must("add", prefix4)
	r.must("remove", addr4)
}

// An address of the machine is nobody's to give or to take.
func TestForeign(t *testing.T) {
	needNamespaces(t)
	_, alpha, _ := newLab(t)
	r := alpha.runner
	if _, _, _, err := r.do("add", "192.0.2.21/24"); err == nil || !strings.Contains(err.Error(), "eth0 has it already, and it was not added by Pollux") {
		t.Errorf("add of the machine's own address: %v", err)
	}
	r.must("remove", "192.0.2.21")
	if out := alpha.ip("address show"); !strings.Contains(out, "192.0.2.21/24") {
		t.Errorf("the machine's own address was removed:\n%s", out)
	}
	for _, tt := range []struct{ prefix, iface, want string }{
		{"198.51.100.1/24", "", "no interface has an address in 198.51.100.0/24; name the interface"},
		{"198.51.100.1/24", "eth9", "interface eth9: "},
		{"198.51.100.1/24", "down0", "interface down0 is down; ip link set down0 up"},
	} {
		if tt.iface == "down0" {
			alpha.ip("link add down0 type bridge")
		}
		if _, _, _, err := r.do("add", tt.prefix, tt.iface); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("add %s %s: %v, want %q", tt.prefix, tt.iface, err, tt.want)
		}
	}
}

// Linux removes a network's other addresses with its first one; they come back.
func TestRemoveFirstOfNetwork(t *testing.T) {
	needNamespaces(t)
	_, alpha, _ := newLab(t)
	r := alpha.runner
	r.must("add", "198.51.100.1/24", "eth0")
	alpha.ip("address add 198.51.100.2/24 dev eth0")
	r.must("remove", "198.51.100.1")
	out := alpha.ip("address show dev eth0")
	if strings.Contains(out, "198.51.100.1/") || !strings.Contains(out, "198.51.100.2/24") {
		t.Errorf("after the removal of 198.51.100.1:\n%s", out)
	}
}

func TestConfig(t *testing.T) {
	if _, err := New(Config{Dir: "x"}); err == nil {
		t.Error("a relative directory is taken")
	}
	m, err := New(Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []netip.Prefix{{}, netip.MustParsePrefix("::ffff:192.0.2.1/120")} {
		if err := m.Add(t.Context(), Address{Prefix: p}); err == nil {
			t.Errorf("Add(%v) does not fail", p)
		}
	}
	if err := m.Remove(context.Background(), netip.MustParseAddr(addr4)); err != nil {
		t.Errorf("Remove of what nobody has added: %v", err)
	}
	m.Close()
}
