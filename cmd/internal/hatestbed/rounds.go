package hatestbed

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

const (
	// overlapLimit is how long two machines may run at once when a stopped host
	// wakes: a third of a lease, by when its manager has looked at the clock.
	overlapLimit = 2 * time.Second
	crashSpread  = 2 * time.Second // nobody can know the moment
)

// Measured is one round. Times are from the fault on, zero if there is none.
type Measured struct {
	Number    int
	Arbiter   Arbiter
	Fault     string
	Struck    time.Time
	Detected  time.Duration // the other host misses its peer
	Confirmed time.Duration // a fence agent was told that the host is off
	Stopped   time.Duration // the machine has ended in order
	Promoted  time.Duration
	Kernel    time.Duration // the machine's first line on its console
	First     time.Duration // record that the client was promised by it
	Resumed   time.Duration // from detection to I/O alone; of a move from one machine's end to the next one's beginning
	Gap       time.Duration // the longest that the client saw
	Both      time.Duration // that two machines ran
	Led       bool          // the host that was struck led etcd
	Settled   time.Duration // from when all was mended until all was well
	Took      time.Duration // the whole round
	Harm      int           // lost records, and second writers
	Faults    []string
	Logs      string // where the logs were kept, if they were
}

// round strikes once, and watches until all is well again.
func (s *Site) round(ctx context.Context, f fault) (m Measured) {
	began := time.Now()
	m.Fault, m.Arbiter = f.name, s.Arbiter
	wrong := func(err error) { m.Faults = append(m.Faults, err.Error()) }
	defer func() { m.Took = time.Since(began) }()
	p := s.Primary()
	if p == nil {
		wrong(errNotOnePrimary)
		return m
	}
	if f.before != nil {
		if err := f.before(s, ctx, p); err != nil {
			wrong(err)
			return m
		}
	}
	before := s.Customer.Acked(time.Now().Add(-answerPatience))
	if err := sleep(ctx, rand.N(crashSpread)); err != nil || len(before) == 0 {
		wrong(errors.Join(err, errors.New("the client gets no acknowledgements")))
		return m
	}
	m.Led = f.fells == primarySide && s.led(ctx, p) || f.fells == secondarySide && s.led(ctx, s.other(p))
	s.Watcher.Overlap()
	if s.calm = calm; f.wakes {
		s.calm = wakenCalm
	}
	m.Struck = time.Now()
	if err := f.strike(s, ctx, p); err != nil {
		wrong(err)
		return m
	}
	if err := s.await(ctx, f, p, &m); err != nil {
		wrong(err)
	}
	if err := sleep(ctx, f.hold-time.Since(m.Struck)); err != nil {
		wrong(err)
		return m
	}
	if f.mend != nil {
		if err := f.mend(s, ctx, p); err != nil {
			wrong(err)
		}
	}
	mended := time.Now()
	if err := s.settled(ctx, s.patience); err != nil {
		wrong(err)
	}
	m.Settled = time.Since(mended)
	s.inspect(ctx, f, &m)
	return m
}

var errNotOnePrimary = errors.New("there is not one Primary")

// await waits for what has to come, and takes the times.
func (s *Site) await(ctx context.Context, f fault, p *Host, m *Measured) error {
	ctx, cancel := context.WithTimeout(ctx, outcomeLimit)
	defer cancel()
	run := s.runBefore(m.Struck)
	switch f.want {
	case takesOver, moves:
		first, err := s.Customer.Wait(ctx, m.Struck, func(a Acked) bool { return a.Run != run })
		if err != nil {
			return fmt.Errorf("the machine did not come up on %s: %w", s.other(p).Name, err)
		}
		m.First = first.At.Sub(m.Struck)
		s.takeover(f, p, m)
		if f.want == moves {
			return s.handover(p, m)
		}
	case goesOn:
		if f.barred {
			if err := s.resumed(ctx, p, m); err != nil {
				return err
			}
		}
		_, err := s.Customer.Wait(ctx, m.Struck.Add(max(f.hold-shortHold, shortHold/2)), func(a Acked) bool { return a.Run == run })
		if err != nil {
			return fmt.Errorf("the machine did not go on, on %s: %w", p.Name, err)
		}
	case survives:
		if _, err := s.Customer.Wait(ctx, m.Struck.Add(shortHold), func(Acked) bool { return true }); err != nil {
			return fmt.Errorf("the machine did not answer again: %w", err)
		}
	case stands:
		return s.silence(ctx, f, p)
	}
	return nil
}

// lastWord is for acknowledgements that were on their way when a host died.
const lastWord = time.Second

// silence does the second thing, and sees that nothing is acknowledged after it.
func (s *Site) silence(ctx context.Context, f fault, p *Host) error {
	if f.then != nil {
		if err := sleep(ctx, f.gap); err != nil {
			return err
		}
		if err := f.then(s, ctx, p); err != nil {
			return err
		}
	}
	quiet := time.Now().Add(lastWord)
	if err := sleep(ctx, f.hold); err != nil {
		return err
	}
	if acked := s.Customer.Acked(quiet); len(acked) > 0 {
		return fmt.Errorf("the machine acknowledges records while it may not: %d, the first %v after the fault, on a guest that runs as %s",
			len(acked), acked[0].At.Sub(quiet)+lastWord, acked[0].Run)
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
func (s *Site) takeover(f fault, p *Host, m *Measured) {
	o := s.other(p)
	sight := s.sights[o.Name]
	since := func(t time.Time) time.Duration {
		if t.IsZero() {
			return 0
		}
		return t.Sub(m.Struck)
	}
	if f.want == takesOver {
		m.Detected = since(sight.First(m.Struck, missesPeer))
	}
	if s.strip != nil {
		m.Confirmed = since(s.strip.confirmedOff(p.Name))
	}
	m.Promoted = since(sight.First(m.Struck, func(r Sight) bool { return r.Role == "Primary" }))
	for _, b := range s.consoles[o.Name].Boots() {
		if b.Kernel.After(m.Struck) {
			m.Kernel = since(b.Kernel)
			break
		}
	}
}

// resumed takes the time from the loss of the peer to I/O alone.
func (s *Site) resumed(ctx context.Context, p *Host, m *Measured) error {
	sight := s.sights[p.Name]
	var alone time.Time
	err := s.waitFor(ctx, outcomeLimit, "I/O alone on "+p.Name, func() bool {
		alone = sight.First(m.Struck, func(r Sight) bool {
			return r.Term != nil && r.Term.Sole && r.Term.Frozen == "" && len(r.Suspended) == 0
		})
		return !alone.IsZero()
	})
	if err != nil {
		return err
	}
	if lost := sight.First(m.Struck, missesPeer); !lost.IsZero() {
		m.Detected = lost.Sub(m.Struck)
		m.Resumed = alone.Sub(lost)
	}
	return nil
}

func missesPeer(r Sight) bool { return r.Connection != "Connected" }

// handover takes the time from the end of the machine on one host to its
// beginning on the other.
func (s *Site) handover(p *Host, m *Measured) error {
	var end, began time.Time
	for _, l := range s.Watcher.Lives(m.Struck) {
		switch {
		case l.Host == p.Name && !l.End.IsZero():
			end = l.End
		case l.Host != p.Name && began.IsZero() && l.Began.After(m.Struck):
			began = l.Began
		}
	}
	if end.IsZero() || began.IsZero() {
		return errors.New("the machine was not seen to end and to begin")
	}
	m.Stopped, m.Resumed = end.Sub(m.Struck), began.Sub(end)
	return nil
}

// inspect looks back at a round.
func (s *Site) inspect(ctx context.Context, f fault, m *Measured) {
	struck := m.Struck
	wrong := func(format string, args ...any) { m.Faults = append(m.Faults, fmt.Sprintf(format, args...)) }
	m.Gap = s.Customer.LongestGap(struck)
	if m.Both = s.Watcher.Overlap(); m.Both > overlapLimit && !f.twoRun {
		wrong("two machines ran at once for %v", m.Both)
	}
	runs := map[string]bool{}
	for _, a := range s.Customer.Acked(struck) {
		runs[a.Run] = true
	}
	switch limit := map[outcome]int{takesOver: 2, goesOn: 1, moves: 2, survives: 2, stands: 2}[f.want]; {
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
