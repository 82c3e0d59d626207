package repltest

import (
	"fmt"
	"strings"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// Config describes the two nodes. The zero value is one volume of 1 MiB that
// was just created on both nodes, protocol C, two Pollux nodes, no randomness.
type Config struct {
	Seed         uint64 // 0: all delays are fixed
	Sectors      int    // of each volume's data, 512 bytes
	OtherSize    int    // of node b's, if not the same
	Room         int    // what the devices can grow by, sectors
	Internal     bool   // the metadata is at the end of the device
	Litter       bool   // ... and what they grow by is not the same on both
	Volumes      int
	ALSlots      int
	Features     uint32
	EarlyAck     bool // P_BARRIER_ACK precedes the flush, as drbd.ko of Linux 6.1 does it; see earlyack.go
	Version      int  // of the protocol; 0: 101
	Resolver     int  // the node that resolves conflicts, unless it is left to chance
	Net          [2]replication.NetOptions
	Disk         [2]replication.DiskOptions
	NoData       bool       // on-no-data-accessible suspend-io
	FenceAgent   bool       // a fence-peer handler is configured
	BeforeResync bool       // the before-resync handlers are configured
	FenceCode    [2]int     // of the fence-peer handlers, 0: they never end
	Stonith      bool       // a fence-peer handler that ends has switched the peer off
	Terms        bool       // an arbiter hands out terms
	Synced       bool       // both volumes begin UpToDate and equal
	UUIDs        meta.UUIDs // then these are theirs
}

// handlers are those that are configured.
func (c *Config) handlers() replication.Handlers {
	return replication.Handlers{HasFenceHandler: c.FenceAgent, HasBeforeResyncSource: c.BeforeResync, HasBeforeResyncTarget: c.BeforeResync}
}

// AllFeatures is what two Pollux nodes agree on, KernelFeatures what one agrees
// on with drbd.ko of Linux 6.1, as far as the core knows.
const (
	KernelFeatures = drbd.FeatureTrim | drbd.FeatureThinResync | drbd.FeatureWSame | drbd.FeatureWZeroes
	AllFeatures    = KernelFeatures | drbd.FeaturePollux | drbd.FeatureTerm
)

// DefaultConfig is Config's zero value with the defaults filled in.
func DefaultConfig() Config {
	c := Config{Sectors: 2048, Volumes: 1, ALSlots: 7, Features: AllFeatures}
	c.UUIDs = meta.UUIDs{Current: 0x1111111111111110, History: [2]uint64{0x2222222222222220, 4}}
	for i := range c.Net {
		c.Net[i] = replication.DefaultNetOptions()
		c.Disk[i] = replication.DefaultDiskOptions()
	}
	return c
}

// A World is two nodes, their disks, what is between them, and the clients.
type World struct {
	Nodes     [2]*Node
	Reachable bool

	cfg        Config
	mem        *arena
	now        int64 // µs
	seq        uint64
	queue      Queue
	dice       *dice  // nil: all delays are fixed
	same       uint64 // how many events were due at this very time
	links      int
	delayed    [2][2]int64 // µs more that a packet takes, by sender and socket: of a script
	connecting bool
	Model      *Model
	out        strings.Builder
	tracing    bool
	crash      crashPlan
	ring       []string // the last lines of the trace, for a failed simulation
	tell       func(string)
	failure    error
	terms      *termModel // what was promised of terms; nil if there are none
	steps      int
	judging    bool // a simulation: checkMarks
}

// NewWorld returns two nodes that are not started.
func NewWorld(cfg Config) *World { return newWorld(cfg, &arena{}) }

func newWorld(cfg Config, mem *arena) *World {
	mem.reset()
	for i := range cfg.Disk {
		cfg.Disk[i].ALExtents = cfg.ALSlots
	}
	w := &World{cfg: cfg, mem: mem, Reachable: true, now: 1000, queue: mem.queue[:0]}
	if cfg.Seed != 0 {
		w.dice = &dice{cfg.Seed}
	}
	w.Model = newModel(w)
	for i := range w.Nodes {
		w.Nodes[i] = newNode(w, i)
	}
	if cfg.Litter {
		w.Model.litter()
	}
	return w
}

func (w *World) at(t int64, f func()) {
	w.seq++
	w.queue.Push(Item{t, w.seq, f})
}

func (w *World) after(d int64, f func()) { w.at(w.now+d, f) }

// Tick is the core's clock now.
func (w *World) Tick() replication.Tick { return replication.Tick(w.now/1000) + 1 }

// Run lets so many milliseconds pass. It stops at the first failure.
func (w *World) Run(ms int64) {
	end := w.now + ms*1000
	for w.failure == nil && !w.crash.halted && len(w.queue) > 0 && w.queue[0].At <= end {
		it := w.queue.Pop()
		w.shake(it.At)
		it.F()
		w.steps++
		if w.steps%64 == 0 {
			w.checkEqual()
			w.checkMarks("now")
		}
	}
	if !w.crash.halted {
		w.now = max(w.now, end)
	}
}

// RunUntil lets at most limit milliseconds pass, until done.
func (w *World) RunUntil(limit int64, done func() bool) bool {
	for end := w.now + limit*1000; w.now < end && w.failure == nil && !w.crash.halted; {
		if done() {
			return true
		}
		next := end
		if len(w.queue) > 0 { // nothing changes before the next event
			next = min(end, w.queue[0].At)
		}
		w.Run(max(5, (next-w.now+4999)/5000*5))
	}
	return done()
}

// Err is the first thing that went wrong.
func (w *World) Err() error { return w.failure }

func (w *World) fail(format string, args ...any) {
	if w.failure == nil {
		w.failure = fmt.Errorf("at %d.%03d ms: %s", w.now/1000, w.now%1000, fmt.Sprintf(format, args...))
		w.trace("FAILED: %v", w.failure)
	}
}

// shake sets the clock. What an event draws depends on its time only.
func (w *World) shake(at int64) {
	if at > w.now {
		w.now, w.same = at, 0
	} else {
		w.same++
	}
	if w.dice != nil {
		w.dice.state = mix(w.cfg.Seed, uint64(w.now), w.same)
	}
}

func (w *World) jitter(n int64) int64  { return w.dice.jitter(n) }
func (w *World) pick(n int) int        { return w.dice.pick(n) }
func (w *World) chance(p float64) bool { return w.dice.chance(p) }

// netDelay and diskDelay: mostly short, sometimes long.
func (w *World) netDelay() int64 {
	if w.chance(0.03) {
		return 100 + w.jitter(30000)
	}
	return 100 + w.jitter(300)
}

func (w *World) diskDelay() int64 {
	if w.chance(0.03) {
		return 100 + w.jitter(60000)
	}
	return 100 + w.jitter(800)
}
