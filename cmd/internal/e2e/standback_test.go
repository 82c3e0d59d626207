package e2e

import (
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// TestPeerLeaves: the peer of the owner of a shared term leaves in good order, in each
// of the ways in which an operator or systemd does it. The owner goes on alone, although
// nobody has granted anything; the peer's copy counts again when both have met.
func TestPeerLeaves(t *testing.T) {
	for _, tt := range []struct {
		name        string
		leave, back func(b *node)
	}{
		{"disconnect", func(b *node) { b.must("disconnect", "r0") }, func(b *node) { b.must("connect", "r0") }},
		{"down", func(b *node) { b.must("down", "r0") }, func(b *node) { b.must("up", "r0") }},
		{"polluxd is stopped", func(b *node) { b.stop() }, func(b *node) { b.start() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			begin(t)
			p := newTermPair(t, options{global: quick, settings: internal})
			c := p.a.client(p.a.exportTo("one"))
			if err := c.write(0); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			tt.leave(p.b)
			if err := c.write(1); err != nil {
				t.Fatal(err)
			}
			t.Logf("the first write alone was answered %v after the order to leave", time.Since(began))
			if st := p.a.status(); !st.Term.Sole || !st.Term.Marked || st.Term.Term != 1 {
				t.Errorf("the owner: %+v", *st.Term)
			}
			tt.back(p.b)
			p.inSync()
			p.a.wait("the term is shared again", func(r adm.Resource) bool { return !r.Term.Sole && !r.Term.Marked })
			if err := c.write(2); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestLeaverIsNotPromoted: who has left, and crashed after that, is refused whatever
// term it is given.
func TestLeaverIsNotPromoted(t *testing.T) {
	begin(t)
	p := newTermPair(t, options{global: quick, settings: internal})
	p.b.must("disconnect", "r0")
	p.a.kill()
	p.b.kill()
	p.b.start()
	if st := p.b.status(); st.Volumes[0].Disk != "Outdated" {
		t.Errorf("disk %s", st.Volumes[0].Disk)
	}
	p.b.command(adm.CmdPromiseTerm, adm.Args{Term: 5})
	p.b.refuses(adm.CmdPrimary, adm.Args{Term: 5, Sole: true}, "UpToDate")
}

// TestFailsafe: asked for it, the peer stands back, and the owner goes on at once when
// the peer is killed. Without it its I/O waits.
func TestFailsafe(t *testing.T) {
	begin(t)
	p := newTermPair(t, options{global: quick, settings: internal})
	c := p.a.client(p.a.exportTo("one"))
	p.a.command(adm.CmdFailsafe, adm.Args{})
	p.a.wait("the peer stands back", func(r adm.Resource) bool { return r.Term.PeerStandsBack })
	p.b.wait("it says so", func(r adm.Resource) bool { return r.Term.StandsBack })
	p.b.kill()
	if err := c.write(0); err != nil {
		t.Fatal(err)
	}
	if st := p.a.status(); !st.Term.Sole || !st.Term.Marked {
		t.Errorf("the owner: %+v", *st.Term)
	}
	p.b.start()
	p.inSync()
	p.a.command(adm.CmdFailsafeOver, adm.Args{})
	p.b.wait("it counts again", func(r adm.Resource) bool { return !r.Term.StandsBack })
	p.b.kill()
	p.a.wait("frozen", func(r adm.Resource) bool { return r.Term.Frozen != "" })
}

// TestOrphanIsKilled: the lease is over, whoever told it does nothing, the peer is lost:
// the program that has the disk is killed, and not before the peer is lost.
func TestOrphanIsKilled(t *testing.T) {
	begin(t, "qemu-io")
	p := newTermPair(t, options{global: quick, settings: internal})
	name := p.a.exportTo("one")
	vm := exec.Command("qemu-io", "-f", "raw", p.a.uri(name)) // waits for commands on its standard input, as a VM for work
	if _, err := vm.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- vm.Wait() }()
	defer vm.Process.Kill() //nolint:errcheck // it is dead by then, or the test has failed
	p.a.wait("it has the disk", func(r adm.Resource) bool { return r.Volumes[0].OpenCount > 0 })
	p.a.command(adm.CmdLease, adm.Args{LeaseMS: 200})
	p.a.wait("the lease is over", func(r adm.Resource) bool { return r.Lease == adm.LeaseOver })
	select {
	case <-ended: //nolint:errcheck // that it has ended is enough
		t.Fatal("it was killed while the peer is connected")
	case <-time.After(1500 * time.Millisecond): // three looks of the guard
	}
	p.b.signal(syscall.SIGSTOP)
	began := time.Now()
	select {
	case <-ended: //nolint:errcheck // that it has ended is enough
		t.Logf("killed %v after the peer fell silent", time.Since(began))
	case <-time.After(waitLimit):
		t.Fatalf("it lives\n%s", p.a.log())
	}
	p.b.signal(syscall.SIGCONT)
}
