package vip

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// The tests' machines are network namespaces, and what runs on them is this
// test's own program, which takes orders line by line.
const roleVar = "POLLUX_VIP_TEST_ROLE"

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVar); role {
	case "":
		os.Exit(m.Run())
	case "hold": // keeps a namespace
		fmt.Println("ready")
		_, _ = io.Copy(io.Discard, os.Stdin) // until the test ends
	default:
		obey(role)
	}
}

// obey carries out orders; dir is the manager's directory.
func obey(dir string) {
	m, err := New(Config{Dir: dir, Log: func(text string) { fmt.Fprintln(os.Stderr, text) }})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		began := time.Now()
		out, err := order(m, strings.Fields(in.Text()))
		switch {
		case err != nil:
			fmt.Println("error", strings.ReplaceAll(err.Error(), "\n", "; "))
		default:
			fmt.Println("ok", began.UnixNano(), time.Now().UnixNano(), out)
		}
	}
	m.Close()
}

func order(m *Manager, words []string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	switch words[0] {
	case "add", "takeover", "free":
		a := Address{Prefix: netip.MustParsePrefix(words[1])}
		if len(words) > 2 {
			a.Interface = words[2]
		}
		switch words[0] {
		case "add":
			return "", m.Add(ctx, a)
		case "free":
			return "", m.Free(ctx, a)
		}
		return "", m.TakeOver(ctx, a)
	case "remove":
		return "", m.Remove(ctx, netip.MustParseAddr(words[1]))
	case "held":
		held, err := m.Held(ctx)
		return fmt.Sprint(held), err
	case "talk": // resolves the address; nobody has to listen
		conn, err := net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr(words[1]), 9).String())
		if err != nil {
			return "", err
		}
		_, err = conn.Write([]byte("x"))
		return "", errors.Join(err, conn.Close())
	case "await": // until the neighbour's cache has this MAC for the address
		return await(ctx, netip.MustParseAddr(words[1]), words[2])
	default:
		return "", fmt.Errorf("unknown order %q", words)
	}
}

func await(ctx context.Context, addr netip.Addr, mac string) (string, error) {
	tick := time.NewTicker(time.Millisecond) // the cache tells nobody
	defer tick.Stop()
	got := ""
	for {
		list, err := netlink.NeighList(0, family(addr))
		if err != nil {
			return "", err
		}
		for _, n := range list {
			if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == addr {
				if got = n.HardwareAddr.String(); got == mac {
					return strconv.FormatInt(time.Now().UnixNano(), 10), nil
				}
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", fmt.Errorf("the cache has %q for %s, want %s", got, addr, mac)
		}
	}
}

// A place is a namespace with an interface eth0 on the lab's switch.
type place struct {
	t      *testing.T
	pid    int
	mac    string
	dir    string
	runner *program
}

// A program runs in a place.
type program struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func start(t *testing.T, role string, argv ...string) *program {
	t.Helper()
	p := &program{t: t, cmd: exec.Command(argv[0], argv[1:]...)}
	p.cmd.Env = append(os.Environ(), roleVar+"="+role)
	p.cmd.Stderr = os.Stderr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in, p.out = in, bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	if !p.out.Scan() || p.out.Text() != "ready" {
		t.Fatalf("%v says %q", argv, p.out.Text())
	}
	return p
}

// kill ends it as a crash does.
func (p *program) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // it was killed, so it failed
}

// do returns when the order was begun and done, by this machine's clock.
func (p *program) do(words ...string) (began, ended time.Time, out string, err error) {
	p.t.Helper()
	fmt.Fprintln(p.in, strings.Join(words, " "))
	if !p.out.Scan() {
		p.t.Fatalf("%v: no answer", words)
	}
	text := p.out.Text()
	if why, ok := strings.CutPrefix(text, "error "); ok {
		return began, ended, "", errors.New(why)
	}
	f := strings.SplitN(text, " ", 4)
	at := func(s string) time.Time {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			p.t.Fatalf("%v: answer %q", words, text)
		}
		return time.Unix(0, n)
	}
	return at(f[1]), at(f[2]), f[3], nil
}

// must is do for what has to succeed.
func (p *program) must(words ...string) string {
	p.t.Helper()
	_, _, out, err := p.do(words...)
	if err != nil {
		p.t.Fatalf("%s: %v", strings.Join(words, " "), err)
	}
	return out
}

// ip runs ip(8) in the place.
func (p *place) ip(args string) string {
	p.t.Helper()
	out, err := exec.Command("nsenter", append([]string{"-t", strconv.Itoa(p.pid), "-n", "ip"}, strings.Fields(args)...)...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("ip %s: %v: %s", args, err, out)
	}
	return string(out)
}

// boot starts (again) the program that obeys.
func (p *place) boot() *program {
	p.t.Helper()
	p.runner = start(p.t, p.dir, "nsenter", "-t", strconv.Itoa(p.pid), "-n", os.Args[0])
	return p.runner
}

// newLab makes a switch with a neighbour and two nodes, alpha and bravo, in
// 192.0.2.0/24 and 2001:db8::/64.
func newLab(t *testing.T) (neighbour, alpha, bravo *place) {
	t.Helper()
	var places []*place
	for n := range 3 {
		hold := start(t, "hold", "unshare", "-n", os.Args[0])
		p := &place{t: t, pid: hold.cmd.Process.Pid, dir: t.TempDir(), mac: fmt.Sprintf("02:00:00:00:00:%02x", 0x0a+n)}
		places = append(places, p)
		p.ip("link set lo up")
	}
	sw := places[0]
	sw.ip("link add eth0 address 02:00:00:00:00:01 type bridge")
	sw.ip("link set eth0 up")
	for n, p := range places {
		host := 20 + n
		if n > 0 {
			out, err := exec.Command("ip", "link", "add", "name", "port"+strconv.Itoa(n), "netns", strconv.Itoa(sw.pid), "type", "veth",
				"peer", "name", "eth0", "address", p.mac, "netns", strconv.Itoa(p.pid)).CombinedOutput()
			if err != nil {
				t.Fatalf("make a link: %v: %s", err, out)
			}
			sw.ip("link set port" + strconv.Itoa(n) + " master eth0 up")
			p.ip("link set eth0 up")
		}
		p.ip(fmt.Sprintf("address add 192.0.2.%d/24 dev eth0", host))
		p.ip(fmt.Sprintf("address add 2001:db8::%d/64 dev eth0 nodad", host))
		p.boot()
	}
	return places[0], places[1], places[2]
}

// needNamespaces skips where the kernel or the user can't have them.
func needNamespaces(t *testing.T) {
	t.Helper()
	out, err := exec.Command("unshare", "-n", "ip", "link", "add", "type", "veth").CombinedOutput()
	if err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("no network namespaces: %v: %s", err, out)
	}
	t.Skipf("no network namespaces: %v: %s", err, bytes.TrimSpace(out))
}
