package ha

import (
	"fmt"
	"slices"
)

// How long orders may take, in milliseconds, where the configuration does not say.
const (
	storageTimeout Tick = 10_000 // a command of polluxd: a few writes to its disks
	addressTimeout Tick = 5_000
	fenceTimeout   Tick = 60_000 // a management board takes 5 to 20 s to power off and look
	killTimeout    Tick = 10_000
	persistTimeout Tick = 10_000
)

// sweep is how often, in milliseconds, each service is looked at when nothing
// happens: a backstop, events do the rest.
const sweep Tick = 1000

// Core is the state machine of one node. It is not safe for concurrent use.
type Core struct {
	cfg     Config
	self    string
	session string
	boot    string
	now     Tick
	last    Tick // of the Step before
	begun   Tick // when Started came; 0: it has not
	woke    Tick // end of the last gap in which this process did not run
	minute  int

	orders  []Order
	lastID  OrderID
	pending map[OrderID]func(Event)

	nodes     []*node     // all, in the configuration's order
	resources []*resource // that have a copy here, in the configuration's order
	services  []*service  // all, in the configuration's order
	health    Health
	healthAt  Tick
	lease     lease
	leader    leader

	wishes    []Wish // sorted by what they are of
	shots     []Shot
	overrides []Override
	saved     bool // Persist has all of it
	retrySave Tick // it failed: when to try again; 0: it did not
	left      bool // this node ends all it runs
	resigned  bool
	jobs      []*job
	alarms    []Notice // sorted by Key
	beat      Beat
	beatAt    Tick
	beatDue   bool
	urgent    bool // the beat does not wait
	reserveAt Tick // next look at the memory of all nodes
}

// New returns the core of one node, which has seen nothing yet. The error is
// Validate's.
func New(cfg Config) (*Core, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	c := &Core{pending: map[OrderID]func(Event){}, saved: true}
	c.configure(cfg)
	return c, nil
}

// configure takes a valid configuration over; what is known of objects of the same
// names stays.
func (c *Core) configure(cfg Config) {
	c.cfg, c.self = cfg, cfg.Self
	nodes, resources, services := c.nodes, c.resources, c.services
	c.nodes, c.resources, c.services = nil, nil, nil
	for _, n := range cfg.Nodes {
		o := find(nodes, func(o *node) bool { return o.cfg.Name == n.Name })
		if o == nil {
			o = &node{}
		}
		o.cfg = n
		c.nodes = append(c.nodes, o)
	}
	for i := range cfg.Resources {
		rc := cfg.Resources[i]
		if rc.Nodes[0] != c.self && rc.Nodes[1] != c.self {
			continue
		}
		r := find(resources, func(o *resource) bool { return o.name == rc.Name })
		if r == nil {
			r = &resource{name: rc.Name, rec: noRecord(rc.Name)}
		}
		r.cfg, r.peer, r.svc = rc, c.node(rc.peerOf(c.self)), nil
		c.resources = append(c.resources, r)
	}
	for i := range cfg.Services {
		sc := cfg.Services[i]
		s := find(services, func(o *service) bool { return o.name == sc.Name })
		if s == nil {
			s = &service{name: sc.Name, state: StateStopped}
		}
		s.cfg, s.res, s.peer, s.dirty = sc, nil, nil, true
		s.nodes = cfg.resource(sc.Resources[0]).pair()
		if s.mine = s.nodes[0] == c.self || s.nodes[1] == c.self; s.mine {
			for _, name := range sc.Resources {
				r := c.resource(name)
				r.svc = s
				s.res = append(s.res, r)
			}
			s.peer = s.res[0].peer
		}
		c.services = append(c.services, s)
	}
	c.beatDue = true
}

func find[T any](list []*T, is func(*T) bool) *T {
	if i := slices.IndexFunc(list, is); i >= 0 {
		return list[i]
	}
	return nil
}

func (c *Core) node(name string) *node {
	return find(c.nodes, func(n *node) bool { return n.cfg.Name == name })
}

func (c *Core) resource(name string) *resource {
	return find(c.resources, func(r *resource) bool { return r.name == name })
}

func (c *Core) service(name string) *service {
	return find(c.services, func(s *service) bool { return s.name == name })
}

// Step takes one event and returns what is to be done now, in this order. The slice
// is valid until the next Step. An event about an unknown object, and a second answer
// to an order, are ignored.
func (c *Core) Step(now Tick, e Event) []Order {
	c.now = max(c.now, now)
	c.orders = c.orders[:0]
	if c.begun != 0 && c.now-c.last > c.pause() {
		c.wakeUp()
	}
	c.last = c.now
	c.take(e)
	if c.begun != 0 {
		c.maintain()
	}
	return c.orders
}

// pause is a gap between two Steps that says that this process did not run: what it
// has heard last tells nothing about the others' silence.
func (c *Core) pause() Tick { return max(c.cfg.Timing.TTL, c.cfg.Timing.Deadtime) / 2 }

func (c *Core) wakeUp() {
	c.woke = c.now
	c.note(Notice{Level: Warning, Topic: TopicNode, Node: c.self, Text: fmt.Sprintf("polluxha did not run for %d ms: it looks at everything again", c.now-c.last)})
	c.lease.lostContact(c)
	c.lease.nextRenew, c.lease.nextObserve, c.leader.viewed = 0, 0, false
	c.dirtyAll()
}

func (c *Core) take(e Event) {
	switch e.Kind {
	case Started:
		c.start(e)
	case Ticked:
		c.minute = e.Minute
	case Reconfigured:
		if e.Config != nil && e.Config.Self == c.self && e.Config.Validate() == nil {
			c.configure(*e.Config)
			c.dirtyAll()
		}
	case StorageChanged:
		if r := c.resource(e.Storage.Resource); r != nil {
			c.storage(r, e.Storage)
		}
	case ServiceChanged:
		if s := c.service(e.Service); s != nil && s.mine {
			c.seen(s, e.Seen)
		}
	case HealthChanged:
		c.health, c.healthAt = e.Health, c.now
		c.dirtyAll()
	case Heartbeat:
		if n := c.node(e.Node); n != nil && e.Node != c.self {
			c.heard(n, e.Link, e.Beat)
		}
	case LinkChanged:
		if n := c.node(e.Node); n != nil {
			n.link(e.Link, e.Up)
		}
	case ArbiterChanged:
		c.lease.nextObserve = 0
	case ArbiterViewed, ClaimDone, OrderDone:
		if done := c.pending[e.Order]; done != nil {
			delete(c.pending, e.Order)
			done(e)
		}
	case Commanded:
		c.command(e.Command)
	case Fenced:
		if n := c.node(e.Node); n != nil && e.Node != c.self {
			c.fenced(n, "an operator")
		}
	default:
		panic(fmt.Sprintf("ha: no case for event %v in Step", e.Kind))
	}
}

func (c *Core) start(e Event) {
	if c.begun != 0 {
		return
	}
	c.begun, c.session, c.boot, c.last = c.now, e.Session, e.Boot, c.now
	c.load(e.Saved)
	c.dirtyAll()
	c.beatDue, c.urgent = true, true
}

// maintain is cheap and idempotent: it does what is due now.
func (c *Core) maintain() {
	c.watchNodes()
	c.keepLease()
	c.shoot()
	for range 4 { // what one service does may concern another; the rest waits for the next Step
		again := false
		for _, s := range c.services {
			if s.mine && (s.dirty || c.now >= s.wakeAt) {
				s.dirty, s.wakeAt = false, c.now+sweep
				c.decide(s)
				again = again || s.dirty
			}
		}
		if !again {
			break
		}
	}
	c.elect()
	c.checkJobs()
	c.checkReserve()
	if c.retrySave != 0 && c.now >= c.retrySave {
		c.retrySave, c.saved = 0, false
	}
	c.save()
	c.sendBeat()
}

func (c *Core) dirtyAll() {
	for _, s := range c.services {
		s.dirty = true
	}
	c.beatDue = true
}

// give sends an order out; done, if not nil, takes its answer.
func (c *Core) give(o Order, done func(Event)) OrderID {
	if done != nil {
		c.lastID++
		o.ID = c.lastID
		c.pending[o.ID] = done
	}
	c.orders = append(c.orders, o)
	return o.ID
}

func (c *Core) note(n Notice) { c.give(Order{Kind: Note, Note: n}, nil) }

// alarm sets an alarm, or clears it if text is empty.
func (c *Core) alarm(n Notice) {
	i, stands := slices.BinarySearchFunc(c.alarms, n.Key, func(a Notice, key string) int {
		switch {
		case a.Key < key:
			return -1
		case a.Key > key:
			return 1
		}
		return 0
	})
	switch {
	case n.Text == "" && !stands, stands && n.Text == c.alarms[i].Text:
		return
	case n.Text == "":
		n = c.alarms[i]
		n.Cleared, n.Level = true, Info
		c.alarms = slices.Delete(c.alarms, i, i+1)
	case stands:
		c.alarms[i] = n
	default:
		c.alarms = slices.Insert(c.alarms, i, n)
	}
	c.note(n)
}
