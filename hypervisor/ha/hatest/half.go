package hatest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/fence"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/manual"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/pair"
)

// A half is one host's half of a duo: a part of polluxha, and its file.
type half struct {
	duo *duo
	h   *Host

	arb    side // nil: polluxha does not run, or could not start it
	disk   *disk
	ctx    context.Context
	cancel context.CancelFunc

	file    []byte // what is on the disk; nil: nothing
	backup  []byte
	written bool // since it was looked at
	records []arbiter.Record
	met     int    // the boot in which it has exchanged something with the other half
	off     bool   // the other half was told that this host is off, and has not met it since
	fired   uint64 // sum of the terms at the last shot
	aims    bool   // its manager wants the other host shot
}

// side is what pair.Arbiter and fence.Arbiter have in common.
type side interface {
	arbiter.Arbiter
	Serve(ctx context.Context, request []byte) ([]byte, error)
}

// A disk is the file as one process sees it. What is written after its end is lost.
type disk struct {
	f     *half
	ended bool
}

var errFull = errors.New("no space left on device")

// Load is pair.Store's.
func (d *disk) Load() ([]byte, error) {
	if d.f.file == nil {
		return nil, fs.ErrNotExist
	}
	return d.f.file, nil
}

// Save is pair.Store's.
func (d *disk) Save(data []byte) error {
	switch {
	case d.ended:
		return errors.New("killed")
	case d.f.h.fullDisk > 0:
		return errFull
	}
	d.f.file, d.f.written = data, true
	return nil
}

// open starts it with polluxha. Without room on the disk polluxha cannot start.
func (f *half) open() error {
	d := f.duo
	d.catchUp()
	f.disk = &disk{f: f}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	cfg := pair.Config{
		Cluster: "sim", Node: f.h.name, Peer: f.other().h.name, Boot: f.h.bootID(), Caller: caller{f},
		TTL: time.Duration(d.w.cfg.ttl()) * time.Microsecond, Store: f.disk,
	}
	var err error
	if d.w.cfg.Arbiter == ha.ArbiterManual {
		f.arb, err = manual.New(cfg)
	} else {
		f.arb, err = fence.New(fence.Config{Pair: cfg, Switch: agent{f}})
	}
	if err != nil {
		f.cancel()
		f.arb = nil
	}
	return err
}

// close ends it with polluxha: by kill -9.
func (f *half) close() {
	if f.arb != nil {
		f.disk.ended = true
		f.cancel()
		f.arb, f.aims = nil, false
	}
}

func (f *half) other() *half { return f.duo.halves[1-f.h.id] }

// read looks at what is in the file.
func (f *half) read() {
	if f.arb == nil {
		return
	}
	var names []string
	for _, p := range f.duo.w.Pairs {
		names = append(names, p.name)
	}
	if v, err := f.arb.Observe(f.ctx, names...); err == nil {
		f.records = v.Records
	}
}

func (f *half) record(resource string) arbiter.Record {
	if i := slices.IndexFunc(f.records, func(r arbiter.Record) bool { return r.Resource == resource }); i >= 0 {
		return f.records[i]
	}
	return arbiter.Record{Resource: resource}
}

// broken: it could not write its file, and answers nothing until it is started again.
func (f *half) broken() bool {
	if f.arb == nil {
		return false
	}
	_, err := f.arb.Observe(f.ctx)
	return err != nil
}

// ask has polluxha ask its half; hear gets the answer, once.
func (f *half) ask(patience int64, what func(context.Context, side) answer, hear func(answer)) {
	tell := f.h.manager.awakeWith(hear)
	arb, of := f.arb, f.ctx
	f.duo.begin(func(int) func() {
		ctx, cancel := timeout(of, patience)
		defer cancel()
		x := what(ctx, arb)
		return func() { tell(x) }
	})
}

// hears: f has taken what the other half said.
func (f *half) hears() {
	f.met, f.other().off = f.h.boot, false
}

// A caller brings requests of a half to the other one.
type caller struct{ f *half }

type reply struct {
	data []byte
	err  error
}

var errNoWay = errors.New("no connection")

// Call is pair.Caller's. What is lost on the way is answered by nobody.
func (c caller) Call(ctx context.Context, request []byte) ([]byte, error) {
	back := make(chan reply, 2)
	c.f.duo.say(-1-c.f.h.id, func() { c.f.send(request, back) })
	select {
	case r := <-back:
		return r.data, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("no answer: %w", context.Cause(ctx))
	}
}

// lane is over which the two managers talk: the first link that stands.
func (f *half) lane() (l lane, ok bool) {
	n := &f.duo.w.net
	for l = range lanes {
		if n.open(l, f.h.id, f.other().h.id) && n.open(l, f.other().h.id, f.h.id) {
			return l, true
		}
	}
	return management, n.open(management, f.h.id, f.other().h.id)
}

// send brings a request to the other half, and its answer back; late, or twice, if the
// arbiter is moody.
func (f *half) send(request []byte, back chan<- reply) {
	w, o := f.duo.w, f.other()
	l, ok := f.lane()
	if !ok || f.duo.silent > 0 || !o.h.power || o.arb == nil {
		back <- reply{err: errNoWay}
		return
	}
	life := o.h.manager.life
	serve := func() {
		o.h.manager.awake(func() {
			if o.arb == nil || o.h.manager.life != life {
				return
			}
			arb, of := o.arb, o.ctx
			f.duo.begin(func(int) func() {
				data, err := arb.Serve(of, request)
				return func() {
					if err == nil {
						o.hears()
					}
					w.net.send(l, o.h.id, f.h.id, f.h.manager.awake(func() {
						if err == nil {
							f.hears()
						}
						select {
						case back <- reply{data, err}:
						default: // it came twice
						}
					}))
				}
			})
		})()
	}
	wait := int64(0)
	if w.Arbiter.moody > 0 {
		switch w.dice.pick(5) {
		case 0:
			return
		case 1:
			wait = w.dice.between(0, 6*second)
		case 2:
			w.after(w.dice.between(0, 8*second), func() { w.net.send(l, f.h.id, o.h.id, serve) })
		}
	}
	w.after(wait, func() { w.net.send(l, f.h.id, o.h.id, serve) })
}

// restore has the host come back with a file of yesterday, or with none.
func (f *half) restore(none bool) {
	w := f.duo.w
	w.trace("%s: its records are those of a backup (none: %v)", f.h.name, none)
	f.h.PowerOff(0.5)
	f.file, f.fired, w.Arbiter.restored = f.backup, 0, true
	if none {
		f.file = nil
	}
}

// silence keeps the halves of a duo that is without agents from asking one another.
func (w *World) silence(by int) {
	if w.duo != nil && w.cfg.Arbiter == ha.ArbiterManual {
		w.duo.silent += by
	}
}
