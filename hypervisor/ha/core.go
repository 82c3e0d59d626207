package ha

// Core is the state machine of one node. It is not safe for concurrent use.
type Core struct {
	cfg    Config
	now    Tick
	orders []Order
	lastID OrderID
}

// New returns the core of one node, which has seen nothing yet. The error is
// Validate's.
func New(cfg Config) (*Core, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Core{cfg: cfg}, nil
}

// Step takes one event and returns what is to be done now, in this order. The slice
// is valid until the next Step.
func (c *Core) Step(now Tick, e Event) []Order {
	c.now = max(c.now, now)
	c.orders = c.orders[:0]
	return c.orders
}

// Snapshot is what status commands show.
func (c *Core) Snapshot() Snapshot {
	return Snapshot{Self: c.cfg.Self, Cluster: c.cfg.Cluster}
}
