package bench

import "fmt"

// A Class is what a reply to a write means. Only cases of one class compare.
type Class string

// The classes.
const (
	Buffered Class = "buffered" // it is in the page cache of both nodes
	Direct   Class = "direct"   // both devices have it (O_DIRECT), perhaps in their caches
	Flush    Class = "flush"    // page cache, and a flush of both follows each write
	// Stream is Buffered with writes of 1 MiB one after the other, so that its
	// IOPS are MiB/s.
	Stream Class = "stream"
)

// The two systems.
const (
	Pollux = "pollux"
	Quorum = "quorum"
)

// A Case is one line of the table.
type Case struct {
	Class   Class  `json:"class"`
	Depth   int    `json:"depth"`   // requests in flight
	System  string `json:"system"`  // Pollux or Quorum
	Variant string `json:"variant"` // the protocol, perhaps with TLS, or which rival
}

// String is, for example, "buffered QD32 quorum, nbdkit peer".
func (c Case) String() string { return fmt.Sprintf("%s QD%d %s", c.Class, c.Depth, c.target()) }

func (c Case) target() string {
	if c.System == Pollux {
		return "Pollux, protocol " + c.Variant
	}
	return c.System + ", " + c.Variant
}

// group is one class and depth: what is compared.
type group struct {
	class Class
	depth int
	bar   float64 // least IOPS of protocol C as a multiple of the best rival's; 0 = none
}

// groups are in the table's order. Source of the bars: the project's
// requirements for speed. The flushed class has no bar of its own.
var groups = []group{
	{Buffered, 1, 1.0},
	{Buffered, 32, 1.3},
	{Direct, 1, 1.0},
	{Direct, 32, 1.3},
	{Flush, 1, 0},
	{Flush, 32, 0},
	{Stream, 4, 0},
}

// cases lists what cfg asks for, group by group. Protocols A and B are
// measured at depth 1 only: it is their latency that is compared. TLS is where
// no disk hides what it costs.
func cases(cfg Config) (all []Case) {
	add := func(c Case) {
		if cfg.Only == nil || cfg.Only.MatchString(c.String()) {
			all = append(all, c)
		}
	}
	for _, g := range groups {
		add(Case{g.class, g.depth, Pollux, "C"})
		if g.class == Buffered || g.class == Stream {
			add(Case{g.class, g.depth, Pollux, withTLS})
		}
		if g.depth == 1 && g.class != Flush {
			add(Case{g.class, g.depth, Pollux, "B"})
			add(Case{g.class, g.depth, Pollux, "A"})
		}
		for _, r := range rivals(g.class, cfg.Isolated) {
			add(Case{g.class, g.depth, Quorum, r.name})
		}
	}
	return all
}
