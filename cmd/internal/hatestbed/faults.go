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
	stands                   // nothing is acknowledged until it is mended, as it could be lost; then it answers again
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

// both does several things, one at once after the other.
func both(acts ...act) act {
	return func(s *Site, ctx context.Context, p *Host) error {
		for _, do := range acts {
			if err := do(s, ctx, p); err != nil {
				return err
			}
		}
		return nil
	}
}

// A fault is one thing that happens to the rack. strike does it to the host with
// the machine, mend undoes what a person would, on the host that was struck.
type fault struct {
	name   string
	want   outcome
	before act // nil: nothing is to be prepared
	strike act
	then   act           // a second fault while the first one lasts; nil: none
	gap    time.Duration // between the two
	hold   time.Duration // how long it stays struck, at least
	mend   act           // nil: nothing is to be mended
	barred bool          // a speed is promised
	fells  side          // the arbiter loses what this host is for it
	only   Arbiter       // with this arbiter; "": with etcd and the witness
	short  Arbiter       // the short form has it with this arbiter; "": it does not
	blind  Arbiter       // the control has it with this arbiter; "": it does not
	wakes  bool          // a host stood still, and wakes
	twoRun bool          // nobody is there to end the old machine, whose I/O is frozen
}

// A side is a data node, by what it has.
type side uint8

const (
	neither side = iota
	primarySide
	secondarySide
)

// How long a fault lasts, at least.
const (
	pauseLength = 30 * time.Second
	longHold    = 9 * time.Second // a lease of 6 s, its margin, and time for a wrong decision
	shortHold   = 2 * time.Second
	diskHold    = 4 * time.Second // the machine writes all the time: it meets the disk at once
)

// faults are all kinds, in the order of the table.
func faults() []fault { return append(singleFaults(), doubleFaults()...) }

// killPrimary is what the promised speed of a takeover is about.
const killPrimary = "primary host: kill -9 of all"

func singleFaults() []fault {
	return []fault{
		{name: killPrimary, want: takesOver, barred: true, fells: primarySide, hold: shortHold, strike: (*Site).KillAll, mend: (*Site).PowerOn, short: ArbiterEtcd},
		{name: "primary host loses power", want: takesOver, barred: true, fells: primarySide, hold: shortHold, strike: (*Site).PowerOff, mend: (*Site).PowerOn},
		{
			name: "primary host, etcd's leader, dies", want: takesOver, barred: true, fells: primarySide, hold: shortHold, only: ArbiterEtcd,
			before: (*Site).LeaderToPrimary, strike: (*Site).PowerOff, mend: (*Site).PowerOn,
		},
		{name: "primary host cut off", want: takesOver, barred: true, fells: primarySide, hold: shortHold, strike: (*Site).CutOff, mend: (*Site).MendAll, short: ArbiterWitness, blind: ArbiterEtcd},
		{name: "primary host stopped for 30 s", want: takesOver, barred: true, fells: primarySide, hold: pauseLength, strike: (*Site).Pause, mend: (*Site).Resume, wakes: true},
		{name: "secondary host: kill -9 of all", want: goesOn, barred: true, fells: secondarySide, hold: shortHold, strike: secondary((*Site).KillAll), mend: secondary((*Site).PowerOn)},
		{name: "secondary host loses power", want: goesOn, barred: true, fells: secondarySide, hold: shortHold, strike: secondary((*Site).PowerOff), mend: secondary((*Site).PowerOn), short: ArbiterWitness},
		{
			name: "secondary host, etcd's leader, dies", want: goesOn, barred: true, fells: secondarySide, hold: shortHold, only: ArbiterEtcd,
			before: (*Site).LeaderToSecondary, strike: secondary((*Site).PowerOff), mend: secondary((*Site).PowerOn),
		},
		{name: "secondary host cut off", want: goesOn, barred: true, fells: secondarySide, hold: shortHold, strike: secondary((*Site).CutOff), mend: secondary((*Site).MendAll)},
		{name: "secondary host stopped for 30 s", want: goesOn, barred: true, fells: secondarySide, hold: pauseLength, strike: secondary((*Site).Pause), mend: secondary((*Site).Resume), wakes: true},
		{name: "replication link cut", want: goesOn, barred: true, hold: longHold, strike: (*Site).CutReplication, mend: (*Site).MendAll, short: ArbiterEtcd},
		{name: "primary's disk fails", want: survives, hold: diskHold, strike: (*Site).FailDisk, mend: (*Site).ReplaceDisk},
		{name: "secondary's disk fails", want: goesOn, hold: diskHold, strike: secondary((*Site).FailDisk), mend: secondary((*Site).ReplaceDisk)},
		{name: "arbiter lost", want: goesOn, hold: longHold, strike: (*Site).LoseArbiter, mend: (*Site).ReturnArbiter},
		{name: "witness host loses power", want: goesOn, hold: shortHold, only: ArbiterEtcd, strike: witness((*Site).PowerOff), mend: witness((*Site).PowerOn)},
		{name: "polluxha crashes on the primary", want: goesOn, hold: shortHold, strike: (*Site).CrashManager, mend: (*Site).StartManager, short: ArbiterEtcd},
		{name: "polluxha crashes on the secondary", want: goesOn, hold: shortHold, strike: secondary((*Site).CrashManager), mend: secondary((*Site).StartManager)},
		{name: "planned move", want: moves, barred: true, strike: (*Site).Move, short: ArbiterEtcd},
	}
}

// doubleFaults are a second one while a first one lasts: where no rule lets anybody
// write, nobody does, and all comes back once a person has mended it.
func doubleFaults() []fault {
	return []fault{
		{name: "both hosts lose power at once", want: stands, hold: shortHold, strike: both((*Site).PowerOff, secondary((*Site).PowerOff)), mend: both((*Site).PowerOn, secondary((*Site).PowerOn))},
		{name: "arbiter lost, then primary dies", want: stands, hold: longHold, gap: shortHold, strike: (*Site).LoseQuorum, then: (*Site).PowerOff, mend: both((*Site).ReturnQuorum, (*Site).PowerOn)},
		{name: "arbiter lost, then secondary dies", want: stands, hold: longHold, gap: shortHold, strike: (*Site).LoseQuorum, then: secondary((*Site).PowerOff), mend: both((*Site).ReturnQuorum, secondary((*Site).PowerOn))},
		{name: "link cut, later primary dies", want: stands, hold: longHold, gap: 2 * shortHold, strike: (*Site).CutReplication, then: (*Site).PowerOff, mend: (*Site).PowerOn},
		{
			name: "polluxha crashes, primary cut off", want: takesOver, barred: true, fells: primarySide, hold: shortHold, strike: both((*Site).CrashManager, (*Site).CutOff),
			mend: both((*Site).StartManager, (*Site).MendAll), blind: ArbiterWitness, twoRun: true,
		},
		{
			name: "primary wakes without polluxha", want: takesOver, barred: true, fells: primarySide, hold: pauseLength, strike: both((*Site).Pause, (*Site).CrashManager),
			mend: (*Site).WakeUnmanaged, blind: ArbiterEtcd, wakes: true, twoRun: true,
		},
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
	if s.strip != nil {
		s.strip.on(h.Name)
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

// LoseQuorum takes the arbiter from both data nodes; everything of theirs runs, and
// the copies still see each other.
func (s *Site) LoseQuorum(ctx context.Context, p *Host) error {
	if err := s.PowerOff(ctx, s.Hosts[2]); err != nil || s.Arbiter == ArbiterWitness {
		return err
	}
	return s.Cut(s.other(p), Management)
}

// ReturnQuorum undoes LoseQuorum.
func (s *Site) ReturnQuorum(ctx context.Context, p *Host) error {
	if err := s.PowerOn(ctx, s.Hosts[2]); err != nil || s.Arbiter == ArbiterWitness {
		return err
	}
	return s.Mend(s.other(p), Management)
}

// unmanaged is how long a host that has woken has nobody who would end its machine.
const unmanaged = 3 * time.Second

// WakeUnmanaged lets a host go on whose polluxha has died meanwhile, and starts that
// some time later: only the terms keep its machine from writing.
func (s *Site) WakeUnmanaged(ctx context.Context, h *Host) error {
	if err := s.Resume(ctx, h); err != nil {
		return err
	}
	if err := sleep(ctx, unmanaged); err != nil {
		return err
	}
	return s.StartManager(ctx, h)
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
