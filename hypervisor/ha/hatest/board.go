package hatest

import (
	"context"
	"errors"
)

// boards are the management boards of the hosts, in a network of their own: where a
// single arbiter is in other histories. Faults of that befall them.
type boards struct {
	d     *duo
	shots int
	aimed int  // shots that are on their way to the boards, or not fired yet
	lied  bool // one, or a person, said "off" of a host that was on, and nobody has cleaned up since
	shot  [2]int64
}

func newBoards(d *duo) boards { return boards{d: d, shot: [2]int64{-1 << 60, -1 << 60}} }

// aiming reports whether a shot is under way, from its manager's order on.
func (d *duo) aiming() bool {
	return d.boards.aimed > 0 || d.halves[0].aims || d.halves[1].aims
}

// An agent is the fence agent of a half.
type agent struct{ f *half }

// Off is fence.Switch's.
func (a agent) Off(ctx context.Context, _ string) error {
	back := make(chan error, 1)
	a.f.duo.say(-3-a.f.h.id, func() { a.f.shoot(back) })
	select {
	case err := <-back:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// mutual is for how long before its end a shot may have been under way, µs: of two that
// switch each other off neither had a head start.
const mutual = 10 * second

// shoot has the other host's board switch it off. What the rules of fencing forbid is
// looked for here: a second shot under the same terms, one by a host that has booted and
// not met its victim, two that hit each other.
func (f *half) shoot(back chan<- error) {
	d, w, o := f.duo, f.duo.w, f.other()
	era := uint64(0)
	for _, r := range f.records {
		era += r.Term
	}
	d.boards.shots++
	w.trace("%s: its fence agent is to switch %s off (terms %d)", f.h.name, o.h.name, era)
	if era <= f.fired && !w.Arbiter.restored {
		w.fail("%s: a second shot at %s under the same terms", f.h.name, o.h.name)
	}
	f.fired = era
	if f.met != f.h.boot {
		w.fail("%s: it has booted, has not met %s since, and shoots at it", f.h.name, o.h.name)
	}
	board := w.Arbiter
	if !w.net.open(management, f.h.id, board.end) {
		return
	}
	d.boards.aimed++
	w.net.send(management, f.h.id, board.end, func() {
		if board.down > 0 {
			d.boards.aimed--
			return
		}
		wait := w.dice.between(500*millisecond, 3*second)
		if board.moody > 0 && w.dice.chance(0.5) {
			wait += w.dice.between(0, 50*second)
		}
		w.after(wait, func() {
			d.boards.aimed--
			err, late := d.boards.strike(f, wait), board.moody > 0 && w.dice.chance(0.3)
			if late { // it has done it, and does not say so
				return
			}
			w.net.send(management, board.end, f.h.id, f.h.awake(func() {
				if err == nil {
					o.off = true
				}
				back <- err
			}))
		})
	})
}

var (
	errBoard = errors.New("the board says: command failed")
	errNoOne = errors.New("no answer from the board: it has no power either")
)

// strike is what the board of f's victim does, and says.
func (b *boards) strike(f *half, took int64) error {
	w, o := b.d.w, f.other()
	switch {
	case !o.h.power && w.cfg.SharedPower:
		return errNoOne
	case w.Arbiter.lying > 0 && o.h.power && w.dice.chance(0.7):
		w.trace("the board of %s says off, and it is on", o.h.name)
		b.d.lie()
		return nil
	case w.dice.chance(0.1):
		return errBoard
	case !o.h.power:
		return nil
	}
	w.trace("%s: is switched off by a fence agent of %s", o.h.name, f.h.name)
	if took < mutual && b.shot[f.h.id] > w.now-mutual {
		w.fail("%s and %s have switched each other off", f.h.name, o.h.name)
	}
	b.shot[o.h.id] = w.now
	o.h.fenced()
	return nil
}

// lie: a host that is on counts as off. Both may write from now on.
func (d *duo) lie() {
	d.boards.lied = true
	for _, p := range d.w.Pairs {
		p.unjudged()
	}
}

// unjudged: nobody can say any more which copy has what was acknowledged.
func (p *Pair) unjudged() {
	p.forced = true
	p.w.SetRecord(0, -1, [2]bool{})
	p.w.Forced()
}
