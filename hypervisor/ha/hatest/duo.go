package hatest

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"testing/synctest"
	"time"

	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// A duo is the arbiter that two hosts are together, with fence agents or with a person
// who decides: production code (arbiter/pair, arbiter/fence), one half on each host.
// That code waits in goroutines, so the history runs in a synctest bubble: between two
// events all of them wait, for a message that the network brings, or for the bubble's
// clock, which follows the history's.
type duo struct {
	w      *World
	halves [2]*half
	boards boards
	silent int // faults: the halves get no answer from one another

	began  time.Time // the bubble's clock when the history's was 0
	at     int64     // how far the bubble's clock has come, µs of the history's
	starts []func()  // goroutines to be begun, one after the other
	inbox  inbox
	under  int // goroutines that are under way
	nextID int

	truth   map[string]arbiter.Record // of each resource the record that counts: the newest
	top     map[string]uint64         // the highest term that a record has had
	highest map[string]uint64
}

// An inbox is what goroutines have to say.
type inbox struct {
	lock sync.Mutex
	said []said
	bell chan struct{} // has one if something was said since the bell was heard
}

// said is to be done by the history. Who speaks at the same time is heard in the order
// of who.
type said struct {
	who int
	do  func()
}

func newDuo(w *World) *duo {
	d := &duo{w: w, began: time.Now(), truth: map[string]arbiter.Record{}, top: map[string]uint64{}, highest: map[string]uint64{}}
	d.inbox.bell = make(chan struct{}, 1)
	d.boards = newBoards(d)
	return d
}

// addHalf gives h its half.
func (d *duo) addHalf(h *Host) {
	h.half = &half{duo: d, h: h}
	d.halves[h.id] = h.half
}

// say has f done by the history, at this time of the bubble. Any goroutine may call it.
func (d *duo) say(who int, f func()) {
	d.inbox.lock.Lock()
	d.inbox.said = append(d.inbox.said, said{who, f})
	d.inbox.lock.Unlock()
	select {
	case d.inbox.bell <- struct{}{}:
	default:
	}
}

// begin has f run in a goroutine, then what it returns by the history.
func (d *duo) begin(f func(who int) func()) {
	d.nextID++
	who := d.nextID
	d.under++
	d.starts = append(d.starts, func() {
		then := f(who)
		d.say(who, func() { d.under--; then() })
	})
}

// settle begins what is to begin and does what was said, until all goroutines wait.
func (d *duo) settle() {
	for d.w.failure == nil {
		switch {
		case len(d.starts) > 0:
			f := d.starts[0]
			d.starts = d.starts[1:]
			d.catchUp()
			go f()
			synctest.Wait()
		case len(d.inbox.said) > 0:
			slices.SortStableFunc(d.inbox.said, func(a, b said) int { return cmp.Compare(a.who, b.who) })
			s := d.inbox.said[0]
			d.inbox.said = d.inbox.said[1:]
			s.do()
			synctest.Wait()
		default:
			select {
			case <-d.inbox.bell:
			default:
			}
			d.look()
			if len(d.starts) == 0 && len(d.inbox.said) == 0 {
				return
			}
		}
	}
}

// catchUp sets the bubble's clock to that of the history, while nobody waits for it.
func (d *duo) catchUp() {
	if lag := d.w.now - d.at; lag > 0 {
		time.Sleep(time.Duration(lag) * time.Microsecond)
		d.at = d.w.now
	}
}

// advance lets time pass up to t. If one of the goroutines has something to say before,
// it ends there and returns true.
func (d *duo) advance(t int64) (said bool) {
	d.catchUp()
	if t <= d.at {
		return false
	}
	timer := time.NewTimer(time.Duration(t-d.at) * time.Microsecond)
	defer timer.Stop()
	select {
	case <-d.inbox.bell:
	case <-timer.C:
	}
	synctest.Wait()
	d.at = int64(time.Since(d.began) / time.Microsecond)
	if len(d.inbox.said) == 0 {
		return false
	}
	d.w.shake(d.at)
	d.settle()
	return true
}

// end ends all goroutines: nothing may be left of a bubble.
func (d *duo) end() {
	for _, f := range d.halves {
		f.close()
	}
	d.starts = nil
	synctest.Wait()
}

// record is the record of a resource that counts: the newest that one of the two has.
func (d *duo) record(resource string) arbiter.Record {
	if r, ok := d.truth[resource]; ok {
		return r
	}
	return arbiter.Record{Resource: resource}
}

// agree is why the two halves do not have the same record of a resource, "" if they do.
func (d *duo) agree(resource string) string {
	a, b := d.halves[0].record(resource), d.halves[1].record(resource)
	if a.Term != b.Term || a.Owner != b.Owner || a.Released != b.Released || !slices.Equal(a.InSync, b.InSync) {
		return resource + ": the records differ"
	}
	return ""
}

// look sees what the halves have on their disks now, if one was written.
func (d *duo) look() {
	changed := false
	for _, f := range d.halves {
		if f.written {
			f.written = false
			f.read()
			f.h.manager.arbiterChangedHere()
			changed = true
		}
	}
	if !changed {
		return
	}
	for _, p := range d.w.Pairs {
		d.compare(p.name)
	}
}

// compare looks what has become of the record of a resource, and whether it may have.
func (d *duo) compare(resource string) {
	now, other := d.halves[0].record(resource), d.halves[1].record(resource)
	by := d.halves[0]
	if other.Term > now.Term || other.Term == now.Term && other.Released {
		now, other, by = other, now, d.halves[1]
	}
	was := d.record(resource)
	if now.Term == was.Term && now.Owner == was.Owner && now.Released == was.Released && slices.Equal(now.InSync, was.InSync) {
		return
	}
	if top := d.top[resource]; now.Term != 0 && (now.Term < top || now.Term == top && was.Term == 0) {
		// Terms only grow. The newer half has just given its record up, as both had changed
		// it alone, and the other one shows what it was restored with: nobody has granted
		// that now, and whoever acts on it is to be measured by what came after.
		d.w.trace("records of %s: term %d of %s comes to light again, term %d was recorded since", resource, now.Term, now.Owner, top)
		return
	}
	d.w.trace("records of %s: term %d of %s, in sync %v released %v", resource, now.Term, now.Owner, now.InSync, now.Released)
	d.truth[resource], d.top[resource] = now, max(d.top[resource], now.Term)
	d.w.ownerChanges(was, now)
	p := d.w.pairOf(resource)
	if p.forced || now.Term == 0 {
		return
	}
	together := other.Term == now.Term && other.Owner == now.Owner
	if !together && now.Term > was.Term {
		d.judge(by, was, now)
	}
	p.record(now)
}

// judge looks whether one host may have changed a record without the other one, which
// it did: what it was built on says so, or the other host is off and cannot object.
func (d *duo) judge(by *half, was, now arbiter.Record) {
	other := d.halves[1-by.h.id]
	switch {
	case other.off:
	case now.Owner != by.h.name: // the other one's proposal, whose answer is on its way
	case was.Owner == now.Owner && was.Sole():
	case d.w.cfg.Arbiter == ha.ArbiterManual && was.Owner == now.Owner:
	case d.w.cfg.Arbiter == ha.ArbiterManual:
		d.w.fail("%s: it takes %s from %s without a person's word", by.h.name, now.Resource, was.Owner)
	default:
		d.w.fail("%s: it has term %d of %s alone, and nothing has confirmed that %s is off", by.h.name, now.Term, now.Resource, other.h.name)
	}
}

// granted: a manager was told that its claim was granted.
func (d *duo) granted(rec arbiter.Record) {
	if rec.Resource == ha.LeaderResource {
		return
	}
	if p := d.w.pairOf(rec.Resource); rec.Term <= d.highest[rec.Resource] && !p.forced && !d.w.Arbiter.restored {
		d.w.fail("%s: a grant of term %d, and term %d was granted before", rec.Resource, rec.Term, d.highest[rec.Resource])
	}
	d.highest[rec.Resource] = max(d.highest[rec.Resource], rec.Term)
}

func (w *World) pairOf(resource string) *Pair {
	for _, p := range w.Pairs {
		if p.name == resource {
			return p
		}
	}
	return nil
}

// timeout is a context that ends with a half, or after so many µs of the bubble.
func timeout(of context.Context, patience int64) (context.Context, context.CancelFunc) {
	return context.WithTimeout(of, time.Duration(patience)*time.Microsecond)
}
