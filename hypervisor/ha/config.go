package ha

// ArbiterKind says who speaks when two nodes do not hear each other.
type ArbiterKind string

// The arbiters.
const (
	ArbiterEtcd    ArbiterKind = "etcd"    // leases decide
	ArbiterWitness ArbiterKind = "witness" // leases decide
	ArbiterFence   ArbiterKind = "fence"   // a confirmed fence decides
	ArbiterManual  ArbiterKind = "manual"  // a person decides: no automatic failover
)

// HasLeases reports whether the end of a lease lets another node take over.
func (k ArbiterKind) HasLeases() bool { return k == ArbiterEtcd || k == ArbiterWitness }

// Automatic reports whether a node may take over without a person.
func (k ArbiterKind) Automatic() bool { return k != ArbiterManual }

// Failback says when a service goes back to the node that it prefers.
type Failback string

// The kinds of failback. "" is FailbackManual.
const (
	FailbackNever  Failback = "never"
	FailbackManual Failback = "manual" // status says that it could
	FailbackWindow Failback = "window" // by itself, between two times of day
)

// Config is all that the core knows in advance. It is the same on all nodes but for Self.
type Config struct {
	Self      string
	Cluster   string
	Hash      string // of the cluster file
	Nodes     []Node
	Resources []Resource
	Services  []Service
	Arbiter   ArbiterKind
	Voters    int // nodes of the cluster that are the arbiter's quorum; 0: it is elsewhere
	Timing    Timing
	// ReserveBytes is the memory that each node keeps for itself.
	ReserveBytes uint64
	// LeaderAddress: the cluster has a floating management address, which goes with the leader.
	LeaderAddress bool
	Watchdog      bool // this node has one
}

// Node is one member of the cluster.
type Node struct {
	Name    string
	Witness bool // has no disks and runs nothing
	Fence   bool // a fence agent can power it off
}

// Resource is one replicated resource with manager = internal.
type Resource struct {
	Name     string
	Nodes    [2]string // that have a copy
	Protocol string    // "A", "B", "C"
	// MaxLossBytes and MaxLossMS bound what protocols A and B may lose; 0: not declared.
	MaxLossBytes uint64
	MaxLossMS    uint64
	// AloneUnasked: the configuration wants a Primary that lost its peer to go on without asking.
	AloneUnasked bool
}

// Service is a virtual machine, or units and addresses.
type Service struct {
	Name      string
	Resources []string // in the order in which they are promoted
	Hash      string   // of its file
	Problem   string   // why its file can't be used on this node; "" if it can
	Notice    string   // why its file is not what is in force on this node; "" if it is
	NoVM      bool     // units, not a virtual machine

	Prefer     []Preference
	Stickiness int64 // added to the score of the node where it is, when a failback window is open
	Failback   Failback
	WindowFrom int  // minute of the day, 0 to 1439
	WindowTo   int  // first minute after the window; less than WindowFrom: past midnight
	Manual     bool // no automatic failover of this one
	// Failsafe: while the arbiter is away it goes on where it runs, whatever becomes of the other
	// node, which promises not to take over meanwhile.
	Failsafe bool
	Target   Target // until an operator says otherwise; "" is TargetStarted

	MemoryBytes uint64
	Addresses   bool // it has floating addresses

	StartTimeout Tick
	StopTimeout  Tick
	RestartLimit int  // restarts on one node before it moves; negative: none
	RestartDelay Tick // before the first restart; doubles with each, up to MaxRestartDelay
	RestartReset Tick // so long without a failure, and the count begins anew
}

// Preference is how much a service wants to be on a node.
type Preference struct {
	Node  string
	Score int64
}

// Timing has all intervals, in milliseconds.
type Timing struct {
	Keepalive Tick // between two heartbeats
	Warntime  Tick // of silence: a warning
	Deadtime  Tick // of silence: the node is gone
	Initdead  Tick // as Deadtime, after the start: the other nodes may still be booting
	TTL       Tick // of a lease
	Margin    Tick // added to the TTL before another node takes over; 0: a sixth of TTL
	// ShortTTL allows a TTL below MinTTL: for tests.
	ShortTTL bool
	// FenceDelay is the head start of the side that runs the service, added to Deadtime; 0: Deadtime.
	FenceDelay Tick
}

// MinTTL is the shortest lease, in milliseconds, unless Timing.ShortTTL is set. Patroni and etcd's
// own users lose shorter ones to a slow disk or a pause of the garbage collector.
const MinTTL Tick = 5000

// MaxRestartDelay bounds the delay before a restart, in milliseconds.
const MaxRestartDelay Tick = 5 * 60 * 1000
