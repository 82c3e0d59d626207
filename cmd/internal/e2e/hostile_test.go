package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
	"github.com/pollux-project/pollux/protocol/drbd"
)

// A siege is everything that can be done to a node from outside: a peer of r1
// that breaks the protocol again and again, strangers by the thousand, sockets
// that are opened and say nothing.
type siege struct {
	t          *testing.T
	n          *node
	peer, from string // addresses: of r1's peer, and one that nobody knows
	to         string // r1 of the node
	wg         sync.WaitGroup
	violations atomic.Int64
	strangers  atomic.Int64
}

func (s *siege) dial(from string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 2 * time.Second}
	c, err := d.Dial("tcp", s.to)
	if err == nil {
		c.SetDeadline(time.Now().Add(10 * time.Second))
	}
	return c, err
}

// violate greets the node like a peer and then says one thing that no peer says.
func (s *siege) violate(lie []byte) error {
	data, err := s.dial(s.peer)
	if err != nil {
		return err
	}
	defer data.Close()
	data.Write(drbd.AppendHeader80(nil, drbd.CmdInitialData, 0)) //nolint:errcheck // the reads below fail if it is closed
	meta, err := s.dial(s.peer)
	if err != nil {
		return err
	}
	defer meta.Close()
	meta.Write(drbd.AppendHeader80(nil, drbd.CmdInitialMeta, 0)) //nolint:errcheck // likewise
	features := drbd.Features{Min: 86, Max: 101, Flags: drbd.FeatureWSame}.Append(nil)
	data.Write(append(drbd.AppendHeader80(nil, drbd.CmdConnectionFeatures, len(features)), features...)) //nolint:errcheck // likewise
	if _, err := io.ReadFull(data, make([]byte, drbd.HeaderSize80+len(features)+drbd.HeaderSize100)); err != nil {
		return err
	}
	data.Write(lie) //nolint:errcheck // likewise
	_, err = io.Copy(io.Discard, data)
	return err
}

// begin lays siege until ctx ends.
func (s *siege) begin(ctx context.Context) {
	loop := func(f func()) {
		s.wg.Go(func() {
			for ctx.Err() == nil {
				f()
			}
		})
	}
	protocol := drbd.ProtocolPacket{Protocol: drbd.ProtocolC}.Append(drbd.AppendHeader100(nil, drbd.Header{Command: drbd.CmdProtocol, Length: 25}))
	sizes := drbd.Sizes{WSame: true, CSize: 1 << 60, MaxBioSize: 4096}.Append(drbd.AppendHeader100(nil, drbd.Header{Command: drbd.CmdSizes, Length: 56}))
	loop(func() {
		if s.violate(append(protocol[:len(protocol):len(protocol)], sizes...)) == nil {
			s.violations.Add(1)
			return
		}
		time.Sleep(20 * time.Millisecond) // the node does not listen: it keeps away from this peer
	})
	for range 2 {
		loop(func() {
			if c, err := s.dial(s.from); err == nil {
				s.strangers.Add(1)
				io.Copy(io.Discard, c) //nolint:errcheck // a reset is as good
				c.Close()
			} else {
				time.Sleep(time.Millisecond) // no listener just now
			}
		})
	}
	silent := func(network, address string, say string) {
		loop(func() {
			var held []net.Conn
			for range 100 {
				if c, err := net.Dial(network, address); err == nil {
					c.Write([]byte(say)) //nolint:errcheck // it may be closed already
					held = append(held, c)
				}
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			for _, c := range held {
				c.Close()
			}
		})
	}
	silent("unix", s.n.path("nbd"), "\x00")
	silent("unix", s.n.path("ctl"), `{"v":`)
	silent("tcp", s.to, "\x83") // from this host's own address, another stranger
}

func (n *node) openFiles() int {
	n.t.Helper()
	d, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.proc.cmd.Process.Pid))
	if err != nil {
		n.t.Fatal(err)
	}
	return len(d)
}

// One resource is under attack, and so are all of the daemon's sockets; the other
// resource replicates, and its operator and clients get through.
func TestE2ESiege(t *testing.T) {
	begin(t, "nbdcopy")
	p := configured(t, options{bare: true})
	base := strings.TrimSuffix(p.a.addr, ".1:7789")
	s := &siege{t: t, n: p.a, peer: base + ".9", from: base + ".77", to: base + ".1:7790"}
	p.a.write("r1.res", fmt.Sprintf("resource r1 {\nnet { ping-timeout 2; }\nvolume 0 { device minor 1; disk %s; meta-disk internal; }\n"+
		"on alpha { address %s; }\non bravo { address %s:7790; }\n}\n", p.a.path("r1.img"), s.to, s.peer))
	p.a.disk("r1.img", 8<<20)
	p.a.must("create-md", "r1")
	for _, n := range []*node{p.a, p.b} {
		n.must("create-md", "r0")
		n.start()
	}
	p.wait("connected", func(a, b adm.Resource) bool { return a.Connection == "Connected" && b.Connection == "Connected" })
	p.a.must("primary", "--force", "r0")
	p.a.must("primary", "--force", "r1")
	p.inSync()
	w := startWriter(t, p.a, 16<<20)
	files, before := p.a.openFiles(), p.a.logSize()

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	s.begin(ctx)
	poll(t, "violations", func() bool { return s.violations.Load() >= 3 })
	for range 10 {
		last := w.count.Load()
		poll(t, "writes go on", func() bool { return w.count.Load() > last })
		if a := p.a.status(); !healthy(a) {
			t.Fatalf("r0 is disturbed: %+v", a)
		}
		time.Sleep(300 * time.Millisecond) // the siege is to last a while
	}
	// A hundred new sockets within its handshake may push it out; not again and again.
	poll(t, "a client gets in under siege", func() bool {
		conn, err := openNBD(p.a.path("nbd"), "r0")
		if err != nil {
			t.Logf("a client under siege: %v", err)
			return false
		}
		conn.Close()
		return true
	})
	stop()
	s.wg.Wait()
	w.stop()

	st := p.a.statusOf("r1")
	const want = "P_SIZES: c_size: wanted at most 2^51 sectors, got 1152921504606846976"
	if v := st.Violation; v == nil || v.Text != want || v.Count < 3 {
		t.Errorf("violation %+v, want at least 3 times %q", v, want)
	}
	if st.Connection != "WFConnection" || st.Role != "Primary" || st.Volumes[0].Disk != "UpToDate" {
		t.Errorf("r1 is %s, %s, %s", st.Connection, st.Role, st.Volumes[0].Disk)
	}
	if out := p.a.must("status", "--json", "r1"); !strings.Contains(out, "it broke the protocol: "+want) || !strings.Contains(out, `"pollux-violation"`) {
		t.Errorf("status --json does not say why: %s", out)
	}
	lines := 0
	for _, line := range strings.Split(readText(p.a.path("log"))[before:], "\n") {
		lines++
		if strings.Contains(line, `"res":"r0"`) && strings.Contains(line, `"conn"`) {
			t.Errorf("r0's connection was disturbed: %s", line)
		}
	}
	t.Logf("%d violations, %d strangers, %d writes, %d log lines, peak %d KiB", s.violations.Load(), s.strangers.Load(), w.count.Load(), lines, p.a.peakKiB())
	if s.strangers.Load() < 100 {
		t.Errorf("only %d strangers: nothing was tested", s.strangers.Load())
	}
	if lines > 500 {
		t.Errorf("%d log lines", lines)
	}
	if peak := p.a.peakKiB(); peak > 256<<10 {
		t.Errorf("polluxd took %d KiB at its peak", peak)
	}
	poll(t, "the descriptors come back", func() bool { return p.a.openFiles() <= files+5 })
	w.check(p.a)
	p.inSync()
	p.equalDisks("disk.img", usable32)
}

// logSize is how long the log is now, in bytes.
func (n *node) logSize() int { return len(readText(n.path("log"))) }
