package ha

import "github.com/pollux-project/pollux/hypervisor/ha/arbiter"

// A Tick is the core's only clock: milliseconds of a clock that never goes back and
// that counts while the machine sleeps (CLOCK_BOOTTIME), never 0.
type Tick int64

// EventKind says what has happened, and so which fields of an Event are set.
type EventKind uint8

// The events.
const (
	// Started is the first one: Session, Boot, and Saved as the last Persist left it.
	Started EventKind = iota + 1
	// Ticked: time has passed; Minute.
	Ticked
	// Reconfigured: the configuration was read again and is valid; Config.
	Reconfigured
	// StorageChanged: what polluxd says of a resource; Storage.
	StorageChanged
	// ServiceChanged: what is seen of a service on this node; Service, Seen.
	ServiceChanged
	// HealthChanged: what this node has left; Health.
	HealthChanged
	// Heartbeat: Node has sent Beat, which came over Link (its number, 0 is the management link).
	Heartbeat
	// LinkChanged: the control channel to Node over Link broke (Up false) or stands.
	LinkChanged
	// ArbiterChanged: the arbiter's Watch has called.
	ArbiterChanged
	// ArbiterViewed answers an Observe: View, or Err.
	ArbiterViewed
	// ClaimDone answers a Claim: Outcome, Record (as it is now, unless Unreachable), Err.
	ClaimDone
	// OrderDone answers every other order: Err is empty if it was carried out.
	OrderDone
	// Commanded: an operator wants something; Command.
	Commanded
	// Fenced: Node is off, as a fence agent that was run by hand, or a person, has confirmed.
	Fenced
)

// Outcome is how a claim ended. All but Granted and Unreachable are the arbiter's
// conditions of the same names.
type Outcome uint8

// The outcomes.
const (
	Granted Outcome = iota + 1
	Changed
	Held
	Stale
	Behind
	Invalid
	Unreachable // nobody knows whether it was carried out, or will be
)

// Event is one thing that has happened: a flat value, Kind says which fields are set.
type Event struct {
	Kind EventKind

	Order OrderID // of the order that is answered
	Err   string  // why it failed; "" if it did not
	// Spared, with Err, of a Fence: no shot was fired, as the node answers.
	Spared bool

	Node    string
	Link    int
	Up      bool
	Service string
	Minute  int // of the day, local time, 0 to 1439: for failback windows only

	Session string // of this run of polluxha: letters and digits, at most 16, never the same again
	Boot    string // the machine's boot ID
	Saved   Saved

	Config  *Config
	Storage Storage
	Seen    Seen
	Health  Health
	Beat    Beat
	View    arbiter.View
	Outcome Outcome
	Record  arbiter.Record
	Command Command
}

// Role is a resource's role, in DRBD's words.
type Role string

// The roles; "" is a resource that is not up.
const (
	Primary   Role = "Primary"
	Secondary Role = "Secondary"
)

// Disk is the state of a copy, in DRBD's words. Of a resource with several volumes
// it is the worst of them.
type Disk string

// Those that the core tells apart; any other is as good as Inconsistent.
const (
	UpToDate     Disk = "UpToDate"
	Consistent   Disk = "Consistent" // whole, and nobody knows whether it is the newest
	Outdated     Disk = "Outdated"
	Inconsistent Disk = "Inconsistent"
	Failed       Disk = "Failed" // on the way to Diskless
	Diskless     Disk = "Diskless"
	DUnknown     Disk = "DUnknown"
)

// Storage is what polluxd says of one resource that has a copy on this node.
type Storage struct {
	Resource   string
	Up         bool // polluxd answers, and the resource is up
	Role       Role
	PeerRole   Role // "" while not connected
	Connected  bool // the data connection stands (Connected or more)
	Disk       Disk
	PeerDisk   Disk   // DUnknown while not connected, and it was not told
	DirtyBytes uint64 // out of sync, of all volumes
	Generation uint64 // current UUIDs with bit 0 cleared; of several volumes a digest; 0: unknown

	Term        uint64 // the highest that an owner is known of; this node's own while it is Primary
	Promised    uint64 // writes of a lower one are refused
	Owned       bool   // Primary under a term that the arbiter gave
	Sole        bool   // Primary, and may write without its peer
	Marked      bool   // the sole-writer mark is on disk
	TermUnknown string // why it can't tell what it promised
	Frozen      string // why I/O waits; "" if it does not
	ReadsFrozen bool   // reads wait, too
	Incarnation string // that the volumes are exported to; "" is none
	Clients     int    // that hold a volume open
	Problem     string // why it is not up, or what is wrong with it

	// StandsBack: Secondary, and Outdated, durably, as soon as the connection ends; AsksPeer:
	// Primary, and wants that of its peer; PeerStandsBack: which has said so.
	StandsBack, AsksPeer, PeerStandsBack bool
}

// Phase is what a service does on this node.
type Phase string

// The phases; "" is a service that nobody has looked for yet.
const (
	PhaseStopped Phase = "stopped" // nothing of it runs
	PhaseRunning Phase = "running"
	PhasePaused  Phase = "paused"  // exists, and stands still
	PhaseFailed  Phase = "failed"  // runs, and its monitor says that it does not serve
	PhaseUnknown Phase = "unknown" // exists, or may exist: no answer
)

// Seen is what is seen of a service on this node.
type Seen struct {
	Phase       Phase
	Incarnation string // that it was started with; "" if that can't be told
	Addresses   bool   // its floating addresses are on this node
	Monitor     string // what the probe said last; "" is well, or no probe
	Problem     string // why it can't be started here, whatever the storage says; "" if it can
}

// Health is what this node has left.
type Health struct {
	MemoryBytes uint64 // of the machine
	FreeBytes   uint64 // that services may still take; those that run have theirs already
	Problem     string // why nothing may be started here; "" if it may
}

// Verb is what an operator wants.
type Verb string

// The verbs. All but Leave, Failover and ResumeSole may be given to any node.
const (
	StartVerb    Verb = "start"    // Service, Node or ""; target-role becomes started
	StopVerb     Verb = "stop"     // Service; target-role becomes stopped
	KillVerb     Verb = "kill"     // Service; as stop, without asking the guest
	RestartVerb  Verb = "restart"  // Service
	MoveVerb     Verb = "move"     // Service, Node or "" for the other one
	EnableVerb   Verb = "enable"   // Service; polluxha cares for it again
	DisableVerb  Verb = "disable"  // Service; polluxha leaves it as it is
	StandbyVerb  Verb = "standby"  // Node; its services move away, none comes, also after a reboot
	OnlineVerb   Verb = "online"   // Node
	EvacuateVerb Verb = "evacuate" // Node; its services move away once
	LeaveVerb    Verb = "leave"    // Node, this one: what it runs moves or stops, its lease ends; until the next start
	// FailoverVerb: Service, PeerIsDown, Force, Confirm: the service runs here although
	// nobody but the operator knows what became of the other node.
	FailoverVerb Verb = "failover"
	// ResumeSoleVerb: Service, Confirm: a frozen service goes on alone without the arbiter.
	ResumeSoleVerb Verb = "resume-sole"
)

// Command is one wish of an operator. It is answered by one or more Answer orders
// with its ID; the last one has Done.
type Command struct {
	ID         uint64 // chosen by the caller, not 0
	Verb       Verb
	Service    string
	Node       string
	PeerIsDown string // the node that the operator has looked at: it is off
	Force      bool   // use a copy that is known to lack acknowledged writes
	Confirm    string // the service's name, typed again
	NoWait     bool   // Done as soon as it is accepted
	asksName   bool   // it was refused, and would not be with Confirm
}

// Beat is what a node tells the others in each heartbeat. It changes rarely.
type Beat struct {
	Session  string        `json:"session"`
	Seq      uint64        `json:"seq"`  // grows with each change of what follows
	Boot     string        `json:"boot"` //
	Config   string        `json:"config"`
	Leader   bool          `json:"leader,omitempty"`
	Arbiter  bool          `json:"arbiter"` // it reaches the arbiter, and its lease is good
	Health   Health        `json:"health"`
	Services []ServiceBeat `json:"services,omitempty"` // that it has a file of
	Copies   []Copy        `json:"copies,omitempty"`
	Wishes   []Wish        `json:"wishes,omitempty"` // all that it knows of
}

// ServiceBeat is what a node tells of a service.
type ServiceBeat struct {
	Name   string `json:"name"`
	Hash   string `json:"hash"`             // of its file
	State  State  `json:"state"`            // on that node
	Ready  bool   `json:"ready,omitempty"`  // it could be started there, as far as that node can tell
	Why    string `json:"why,omitempty"`    // why it could not, or is not as it should be
	Since  uint64 `json:"since,omitempty"`  // Version of the wish that State answers
	Failed bool   `json:"failed,omitempty"` // its restarts there are used up
	Moving string `json:"moving,omitempty"` // it is being handed over to that node
}

// Copy is what a node tells of its copy of a resource.
type Copy struct {
	Resource   string `json:"resource"`
	Role       Role   `json:"role"`
	Connected  bool   `json:"connected"`
	Disk       Disk   `json:"disk"`
	DirtyBytes uint64 `json:"dirty,omitempty"` // rounded up to two binary digits
	Generation uint64 `json:"generation"`
	Term       uint64 `json:"term"`
	Promised   uint64 `json:"promised"`
	Sole       bool   `json:"sole,omitempty"` // or marked so
	// MaxLossBytes and MaxLossMS are as in Resource, on that node.
	MaxLossBytes uint64         `json:"max-loss-bytes,omitempty"`
	MaxLossMS    uint64         `json:"max-loss-ms,omitempty"`
	Record       arbiter.Record `json:"record"` // the newest of the arbiter's that it knows
}

// Target is what a service should do.
type Target string

// The targets.
const (
	TargetStarted  Target = "started"
	TargetStopped  Target = "stopped"
	TargetDisabled Target = "disabled" // whatever it does now: hands off
	// Of nodes.
	TargetOnline  Target = "online"
	TargetStandby Target = "standby"
)

// Wish is what an operator wants of a service or of a node, for good. Each node
// stores all of them and tells the others; of two for one object the one with the
// higher Version counts, then the one By the later name.
type Wish struct {
	Service string `json:"service,omitempty"` // or
	Node    string `json:"node,omitempty"`    //
	Target  Target `json:"target"`
	Place   string `json:"place,omitempty"`   // of a service: the node that it is to run on now
	Kill    bool   `json:"kill,omitempty"`    // stopped without asking
	Restart bool   `json:"restart,omitempty"` // this version of the wish wants it started anew
	Version uint64 `json:"version"`
	By      string `json:"by"`
}

// Saved is what outlives the process, by Persist and Started.
type Saved struct {
	Boot      string     `json:"boot"`      // of the machine, when it was written
	Met       []string   `json:"met"`       // resources whose peer was met since that boot
	Left      []string   `json:"left"`      // resources whose copy here was left behind when its disk had failed
	Wishes    []Wish     `json:"wishes"`    // sorted
	Shots     []Shot     `json:"shots"`     // fence shots, the last one at each node
	Overrides []Override `json:"overrides"` // terms that an operator has made without the arbiter
}

// Shot is a fence shot that was fired.
type Shot struct {
	Node string `json:"node"`
	Term uint64 `json:"term"`
}

// Override is a term that an operator made without the arbiter.
type Override struct {
	Resource string `json:"resource"`
	Term     uint64 `json:"term"`
}
