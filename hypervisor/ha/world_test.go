package ha

import (
	"cmp"
	"fmt"
	"slices"
	"testing"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// world is a small deterministic cluster: cores, copies of disks by the rules of
// docs/adr/0008-terms.md, an arbiter that decides by arbiter.Decide, guests that
// write a growing number. Package hatest has the large one.
type world struct {
	t                  *testing.T
	cfg                Config
	now                Tick
	queue              []timed
	seq                int
	hosts              []*host
	disks              []*pair
	arb                *arb           // of all hosts, where leases decide
	acked              map[string]int // highest number that a guest of the service was told is written
	cut                map[string]bool
	log                []string
	notes              []string
	mayLose, mayDouble bool
	doubleFor          Tick
}

type timed struct {
	at  Tick
	seq int
	do  func()
}

type host struct {
	w         *world
	name      string
	core      *Core
	arb       *arb
	alive     bool // power
	ha        bool // polluxha runs
	asleep    bool // stopped: nothing of it runs
	missed    []func()
	session   int
	boot      int
	beat      Beat
	saved     Saved
	vms       map[string]*vm
	health    Health
	noKill    bool
	noStart   string
	deposed   bool // the last start was told so
	hooks     []string
	answers   []Order
	fences    int
	confirmed []string // nodes that the arbiter was told to be off, by a person

	leaderIP bool // the management address: it outlives polluxha
}

type vm struct {
	running bool
	inc     string
	ips     bool
	failed  bool
}

type side struct {
	host     *host
	up       bool
	role     Role
	disk     Disk
	gen      uint64
	term     uint64
	promised uint64
	owned    bool
	sole     bool
	marked   bool
	soleTerm uint64
	reads    bool
	inc      string
	data     int
	asks     bool // failsafe
	back     bool // stands back
}

// pair is one resource: two copies and the data connection.
type pair struct {
	w         *world
	name      string
	vm        string
	side      [2]*side
	connected bool
	syncing   bool
}

type arb struct {
	up      bool
	records map[string]arbiter.Record
	leases  map[string]*leaseOf
	voters  int
}

type leaseOf struct {
	session string
	until   Tick
}

var testTiming = Timing{Keepalive: 1000, Warntime: 3000, Deadtime: 6000, Initdead: 20000, TTL: 6000}

func testConfig(kind ArbiterKind) Config {
	return Config{
		Cluster: "test", Arbiter: kind, Timing: testTiming,
		Nodes:     []Node{{Name: "a", Fence: true}, {Name: "b", Fence: true}, {Name: "w", Witness: true}},
		Resources: []Resource{{Name: "r0", Nodes: [2]string{"a", "b"}, Protocol: "C"}},
		Services: []Service{{
			Name: "web", Resources: []string{"r0"}, Hash: "1", Prefer: []Preference{{"a", 100}, {"b", 1}}, Addresses: true, MemoryBytes: 1 << 30,
			StartTimeout: 20000, StopTimeout: 20000, RestartLimit: 3, RestartDelay: 1000, RestartReset: 600000,
		}},
	}
}

func newWorld(t *testing.T, cfg Config) *world {
	t.Helper()
	w := &world{t: t, cfg: cfg, now: 1000, acked: map[string]int{}, cut: map[string]bool{}}
	w.arb = newArb()
	for _, n := range cfg.Nodes {
		own := w.arb
		if !cfg.Arbiter.HasLeases() {
			own = newArb()
		}
		w.hosts = append(w.hosts, &host{w: w, name: n.Name, arb: own, vms: map[string]*vm{}, health: Health{MemoryBytes: 8 << 30, FreeBytes: 6 << 30}})
	}
	for _, r := range cfg.Resources {
		p := &pair{w: w, name: r.Name}
		for i, n := range r.Nodes {
			p.side[i] = &side{host: w.host(n), disk: UpToDate, gen: 2}
		}
		for _, s := range cfg.Services {
			if slices.Contains(s.Resources, r.Name) {
				p.vm = s.Name
			}
		}
		w.disks = append(w.disks, p)
	}
	for _, s := range cfg.Services {
		for _, n := range cfg.resource(s.Resources[0]).Nodes {
			w.host(n).vms[s.Name] = &vm{}
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, l := range w.log[max(0, len(w.log)-400):] {
				fmt.Println(l)
			}
		}
	})
	return w
}

func (w *world) tracef(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf("%7d ", w.now)+fmt.Sprintf(format, args...))
}

func (w *world) host(name string) *host {
	return w.hosts[slices.IndexFunc(w.hosts, func(h *host) bool { return h.name == name })]
}

func (w *world) pair(name string) *pair {
	return w.disks[slices.IndexFunc(w.disks, func(p *pair) bool { return p.name == name })]
}

func (w *world) after(d Tick, f func()) {
	w.seq++
	w.queue = append(w.queue, timed{w.now + d, w.seq, f})
}

// run lets time pass, 50 ms at a time.
func (w *world) run(d Tick) {
	for end := w.now + d; w.now < end; {
		w.now += 10
		for {
			i := -1
			for k, q := range w.queue {
				if q.at <= w.now && (i < 0 || cmp.Or(cmp.Compare(q.at, w.queue[i].at), cmp.Compare(q.seq, w.queue[i].seq)) < 0) {
					i = k
				}
			}
			if i < 0 {
				break
			}
			q := w.queue[i]
			w.queue = slices.Delete(w.queue, i, i+1)
			q.do()
		}
		if w.now%50 == 0 {
			for _, h := range w.hosts {
				h.step(Event{Kind: Ticked, Minute: int(w.now/60000) % 1440})
			}
			w.write()
		}
		if w.now%1000 == 0 {
			for _, h := range w.hosts {
				h.sendBeat()
			}
		}
		w.check()
	}
}

// until runs until a condition holds, and returns how long that took.
func (w *world) until(what string, limit Tick, is func() bool) Tick {
	w.t.Helper()
	began := w.now
	for !is() {
		if w.now-began > limit {
			w.t.Fatalf("after %d ms still not: %s\n%s", limit, what, w.describe())
		}
		w.run(10)
	}
	return w.now - began
}

func (w *world) describe() string {
	text := ""
	for _, h := range w.hosts {
		if h.core != nil && h.ha {
			for _, s := range h.core.Snapshot().Services {
				text += fmt.Sprintf("%s: %s is %s on %q: %s; %s\n", h.name, s.Name, s.State, s.Node, s.Why, s.Advice)
			}
		}
	}
	for _, p := range w.disks {
		text += fmt.Sprintf("%s: connected %v, record %+v, %+v %+v\n", p.name, p.connected, w.arb.records[p.name], *p.side[0], *p.side[1])
	}
	return text
}

// linked reports whether two hosts, or a host and the arbiter "W", reach each other.
func (w *world) linked(a, b string) bool { return !w.cut[min(a, b)+max(a, b)] }

func (w *world) setLink(a, b string, up bool) {
	w.cut[min(a, b)+max(a, b)] = !up
	w.tracef("link %s-%s up %v", a, b, up)
	for _, p := range w.disks {
		p.settle()
	}
}

func (h *host) runs() bool { return h.alive && !h.asleep }

// step has the core take an event, and does what it orders.
func (h *host) step(e Event) {
	if !h.alive || !h.ha {
		return
	}
	if h.asleep {
		if e.Kind != Ticked {
			h.missed = append(h.missed, func() { h.step(e) })
		}
		return
	}
	for _, o := range slices.Clone(h.core.Step(h.w.now, e)) {
		h.obey(o)
	}
}

func (h *host) startHA() {
	cfg := h.w.cfg
	cfg.Self = h.name
	core, err := New(cfg)
	if err != nil {
		h.w.t.Fatal(err)
	}
	h.session++
	h.ha, h.core = true, core
	h.step(Event{Kind: Started, Session: fmt.Sprintf("%s%d", h.name, h.session), Boot: fmt.Sprint("boot", h.boot), Saved: h.saved})
	h.step(Event{Kind: HealthChanged, Health: h.health})
	for _, p := range h.w.disks {
		p.report(h)
	}
	for _, s := range h.w.cfg.Services {
		h.reportVM(s.Name)
	}
}

// on powers a host on: polluxd and polluxha start.
func (h *host) on() {
	h.alive, h.boot = true, h.boot+1
	h.w.tracef("%s: power on", h.name)
	for _, p := range h.w.disks {
		if s := p.of(h.name); s != nil {
			s.up, s.role = true, Secondary
		}
	}
	h.startHA()
	for _, p := range h.w.disks {
		p.settle()
	}
}

// off cuts its power.
func (h *host) off() {
	h.w.tracef("%s: power off", h.name)
	h.alive, h.ha, h.core, h.beat, h.asleep, h.missed = false, false, nil, Beat{}, false, nil
	h.leaderIP = false
	for _, v := range h.vms {
		*v = vm{}
	}
	for _, p := range h.w.disks {
		if s := p.of(h.name); s != nil {
			s.up, s.role, s.owned, s.sole, s.inc, s.reads = false, "", false, false, "", false
			if p.goWithoutPeer(); s.disk == UpToDate {
				s.disk = Consistent
			}
			s.asks = false
		}
		p.settle()
	}
}

func (h *host) killHA() {
	h.w.tracef("%s: polluxha dies", h.name)
	h.ha, h.core, h.beat = false, nil, Beat{}
}

// sleep stops every process of the host.
func (h *host) sleep() {
	h.w.tracef("%s: stopped", h.name)
	h.asleep = true
	for _, p := range h.w.disks {
		p.settle()
	}
}

func (h *host) wake() {
	h.w.tracef("%s: goes on", h.name)
	h.asleep = false
	missed := h.missed
	h.missed = nil
	h.step(Event{Kind: Ticked})
	for _, f := range missed {
		f()
	}
	for _, p := range h.w.disks {
		p.settle()
	}
}

func (h *host) sendBeat() {
	if !h.runs() || !h.ha || h.beat.Session == "" {
		return
	}
	b := h.beat
	for _, o := range h.w.hosts {
		if o != h && h.w.linked(h.name, o.name) {
			h.w.after(2, func() {
				if o.alive && o.ha && !o.asleep {
					o.arb.hear(b)
					o.step(Event{Kind: Heartbeat, Node: h.name, Beat: b})
				}
			})
		}
	}
}

func (h *host) reportVM(name string) {
	v := h.vms[name]
	if v == nil {
		return
	}
	seen := Seen{Phase: PhaseStopped, Addresses: v.ips}
	if v.running {
		seen.Phase, seen.Incarnation = PhaseRunning, v.inc
		if v.failed {
			seen.Phase, seen.Monitor = PhaseFailed, "no answer"
		}
	}
	h.step(Event{Kind: ServiceChanged, Service: name, Seen: seen})
}

// obey carries an order out after a while.
func (h *host) obey(o Order) {
	w := h.w
	core := h.core
	if o.Kind != SendBeat && o.Kind != Note && o.Kind != Observe && o.Kind != Renew && o.Kind != TellLease && o.Kind != Persist {
		w.tracef("%s: %v#%d %s%s term %d sole %v %s %s%s %+v", h.name, o.Kind, o.ID, o.Service, o.Resource, o.Term, o.Sole, o.Incarnation, o.Text, o.Err, o.Claim)
	}
	if o.Kind == Note {
		w.tracef("%s: %s: %s", h.name, o.Note.Level, o.Note.Text)
		w.notes = append(w.notes, h.name+": "+o.Note.Text)
	}
	done := func(delay Tick, do func() Event) {
		w.after(delay, func() {
			var act func()
			act = func() {
				if !h.alive || h.core != core {
					return
				}
				if h.asleep {
					h.missed = append(h.missed, act)
					return
				}
				e := do()
				e.Order = o.ID
				if e.Err != "" {
					w.tracef("%s: #%d fails: %s", h.name, o.ID, e.Err)
				}
				h.step(e)
			}
			act()
		})
	}
	result := func(delay Tick, do func() string) {
		done(delay, func() Event { return Event{Kind: OrderDone, Err: do()} })
	}
	switch o.Kind {
	case Renew, Observe, Claim, Release, Resign:
		h.askArbiter(o, done)
	case PromiseTerm, Promote, Demote, Export, Unexport, FreezeReads, Failsafe:
		result(5, func() string { return w.pair(o.Resource).command(h.name, o) })
	case StartService:
		h.deposed = o.Deposed
		result(300, func() string { return h.startVM(o) })
	case StopService:
		result(200, func() string {
			if h.noKill {
				return "it does not shut down"
			}
			return h.endVM(o.Service)
		})
	case KillService:
		result(30, func() string {
			if h.noKill {
				return "it does not die"
			}
			return h.endVM(o.Service)
		})
	case AddIPs, RemoveIPs:
		result(5, func() string {
			if v := h.vms[o.Service]; v != nil {
				v.ips = o.Kind == AddIPs
				h.reportVM(o.Service)
			} else if o.Service == LeaderResource {
				h.leaderIP = o.Kind == AddIPs
			}
			return ""
		})
	case Hook:
		h.hooks = append(h.hooks, string(o.Hook))
	case Fence:
		h.fences++
		result(1000, func() string {
			if t := w.host(o.Node); w.linked(h.name, "F"+o.Node) {
				if t.alive {
					t.off()
				}
				return ""
			}
			return "the management board gives no answer"
		})
	case ConfirmOff:
		h.confirmed = append(h.confirmed, o.Node)
		result(1, func() string { return "" })
	case Watchdog:
		w.after(1, h.off)
	case Persist:
		h.saved = o.Saved
		result(1, func() string { return "" })
	case SendBeat:
		h.beat = o.Beat
		h.sendBeat()
	case Answer:
		h.answers = append(h.answers, o)
	case TellLease, Note:
	}
}

func (h *host) askArbiter(o Order, done func(Tick, func() Event)) {
	w := h.w
	if !h.arb.up || h.arb == w.arb && !w.linked(h.name, "W") {
		done(o.Timeout, func() Event {
			if o.Kind == Claim {
				return Event{Kind: ClaimDone, Outcome: Unreachable, Err: "no answer"}
			}
			kind := OrderDone
			if o.Kind == Observe {
				kind = ArbiterViewed
			}
			return Event{Kind: kind, Err: "no answer"}
		})
		return
	}
	done(8, func() Event { return h.together(o) })
}

// together has the peer's arbiter take a claim over, too, where two nodes with fence
// agents are the arbiter: a claim alone needs a peer that is off, or does not count.
func (h *host) together(o Order) Event {
	w := h.w
	if o.Kind == Renew && !w.cfg.Arbiter.HasLeases() {
		return Event{Kind: OrderDone} // they have met: Beats bring what that would
	}
	rec := h.arb.record(o.Claim.Resource)
	if o.Kind != Claim || w.cfg.Arbiter != ArbiterFence || o.Claim.Fenced != "" || o.Claim.Force || rec.Owner == h.name && rec.Sole() && len(o.Claim.InSync) == 1 {
		return h.arb.answer(w.now, h.name, o)
	}
	other := w.host(map[string]string{"a": "b", "b": "a"}[h.name])
	if other == nil || !other.runs() || !other.ha || !w.linked(h.name, other.name) {
		return Event{Kind: ClaimDone, Outcome: Unreachable, Err: "the peer can't be asked, and isn't confirmed to be off"}
	}
	e := h.arb.answer(w.now, h.name, o)
	if e.Outcome == Granted {
		other.arb.records[e.Record.Resource] = e.Record
	}
	return e
}

func newArb() *arb {
	return &arb{up: true, records: map[string]arbiter.Record{}, leases: map[string]*leaseOf{}}
}

// hear is how nodes without a common arbiter learn of one another's records.
func (a *arb) hear(b Beat) {
	if len(a.leases) > 0 {
		return
	}
	for _, cp := range b.Copies {
		if isNewer(cp.Record, a.record(cp.Resource)) {
			a.records[cp.Resource] = cp.Record
		}
	}
}

func (a *arb) alive(now Tick, node string) arbiter.Lease {
	l := a.leases[node]
	if l == nil {
		return arbiter.Lease{Node: node, Alive: len(a.leases) == 0} // without leases nobody is known to be dead
	}
	return arbiter.Lease{Node: node, Session: l.session, Alive: now < l.until}
}

func (a *arb) record(name string) arbiter.Record {
	if r, ok := a.records[name]; ok {
		return r
	}
	return arbiter.Record{Resource: name}
}

func (a *arb) answer(now Tick, node string, o Order) Event {
	switch o.Kind {
	case Renew:
		a.leases[node] = &leaseOf{o.Session, now + testTiming.TTL}
	case Resign:
		delete(a.leases, node)
	case Observe:
		v := arbiter.View{Voters: a.voters}
		for _, n := range o.Resources {
			v.Records = append(v.Records, a.record(n))
		}
		for _, n := range []string{"a", "b", "c", "w"} {
			if a.leases[n] != nil {
				v.Leases = append(v.Leases, a.alive(now, n))
			}
		}
		return Event{Kind: ArbiterViewed, View: v}
	case Claim:
		rec := a.record(o.Claim.Resource)
		got, err := arbiter.Decide(rec, a.alive(now, rec.Owner), o.Claim)
		if err != nil {
			return Event{Kind: ClaimDone, Outcome: outcomeOf(err), Record: rec, Err: err.Error()}
		}
		a.records[got.Resource] = got
		return Event{Kind: ClaimDone, Outcome: Granted, Record: got}
	default: // Release
		rec := a.record(o.Resource)
		if rec.Owner != node || rec.Term != o.Term {
			return Event{Kind: OrderDone, Err: "the record has changed"}
		}
		rec.Released = true
		a.records[o.Resource] = rec
	}
	return Event{Kind: OrderDone}
}
