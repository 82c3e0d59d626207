package hatestbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// How long things may take before a round has failed: generous, the bars are
// compared with what was measured.
const (
	outcomeLimit = 60 * time.Second
	settleLimit  = 120 * time.Second
	controlLimit = 30 * time.Second // without the check of terms it may never be well again
	// overlapLimit is how long two machines may run at once when a stopped host
	// wakes: a third of a lease, by when its manager has looked at the clock.
	overlapLimit = 2 * time.Second
	crashSpread  = 2 * time.Second // nobody can know the moment
)

// Config says what to do.
type Config struct {
	Bin     string // directory of the programs
	Guest   string // directory of vmlinuz and initramfs.cpio (scripts/demo/build-guest)
	Dir     string // work directory; must not exist
	Rounds  int
	Short   bool // one round of each kind that is marked so, whatever Rounds is
	Seed    uint64
	Arbiter Arbiter // "": half of the rounds each
	Only    string  // faults whose name contains this; "": all
	Control bool    // harm is wanted: nobody waits long for all to be well, and it ends the rounds
	Out     io.Writer
}

// A Report is what the rounds have shown.
type Report struct {
	Rounds    []Measured
	Acked     int   // records that were promised, to the client or on a console
	MaxBothMS int64 // longest time that two machines ran at once
	Harm      int   // faults that are a lost record or a second writer
	Faults    []string
}

// Measured is one round. Times are from the fault on, zero if there is none.
type Measured struct {
	Number                            int
	Arbiter                           Arbiter
	Fault                             string
	Detected, Promoted, Kernel, First time.Duration // of a takeover or a move
	Resumed                           time.Duration // from detection to I/O alone
	Gap                               time.Duration // the longest that the client saw
	Both                              time.Duration
	Led                               bool // the host that was struck led etcd
	Missed                            bool // beyond the bar
	Harm                              int  // lost records, and second writers
	Faults                            []string
}

// Run does all rounds and prints each. The report is whole if err is nil; what
// was found wrong is in its Faults.
func Run(ctx context.Context, cfg Config) (rep *Report, err error) {
	rep = &Report{}
	halves := []Arbiter{ArbiterEtcd, ArbiterWitness}
	if cfg.Arbiter != "" {
		halves = []Arbiter{cfg.Arbiter}
	}
	if err := cfg.check(halves); err != nil {
		return rep, err
	}
	random := newRandom(cfg.Seed)
	for i, arbiter := range halves {
		list := draw(random, cfg.Only, arbiter, (cfg.Rounds+i)/len(halves))
		if cfg.Short {
			list = short(random, arbiter)
		}
		if err := runHalf(ctx, cfg, arbiter, list, rep); err != nil {
			return rep, fmt.Errorf("with arbiter %s: %w", arbiter, err)
		}
	}
	return rep, nil
}

func newRandom(seed uint64) *rand.Rand {
	return rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a seed is to repeat the rounds
}

// check looks for what the rounds need.
func (cfg *Config) check(halves []Arbiter) error {
	files := []string{
		filepath.Join(cfg.Bin, "polluxd"), filepath.Join(cfg.Bin, "polluxha"), filepath.Join(cfg.Bin, "polluxadm"),
		filepath.Join(cfg.Guest, "vmlinuz"), filepath.Join(cfg.Guest, "initramfs.cpio"),
	}
	if slices.Contains(halves, ArbiterWitness) {
		files = append(files, filepath.Join(cfg.Bin, "pollux-witness"))
	}
	for _, file := range files {
		if _, err := os.Stat(file); err != nil {
			return fmt.Errorf("%w; 'make ha' makes it", err)
		}
	}
	return nil
}

// draw mixes the kinds: each comes once before any comes twice.
func draw(random *rand.Rand, only string, arbiter Arbiter, rounds int) (list []fault) {
	kinds := slices.DeleteFunc(faults(), func(f fault) bool {
		return f.only != "" && f.only != arbiter || !strings.Contains(f.name, only)
	})
	for len(list) < rounds && len(kinds) > 0 {
		random.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
		list = append(list, kinds...)
	}
	return list[:min(rounds, len(list))]
}

// short are the kinds of the short form.
func short(random *rand.Rand, arbiter Arbiter) []fault {
	list := slices.DeleteFunc(faults(), func(f fault) bool { return f.short != arbiter })
	random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

func runHalf(ctx context.Context, cfg Config, arbiter Arbiter, list []fault, rep *Report) (err error) {
	if len(list) == 0 {
		return nil
	}
	dir := filepath.Join(cfg.Dir, string(arbiter))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	fmt.Fprintf(cfg.Out, "arbiter %s: two data nodes, a witness, a machine with a client; %d rounds, seed %d\n", arbiter, len(list), cfg.Seed)
	s, err := NewSite(ctx, cfg.Bin, cfg.Guest, dir, arbiter)
	if err != nil {
		return err
	}
	defer func() {
		rep.Acked += len(s.Customer.Acked(time.Time{})) + len(s.consoleAcks())
		err = errors.Join(err, s.Close())
	}()
	if cfg.Control {
		s.patience = controlLimit
	}
	if err := s.BringUp(ctx); err != nil {
		return err
	}
	if err := s.Hosts[0].order(ctx, adm.HARequest{Cmd: adm.HAVMStart, VM: vmName}, nil); err != nil {
		return err
	}
	if err := s.settled(ctx, s.patience); err != nil {
		return fmt.Errorf("the machine does not come up: %w", err)
	}
	for _, f := range list {
		if err := s.settled(ctx, s.patience); err != nil {
			return err
		}
		m := s.round(ctx, f)
		if err := ctx.Err(); err != nil {
			return err
		}
		m.Number, m.Arbiter = len(rep.Rounds)+1, arbiter
		rep.add(m)
		fmt.Fprintln(cfg.Out, m.line())
		if cfg.Control && rep.SawHarm() {
			return nil
		}
	}
	if err := s.settled(ctx, s.patience); err != nil {
		return err
	}
	return s.finish(ctx, rep)
}

func (rep *Report) add(m Measured) {
	rep.Rounds = append(rep.Rounds, m)
	rep.MaxBothMS = max(rep.MaxBothMS, m.Both.Milliseconds())
	rep.Harm += m.Harm
	for _, f := range m.Faults {
		rep.Faults = append(rep.Faults, fmt.Sprintf("round %d, %s: %s", m.Number, m.Fault, f))
	}
}

// SawHarm tells whether an acknowledged record was lost, or two guests wrote.
func (rep *Report) SawHarm() bool { return rep.Harm > 0 }

// round strikes once, and watches until all is well again.
func (s *Site) round(ctx context.Context, f fault) (m Measured) {
	m.Fault = f.name
	wrong := func(err error) { m.Faults = append(m.Faults, err.Error()) }
	if f.before != nil {
		if err := f.before(s, ctx, nil); err != nil {
			wrong(err)
			return m
		}
	}
	p := s.Primary()
	if p == nil {
		wrong(errors.New("there is not one Primary"))
		return m
	}
	before := s.Customer.Acked(time.Now().Add(-answerPatience))
	if err := sleep(ctx, rand.N(crashSpread)); err != nil || len(before) == 0 {
		wrong(errors.Join(err, errors.New("the client gets no acknowledgements")))
		return m
	}
	victim := p
	if f.want == goesOn {
		victim = s.other(p)
	}
	m.Led = s.led(ctx, victim)
	s.Watcher.Overlap()
	struck := time.Now()
	if err := f.strike(s, ctx, p); err != nil {
		wrong(err)
		return m
	}
	if err := s.await(ctx, f, p, struck, &m); err != nil {
		wrong(err)
	}
	if err := sleep(ctx, f.hold-time.Since(struck)); err != nil {
		wrong(err)
		return m
	}
	if f.mend != nil {
		if err := f.mend(s, ctx, p); err != nil {
			wrong(err)
		}
	}
	if err := s.settled(ctx, s.patience); err != nil {
		wrong(err)
	}
	s.inspect(ctx, f, struck, &m)
	return m
}

// await waits for what has to come, and takes the times.
func (s *Site) await(ctx context.Context, f fault, p *Host, struck time.Time, m *Measured) error {
	ctx, cancel := context.WithTimeout(ctx, outcomeLimit)
	defer cancel()
	run := s.runBefore(struck)
	switch f.want {
	case takesOver, moves:
		first, err := s.Customer.Wait(ctx, struck, func(a Acked) bool { return a.Run != run })
		if err != nil {
			return fmt.Errorf("the machine did not come up on %s: %w", s.other(p).Name, err)
		}
		m.First = first.At.Sub(struck)
		s.takeover(p, struck, m)
		if f.want == moves {
			return s.handover(p, struck, f.bar, m)
		}
		bar := f.bar
		if m.Led {
			bar = barLeader
		}
		m.Missed = m.Kernel > bar
	case goesOn:
		if f.bar > 0 {
			if err := s.resumed(ctx, p, struck, f.bar, m); err != nil {
				return err
			}
		}
		_, err := s.Customer.Wait(ctx, struck.Add(max(f.hold-shortHold, shortHold/2)), func(a Acked) bool { return a.Run == run })
		if err != nil {
			return fmt.Errorf("the machine did not go on, on %s: %w", p.Name, err)
		}
	case survives:
		if _, err := s.Customer.Wait(ctx, struck.Add(shortHold), func(Acked) bool { return true }); err != nil {
			return fmt.Errorf("the machine did not answer again: %w", err)
		}
	}
	return nil
}

// runBefore is the guest that answered last before a moment.
func (s *Site) runBefore(when time.Time) string {
	run := ""
	for _, a := range s.Customer.Acked(when.Add(-answerPatience)) {
		if a.At.Before(when) {
			run = a.Run
		}
	}
	return run
}

// takeover takes the times of what the other host did.
func (s *Site) takeover(p *Host, struck time.Time, m *Measured) {
	o := s.other(p)
	sight := s.sights[o.Name]
	var promised uint64
	if now, ok := sight.Before(struck); ok && now.Term != nil {
		promised = now.Term.Promised
	}
	since := func(t time.Time) time.Duration {
		if t.IsZero() {
			return 0
		}
		return t.Sub(struck)
	}
	m.Detected = since(sight.First(struck, func(r Sight) bool { return r.Term != nil && r.Term.Promised > promised }))
	m.Promoted = since(sight.First(struck, func(r Sight) bool { return r.Role == "Primary" }))
	for _, b := range s.consoles[o.Name].Boots() {
		if b.Kernel.After(struck) {
			m.Kernel = since(b.Kernel)
			break
		}
	}
}

// resumed takes the time from the loss of the peer to I/O alone.
func (s *Site) resumed(ctx context.Context, p *Host, struck time.Time, bar time.Duration, m *Measured) error {
	sight := s.sights[p.Name]
	var alone time.Time
	err := s.waitFor(ctx, outcomeLimit, "I/O alone on "+p.Name, func() bool {
		alone = sight.First(struck, func(r Sight) bool {
			return r.Term != nil && r.Term.Sole && r.Term.Frozen == "" && len(r.Suspended) == 0
		})
		return !alone.IsZero()
	})
	if err != nil {
		return err
	}
	if lost := sight.First(struck, func(r Sight) bool { return r.Connection != "Connected" }); !lost.IsZero() {
		m.Detected = lost.Sub(struck)
		m.Resumed = alone.Sub(lost)
		m.Missed = m.Resumed > bar && !m.Led // an arbiter in an election is not well
	}
	return nil
}

// handover takes the time from the end of the machine on one host to its
// beginning on the other.
func (s *Site) handover(p *Host, struck time.Time, bar time.Duration, m *Measured) error {
	var end, began time.Time
	for _, l := range s.Watcher.Lives(struck) {
		switch {
		case l.Host == p.Name && !l.End.IsZero():
			end = l.End
		case l.Host != p.Name && began.IsZero() && l.Began.After(struck):
			began = l.Began
		}
	}
	if end.IsZero() || began.IsZero() {
		return errors.New("the machine was not seen to end and to begin")
	}
	m.Resumed = began.Sub(end)
	m.Missed = m.Resumed > bar
	return nil
}

// inspect looks back at a round.
func (s *Site) inspect(ctx context.Context, f fault, struck time.Time, m *Measured) {
	wrong := func(format string, args ...any) { m.Faults = append(m.Faults, fmt.Sprintf(format, args...)) }
	m.Gap = s.Customer.LongestGap(struck)
	if m.Both = s.Watcher.Overlap(); m.Both > overlapLimit {
		wrong("two machines ran at once for %v", m.Both)
	}
	runs := map[string]bool{}
	for _, a := range s.Customer.Acked(struck) {
		runs[a.Run] = true
	}
	switch limit := map[outcome]int{takesOver: 2, goesOn: 1, moves: 2, survives: 2}[f.want]; {
	case len(runs) > limit:
		wrong("%d guests acknowledged records, %d are in order", len(runs), limit)
	case len(runs) == 0:
		wrong("no guest acknowledges records")
	}
	for _, h := range s.dataHosts() {
		for _, b := range s.consoles[h.Name].Boots() {
			if b.Kernel.After(struck) {
				for _, f := range b.faults() {
					wrong("%s", f)
				}
			}
		}
	}
	// A late acknowledgement of the old guest is judged with all others at the
	// end: it is a second writer's only if its record is not there.
	lost, err := s.ReadBack(ctx, struck.Add(-10*time.Second))
	if err != nil {
		wrong("%v", err)
	}
	m.Harm += len(lost)
	for i, l := range lost {
		if i == 3 {
			wrong("and %d more", len(lost)-i)
			break
		}
		wrong("lost: record %d: %s", l.Ack.Number, l.Why)
	}
}
