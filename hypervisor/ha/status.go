package ha

import "github.com/pollux-project/pollux/hypervisor/ha/arbiter"

// State is how a service is.
type State string

// The states.
const (
	StateStopped  State = "stopped"
	StateStarting State = "starting"
	StateRunning  State = "running"
	StateStopping State = "stopping"
	StateMoving   State = "moving"
	StateFrozen   State = "frozen"  // runs, and its I/O waits for a decision
	StateBlocked  State = "blocked" // should run and may not
	StateFailed   State = "failed"  // its restarts are used up
	StateUnknown  State = "unknown" // the node that has it is silent
)

// NodeState is how a node stands in the cluster.
type NodeState string

// The states of a node.
const (
	Solo      NodeState = "solo"      // the only data node, or the arbiter is manual
	Leader    NodeState = "leader"    // owns the pseudo-resource LeaderResource
	Follower  NodeState = "follower"  //
	Candidate NodeState = "candidate" // knows no leader
	Error     NodeState = "error"     // silent, or without a lease
)

// LeaderResource is the arbiter's pseudo-resource whose owner is the leader.
const LeaderResource = "_leader"

// Snapshot is all that status commands show, as this node sees it.
type Snapshot struct {
	Self     string
	Cluster  string
	Level    Level  // of the verdict; "" is well
	Verdict  string // one sentence
	Advice   string
	Arbiter  ArbiterStatus
	Nodes    []NodeStatus    // in the configuration's order
	Services []ServiceStatus // in the configuration's order
	Alarms   []Notice        // those that stand, sorted by Key
}

// ArbiterStatus is how the arbiter is.
type ArbiterStatus struct {
	Kind      ArbiterKind
	Reachable bool
	Since     Tick // of Reachable; 0: it never answered
	Behind    bool // it knows less than the replicas
	Detail    string
	LeaseEnds Tick // of this node's; 0: none
}

// NodeStatus is one line of node list.
type NodeStatus struct {
	Name     string
	Witness  bool
	State    NodeState
	Online   bool // heartbeats come
	Standby  bool
	Late     bool   // silent for longer than warntime
	Fenced   bool   // confirmed to be off
	Term     uint64 // the highest of its resources
	InSync   int    // copies there that count
	Copies   int
	Lease    string // "alive", "ended", "none"
	LastSeen Tick   // 0: never
	Session  string
	Services []string // that run there
	Health   Health
	SameFile bool // its cluster file is this node's
	Why      string
}

// ServiceStatus is one line of vm list.
type ServiceStatus struct {
	Name        string
	State       State
	Node        string // where it runs, or is being started; "" if nowhere
	Target      Target
	Enabled     bool
	Nodes       []string // best first
	Level       Level    // "" is well
	Why         string   // why it is not as it should be
	Advice      string   // the next step
	Protection  string   // what it is protected against
	Incarnation string
	Restarts    int
	Since       Tick // of State, as far as this node has seen it
	SameFile    bool // its file is the same on all its nodes
	Monitor     string
	Resources   []ResourceStatus
}

// ResourceStatus is one resource of a service.
type ResourceStatus struct {
	Record  arbiter.Record
	Behind  bool    // the record is older than a promise
	Storage Storage // of this node's copy; Up is false if there is none
	MaxLoss string  // bound of protocol A or B, for people
}
