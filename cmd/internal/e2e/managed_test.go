package e2e

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

const internal = "[resource.r0]\nmanager = \"internal\"\n"

// exportTo makes an incarnation of r0 on n and returns its export's name.
func (n *node) exportTo(incarnation string) string {
	n.t.Helper()
	var ex adm.Exports
	if err := n.call(adm.Request{Cmd: adm.CmdExport, Resource: "r0", Args: adm.Args{Incarnation: incarnation}}, &ex); err != nil {
		n.t.Fatalf("%s: export %s: %v\n%s", n.name, incarnation, err, n.log())
	}
	return ex.Names[0]
}

// client is an NBD client of one request at a time.
type client struct {
	t    *testing.T
	conn net.Conn
	next uint64
}

func (n *node) client(export string) *client {
	n.t.Helper()
	conn, err := openNBD(n.path("nbd"), export)
	if err != nil {
		n.t.Fatalf("%s: %s: %v\n%s", n.name, export, err, n.log())
	}
	n.t.Cleanup(func() { conn.Close() })
	return &client{t: n.t, conn: conn}
}

// write writes a block and waits for the acknowledgement.
func (c *client) write(block int) error {
	c.next++
	buf := make([]byte, 28+writerBlock)
	request(buf, c.next, block)
	if _, err := c.conn.Write(buf); err != nil {
		return err
	}
	_, err := c.reply()
	return err
}

func (c *client) reply() (errno uint32, err error) {
	reply := make([]byte, 16)
	_, err = io.ReadFull(c.conn, reply)
	return binary.BigEndian.Uint32(reply[4:]), err
}

// TestManagedResource: nobody but a manager promotes, and nothing is exported
// under the bare name.
func TestManagedResource(t *testing.T) {
	begin(t, "qemu-io")
	p := newTermPair(t, options{global: quick, settings: internal})
	if st := p.a.status(); st.Manager != "internal" || st.Volumes[0].Export != "" {
		t.Errorf("status of a managed resource: %+v", st)
	}
	if r := run(t, "qemu-io", "-f", "raw", "-r", "-c", "read 0 4k", p.a.uri("r0")); r.code == 0 {
		t.Error("a managed resource is exported under its bare name")
	}
	p.a.must("secondary", "r0")
	p.b.refused(10, []string{"polluxha decides who is Primary", "polluxadm vm start"}, "primary", "r0")
	p.b.refused(10, []string{"polluxha decides", "--confirm=r0"}, "primary", "--force", "r0")
	p.b.refused(10, []string{"polluxha decides", "--confirm=r0"}, "primary", "--force", "--confirm=r1", "r0")
	p.b.must("primary", "--force", "--confirm=r0", "r0")
	st := p.b.status()
	if st.Role != "Primary" || st.Term == nil || st.Term.Term <= 1000 || !st.Term.Owned {
		t.Errorf("after the override: %+v", st)
	}
	if log := p.b.log(); !strings.Contains(log, `"audit":true`) {
		t.Error("the override is not in the audit log")
	}
	p.a.wait("the other node has heard of the term", func(r adm.Resource) bool { return r.Term.Promised == st.Term.Term })
	p.a.refuses(adm.CmdPrimary, adm.Args{Term: 2}, "term 2 is lower")
}

// TestIncarnation: one process has it, also after polluxd was restarted, until
// another incarnation takes its place.
func TestIncarnation(t *testing.T) {
	begin(t, "qemu-io")
	p := newTermPair(t, options{global: quick, settings: internal})
	name := p.a.exportTo("one")
	if name != "r0@one" || p.a.status().Incarnation != "one" {
		t.Errorf("export %q, status %+v", name, p.a.status())
	}
	c := p.a.client(name)
	if err := c.write(0); err != nil {
		t.Fatal(err)
	}
	second := func() {
		t.Helper()
		r := run(t, "qemu-io", "-f", "raw", "-r", "-c", "read 0 4k", p.a.uri("r0@one"))
		if r.code == 0 || !strings.Contains(r.err, "belongs to process") || !strings.Contains(r.err, "qemu-io") {
			t.Errorf("a second process: %v", r)
		}
		if !strings.Contains(p.a.log(), "NBD client refused") {
			t.Error("the refusal is not in the log")
		}
	}
	second()
	p.a.client(name).conn.Close() // the same process may connect as often as it likes

	p.a.kill()
	if err := c.write(0); err == nil {
		t.Error("the connection has outlived polluxd")
	}
	p.a.start()
	p.a.wait("Primary again", func(r adm.Resource) bool { return r.Role == "Primary" && r.WaitsToResume == "" })
	second()
	c = p.a.client(name)
	if err := c.write(0); err != nil {
		t.Fatal(err)
	}

	two := p.a.exportTo("two")
	if _, err := c.reply(); err == nil {
		t.Error("the connection of the old incarnation goes on")
	}
	if _, err := openNBD(p.a.path("nbd"), name); err == nil {
		t.Error("the old incarnation is served")
	}
	// What the first process was does not count: this one was first.
	if r := run(t, "qemu-io", "-f", "raw", "-c", "write 0 4k", p.a.uri(two)); r.code != 0 {
		t.Errorf("the new incarnation: %v", r)
	}
	p.a.wait("the client's end is seen", func(r adm.Resource) bool { return r.Volumes[0].OpenCount == 0 })
	p.a.command(adm.CmdSecondary, adm.Args{})
	if _, err := openNBD(p.a.path("nbd"), two); err == nil || p.a.status().Incarnation != "" {
		t.Error("the incarnation has outlived the demotion")
	}
	if _, err := os.Stat(p.a.path("state/r0.incarnation")); err == nil {
		t.Error("its record is left")
	}
}

// TestIncarnationAfterReboot: processes of another boot have nothing here.
func TestIncarnationAfterReboot(t *testing.T) {
	begin(t)
	p := newTermPair(t, options{global: quick, settings: internal})
	if err := p.a.client(p.a.exportTo("one")).write(0); err != nil {
		t.Fatal(err)
	}
	p.a.kill()
	for _, f := range []string{"state/r0.role", "state/r0.incarnation"} {
		p.a.otherBoot(f)
	}
	p.a.start()
	p.inSync()
	if st := p.a.status(); st.Role != "Secondary" || st.Incarnation != "" || st.Term == nil || st.Term.Promised != 1 {
		t.Errorf("after a reboot: %+v", st)
	}
	if _, err := openNBD(p.a.path("nbd"), "r0@one"); err == nil {
		t.Error("the incarnation is served after a reboot")
	}
	p.own(p.b, 2, false)
	if err := p.b.client(p.b.exportTo("two")).write(1); err != nil {
		t.Fatal(err)
	}
}

// TestFrozenIncarnation: an owner that was replaced can be demoted although
// requests of its killed VM are frozen, and nobody hears of these any more.
func TestFrozenIncarnation(t *testing.T) {
	begin(t)
	p := newTermPair(t, options{global: quick, settings: internal})
	c := p.a.client(p.a.exportTo("one"))
	if err := c.write(0); err != nil {
		t.Fatal(err)
	}
	p.b.kill()
	p.a.wait("frozen", func(r adm.Resource) bool { return r.Term.Frozen != "" })
	buf := make([]byte, 28+writerBlock)
	request(buf, 99, 1)
	if _, err := c.conn.Write(buf); err != nil {
		t.Fatal(err)
	}
	p.a.wait("the write waits", func(r adm.Resource) bool { return r.Volumes[0].AppPending > 0 })
	p.a.refuses(adm.CmdExport, adm.Args{Incarnation: "two"}, "have not come back", "shared with the peer")
	p.b.start()
	p.wait("connected again", func(a, b adm.Resource) bool { return healthy(a) && healthy(b) })
	p.a.exportTo("two") // what was frozen has ended: the peer has it

	p.b.kill()
	p.a.wait("frozen", func(r adm.Resource) bool { return r.Term.Frozen != "" })
	c = p.a.client("r0@two")
	if _, err := c.conn.Write(buf); err != nil {
		t.Fatal(err)
	}
	p.a.wait("the write waits", func(r adm.Resource) bool { return r.Volumes[0].AppPending > 0 })
	p.a.refuses(adm.CmdSecondary, adm.Args{}, "held open")
	p.a.refused(10, []string{"polluxha decides when I/O goes on", "--confirm=r0"}, "resume-io", "r0")
	p.a.command(adm.CmdPromiseTerm, adm.Args{Term: 7}) // another node owns the data
	p.a.refuses(adm.CmdUnexport, adm.Args{}, "have not come back", "term 7 has been promised")
	p.a.command(adm.CmdSecondary, adm.Args{})
	if st := p.a.status(); st.Role != "Secondary" || st.Volumes[0].AppPending > 0 {
		t.Errorf("after the demotion: %+v", st)
	}
}

// TestPlannedHandOver: from the last acknowledgement on one node to the first on
// the other, with everything in between that polluxd has to do: no write is lost, and
// the time is printed (10 to 63 ms on a machine at rest).
func TestPlannedHandOver(t *testing.T) {
	begin(t)
	p := newTermPair(t, options{global: quick, settings: internal})
	from, to, c := p.a, p.b, p.a.client(p.a.exportTo("i1"))
	took := []time.Duration{}
	for term := uint64(2); term < 8; term++ {
		for i := range 64 {
			if err := c.write(i); err != nil {
				t.Fatal(err)
			}
		}
		name := to.exportTo("i" + string('0'+byte(term))) // prepared ahead
		last := time.Now()
		c.conn.Close()
		from.command(adm.CmdUnexport, adm.Args{})
		from.command(adm.CmdSecondary, adm.Args{})
		p.own(to, term, false)
		c = to.client(name)
		if err := c.write(0); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(last))
		from, to = to, from
	}
	t.Logf("last acknowledgement to first one on the other node: %v", took)
}

// TestFreeze: the manager stops the I/O of a Primary whose peer is connected, reads
// too, and it goes on by its word; a lease that is over does no harm to those who
// hear of each other.
func TestFreeze(t *testing.T) {
	begin(t)
	p := newTermPair(t, options{global: quick, settings: internal})
	c := p.a.client(p.a.exportTo("one"))
	p.a.command(adm.CmdFreeze, adm.Args{})
	if st := p.a.status(); st.Term.Frozen == "" || !st.Term.Held || len(st.Suspended) != 1 || st.Suspended[0] != "term" {
		t.Errorf("frozen: %+v", st)
	}
	buf := make([]byte, 28)
	request(append(buf, make([]byte, writerBlock)...), 1, 0)
	binary.BigEndian.PutUint32(buf, 0x25609513)
	binary.BigEndian.PutUint32(buf[24:], 512) // a read
	if _, err := c.conn.Write(buf); err != nil {
		t.Fatal(err)
	}
	p.a.wait("the read waits", func(r adm.Resource) bool { return r.Volumes[0].AppPending > 0 })
	p.a.command(adm.CmdThaw, adm.Args{})
	if errno, err := c.reply(); err != nil || errno != 0 {
		t.Errorf("the read after thaw: error %d, %v", errno, err)
	}
	if _, err := io.ReadFull(c.conn, make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	p.a.command(adm.CmdLease, adm.Args{LeaseMS: 100})
	if st := p.a.status(); st.Lease != adm.LeaseRunning {
		t.Errorf("lease %q", st.Lease)
	}
	p.a.wait("the lease is over", func(r adm.Resource) bool { return r.Lease == adm.LeaseOver })
	if err := c.write(0); err != nil {
		t.Error(err)
	}
}

// TestLossBound: under protocol A a Primary whose peer stands still answers so
// much, and no more.
func TestLossBound(t *testing.T) {
	begin(t)
	p := newTermPair(t, options{
		global:   "net { protocol A; connect-int 3; ping-int 3; timeout 60; }",
		settings: internal + "max-loss-bytes = \"1M\"\nmax-loss-seconds = 60\n",
	})
	c := p.a.client(p.a.exportTo("one"))
	if err := c.write(0); err != nil {
		t.Fatal(err)
	}
	p.b.signal(syscall.SIGSTOP)
	const sent = 300 // blocks of 4 KiB; 256 of them are the bound
	buf := make([]byte, 28+writerBlock)
	for i := range sent {
		request(buf, uint64(1000+i), i)
		if _, err := c.conn.Write(buf); err != nil {
			t.Fatal(err)
		}
	}
	st := p.a.wait("answers wait", func(r adm.Resource) bool { return r.Loss != nil && r.Loss.Holds })
	if st.Loss.MaxBytes != 1<<20 || st.Loss.MaxSeconds != 60 || st.Loss.Bytes > 1<<20 {
		t.Errorf("%+v", *st.Loss)
	}
	answered := 0
	for c.conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); ; answered++ {
		if _, err := c.reply(); err != nil {
			break
		}
	}
	if answered == 0 || answered > 256 {
		t.Errorf("%d writes of 4 KiB were answered, 1 MiB may be lost", answered)
	}
	p.b.signal(syscall.SIGCONT)
	c.conn.SetReadDeadline(time.Now().Add(waitLimit))
	for ; answered < sent; answered++ {
		if errno, err := c.reply(); err != nil || errno != 0 {
			t.Fatalf("answer %d: error %d, %v", answered, errno, err)
		}
	}
	p.a.wait("nothing is at risk", func(r adm.Resource) bool { return r.Loss.Bytes == 0 && !r.Loss.Holds })
}

// TestPacemakerManaged: the copies vote on the term of a plain promotion.
func TestPacemakerManaged(t *testing.T) {
	begin(t, "qemu-io")
	p := newPair(t, options{
		global:   "net { connect-int 3; ping-int 3; timeout 20; fencing resource-and-stonith; } handlers { fence-peer /bin/false; }",
		settings: "[resource.r0]\nmanager = \"pacemaker\"\n", bare: true,
	})
	for _, n := range []*node{p.a, p.b} {
		n.must("create-md", "r0")
		n.start()
	}
	p.wait("connected", func(a, b adm.Resource) bool { return a.Connection == "Connected" && b.Connection == "Connected" })
	p.a.must("new-current-uuid", "--clear-bitmap", "r0")
	p.inSync()
	for i, n := range []*node{p.a, p.b} {
		n.must("primary", "r0")
		if st := n.status(); st.Role != "Primary" || st.Term == nil || st.Term.Term != uint64(i+1) || !st.Term.Owned {
			t.Errorf("%s: %+v", n.name, st)
		}
		mustRun(t, "qemu-io", "-f", "raw", "-c", "write 0 4k", n.uri("r0"))
		n.must("secondary", "r0")
	}
	p.b.kill()
	p.a.wait("the peer is lost", func(r adm.Resource) bool { return r.Connection == "WFConnection" })
	p.a.refused(11, []string{"(-7)", "fence-peer"}, "primary", "r0")
}

// TestEventOfALostPeer: a manager hears within milliseconds that the peer is lost,
// and that I/O is frozen for its term.
func TestEventOfALostPeer(t *testing.T) {
	begin(t)
	p := newTermPair(t, options{global: quick, settings: internal})
	conn, err := net.Dial("unix", p.a.path("ctl"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	line, err := adm.AppendLine(nil, adm.Request{V: adm.Version, ID: 1, Cmd: adm.CmdEvents}, adm.MaxRequest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(line); err != nil {
		t.Fatal(err)
	}
	events := make(chan adm.Event)
	go func() {
		defer close(events)
		lines := adm.NewLineReader(conn, adm.MaxResponse)
		for {
			b, err := lines.Line()
			if err != nil {
				return
			}
			var ev adm.Event
			if json.Unmarshal(b, &ev) == nil && ev.Kind != "" {
				events <- ev
			}
		}
	}()
	await := func(what string, cond func(r *adm.Resource) bool) {
		t.Helper()
		for {
			select {
			case ev, ok := <-events:
				if !ok {
					t.Fatalf("the stream ended before: %s", what)
				}
				if ev.Resource != nil && cond(ev.Resource) {
					return
				}
			case <-time.After(waitLimit):
				t.Fatalf("waited in vain: %s", what)
			}
		}
	}
	await("the first status", func(r *adm.Resource) bool { return r.Term != nil && r.Term.Frozen == "" })
	began := time.Now()
	p.b.kill()
	await("frozen", func(r *adm.Resource) bool { return r.Term.Frozen != "" })
	took := time.Since(began)
	began = time.Now()
	p.a.command(adm.CmdPrimary, adm.Args{Term: 2, Sole: true})
	await("alone", func(r *adm.Resource) bool {
		return r.Term.Term == 2 && r.Term.Sole && r.Term.Marked && r.Term.Frozen == ""
	})
	t.Logf("from the peer's death to the event: %v; from the grant to its event: %v", took, time.Since(began))
	if took > 500*time.Millisecond {
		t.Errorf("the event came after %v", took)
	}
	p.a.command(adm.CmdPromiseTerm, adm.Args{Term: 3})
	await("the promise", func(r *adm.Resource) bool { return r.Term.Promised == 3 && r.Term.Frozen != "" })
}

// TestIncarnationOutlivesPolluxd: a hypervisor whose polluxd is killed and started
// again connects anew, repeats what was not answered, and notices a pause only;
// also while the peer is away, as long as this node was durably the only writer.
func TestIncarnationOutlivesPolluxd(t *testing.T) {
	begin(t, "fio", "qemu-storage-daemon")
	p := newTermPair(t, options{size: 64 << 20, global: quick, settings: internal})
	through := proxyOf(t, p.a, p.a.exportTo("one"))
	l := startLoad(t, through, 8, 8*time.Second)
	restart := func() {
		t.Helper()
		p.written()
		p.a.kill()
		p.a.start()
		p.a.wait("Primary again", func(r adm.Resource) bool { return r.Role == "Primary" && r.WaitsToResume == "" })
	}
	restart()
	p.wait("resynced", func(a, b adm.Resource) bool { return healthy(a) && healthy(b) })
	p.b.kill()
	p.a.wait("frozen", func(r adm.Resource) bool { return r.Term.Frozen != "" })
	p.a.command(adm.CmdPrimary, adm.Args{Term: 2, Sole: true})
	restart()
	if st := p.a.status(); st.Term == nil || st.Term.Term != 2 || !st.Term.Sole || st.Incarnation != "one" {
		t.Errorf("the only writer after a restart: %+v", st)
	}
	l.end()
	l.verify(through)
	p.b.start()
	p.inSync()
}

// TestFrozenAfterRestart: an owner that shared its term, and is started again while
// its peer is away, does not go on before its manager has a new term for it; its
// client waits meanwhile.
func TestFrozenAfterRestart(t *testing.T) {
	begin(t, "fio", "qemu-storage-daemon")
	p := newTermPair(t, options{size: 64 << 20, global: quick, settings: internal})
	through := proxyOf(t, p.a, p.a.exportTo("one"))
	l := startLoad(t, through, 4, 3*time.Second)
	p.written()
	p.a.kill()
	p.b.kill()
	p.a.start()
	if st := p.a.status(); st.Role == "Primary" || st.WaitsToResume == "" || st.Incarnation != "one" {
		t.Errorf("after the restart, alone: %+v", st)
	}
	p.a.refuses(adm.CmdPrimary, adm.Args{Term: 1}, "(-7)")
	p.a.refuses(adm.CmdPrimary, adm.Args{Term: 1, Sole: true}, "not the only writer any more")
	p.a.command(adm.CmdPrimary, adm.Args{Term: 2, Sole: true})
	l.end()
	l.verify(through)
	p.b.start()
	p.inSync()
	if st := p.b.status(); st.Role != "Secondary" || st.Term.Promised != 2 {
		t.Errorf("the other node: %+v", st)
	}
}
