package hatestbed

import (
	"context"
	"fmt"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// What a round waits for.
type outcome uint8

const (
	takesOver outcome = iota // the machine starts on the other host
	goesOn                   // the machine runs on, the client sees a short pause at most
	moves                    // the machine is shut down and started on the other host
	survives                 // the machine answers again, wherever
)

// An act is something that is done to a host.
type act func(s *Site, ctx context.Context, h *Host) error

// secondary and witness do it to another host than the one with the machine.
func secondary(do act) act {
	return func(s *Site, ctx context.Context, p *Host) error { return do(s, ctx, s.other(p)) }
}

func witness(do act) act {
	return func(s *Site, ctx context.Context, _ *Host) error { return do(s, ctx, s.Hosts[2]) }
}

// A fault is one thing that happens to the rack. strike does it to the host with
// the machine, mend undoes what a person would, on the host that was struck.
type fault struct {
	name   string
	want   outcome
	bar    time.Duration // takesOver: to the kernel's start; goesOn: to I/O, beyond detection; 0: none
	strike act
	hold   time.Duration // how long it stays struck, at least
	mend   act           // nil: nothing is to be mended
	only   Arbiter       // in this half of the rounds; "": in both
	before act           // nil: nothing is to be prepared
	short  Arbiter       // the short form has it in this half; "": in none
}

// The speeds that are promised.
const (
	barTakeover = 12 * time.Second // with a lease of 6 s
	barLeader   = 15 * time.Second // when the host also led etcd
	barResume   = 500 * time.Millisecond
	barHandover = 500 * time.Millisecond
	pauseLength = 30 * time.Second
	longHold    = 12 * time.Second // two leases
	shortHold   = 2 * time.Second
)

// faults are all kinds, in the order of the table.
func faults() []fault {
	return []fault{
		{name: "primary host: kill -9 of all", want: takesOver, bar: barTakeover, hold: shortHold, strike: (*Site).KillAll, mend: (*Site).PowerOn, short: ArbiterEtcd},
		{name: "primary host loses power", want: takesOver, bar: barTakeover, hold: shortHold, strike: (*Site).PowerOff, mend: (*Site).PowerOn},
		{
			name: "primary host, etcd's leader, dies", want: takesOver, bar: barLeader, hold: shortHold, only: ArbiterEtcd,
			before: (*Site).LeaderToPrimary, strike: (*Site).PowerOff, mend: (*Site).PowerOn,
		},
		{name: "primary host cut off", want: takesOver, bar: barTakeover, hold: shortHold, strike: (*Site).CutOff, mend: (*Site).MendAll, short: ArbiterWitness},
		{name: "primary host stopped for 30 s", want: takesOver, bar: barTakeover, hold: pauseLength, strike: (*Site).Pause, mend: (*Site).Resume},
		{name: "secondary host loses power", want: goesOn, bar: barResume, hold: shortHold, strike: secondary((*Site).PowerOff), mend: secondary((*Site).PowerOn), short: ArbiterWitness},
		{name: "secondary host cut off", want: goesOn, bar: barResume, hold: shortHold, strike: secondary((*Site).CutOff), mend: secondary((*Site).MendAll)},
		{name: "secondary host stopped for 30 s", want: goesOn, bar: barResume, hold: pauseLength, strike: secondary((*Site).Pause), mend: secondary((*Site).Resume)},
		{name: "replication link cut", want: goesOn, bar: barResume, hold: longHold, strike: (*Site).CutReplication, mend: (*Site).MendAll, short: ArbiterEtcd},
		{name: "primary's disk fails", want: survives, hold: longHold, strike: (*Site).FailDisk, mend: (*Site).ReplaceDisk},
		{name: "secondary's disk fails", want: goesOn, hold: longHold, strike: secondary((*Site).FailDisk), mend: secondary((*Site).ReplaceDisk)},
		{name: "arbiter lost", want: goesOn, hold: longHold, strike: (*Site).LoseArbiter, mend: (*Site).ReturnArbiter},
		{name: "witness host loses power", want: goesOn, hold: shortHold, only: ArbiterEtcd, strike: witness((*Site).PowerOff), mend: witness((*Site).PowerOn)},
		{name: "polluxha crashes on the primary", want: goesOn, hold: shortHold, strike: (*Site).CrashManager, mend: (*Site).StartManager, short: ArbiterEtcd},
		{name: "planned move", want: moves, bar: barHandover, strike: (*Site).Move, short: ArbiterEtcd},
	}
}

// KillAll is kill -9 of everything on a host: the kernel lives long enough to
// close its connections.
func (s *Site) KillAll(_ context.Context, h *Host) error { return h.space.Kill() }

// PowerOff ends a host without a sign to the others.
func (s *Site) PowerOff(_ context.Context, h *Host) error {
	for _, l := range h.links() {
		if err := s.Cut(h, l); err != nil {
			return err
		}
	}
	return h.space.Kill()
}

// PowerOn boots a host that was killed or lost its power.
func (s *Site) PowerOn(ctx context.Context, h *Host) error {
	if err := s.MendAll(ctx, h); err != nil {
		return err
	}
	if err := h.Reboot(); err != nil {
		return err
	}
	return s.startHost(ctx, h)
}

// CutOff cuts a host off from the others, but not from the machine's clients.
func (s *Site) CutOff(_ context.Context, h *Host) error {
	for _, l := range h.links() {
		if l == Public {
			continue
		}
		if err := s.Cut(h, l); err != nil {
			return err
		}
	}
	return nil
}

// CutReplication cuts the link between the copies only.
func (s *Site) CutReplication(_ context.Context, h *Host) error { return s.Cut(h, Replication) }

// MendAll plugs all cables of a host in again.
func (s *Site) MendAll(_ context.Context, h *Host) error {
	for _, l := range h.links() {
		if err := s.Mend(h, l); err != nil {
			return err
		}
	}
	return nil
}

// Pause stops a host as a whole, Resume lets it go on.
func (s *Site) Pause(_ context.Context, h *Host) error { return h.space.Stop() }

// Resume undoes Pause.
func (s *Site) Resume(_ context.Context, h *Host) error { return h.space.Continue() }

// FailDisk makes a host's disk answer with errors.
func (s *Site) FailDisk(_ context.Context, h *Host) error { return h.disk.Fail() }

// ReplaceDisk repairs a host's disk, and attaches it as an operator would.
func (s *Site) ReplaceDisk(ctx context.Context, h *Host) error {
	if err := h.disk.Repair(); err != nil {
		return err
	}
	if r, ok := s.sights[h.Name].Now(); ok && len(r.Volumes) == 1 && r.Volumes[0].Disk == "UpToDate" {
		return nil // it had nothing to write
	}
	_, err := s.Adm(ctx, h, "attach", resourceName)
	return err
}

// LoseArbiter takes the arbiter from the primary host; the copies still see each
// other. With etcd that needs two of its three members.
func (s *Site) LoseArbiter(ctx context.Context, p *Host) error {
	if err := s.PowerOff(ctx, s.Hosts[2]); err != nil || s.Arbiter == ArbiterWitness {
		return err
	}
	return s.CrashManager(ctx, s.other(p))
}

// ReturnArbiter undoes LoseArbiter.
func (s *Site) ReturnArbiter(ctx context.Context, p *Host) error {
	if err := s.PowerOn(ctx, s.Hosts[2]); err != nil || s.Arbiter == ArbiterWitness {
		return err
	}
	return s.StartManager(ctx, s.other(p))
}

// CrashManager kills polluxha on a host.
func (s *Site) CrashManager(_ context.Context, h *Host) error {
	return h.kill(s.daemons[h.Name]["polluxha"])
}

// StartManager starts it again, as systemd does.
func (s *Site) StartManager(ctx context.Context, h *Host) error {
	return s.Start(ctx, h, "polluxha", s.managerArgs(h)...)
}

// Move is the planned move to the other host.
func (s *Site) Move(ctx context.Context, p *Host) error {
	if err := p.order(ctx, adm.HARequest{Cmd: adm.HAVMMove, VM: vmName, Node: s.other(p).Name}, nil); err != nil {
		return fmt.Errorf("planned move: %w", err)
	}
	return nil
}
