package ha

import "github.com/pollux-project/pollux/hypervisor/ha/arbiter"

// An OrderID names an order, and grows from one to the next; 0 is none.
type OrderID uint64

// OrderKind says what is to be done, and so which fields of an Order are set.
type OrderKind uint8

// The orders. Those marked with * have an ID and are answered.
const (
	// Renew*: prolong this node's lease; Session.
	Renew OrderKind = iota + 1
	// Observe*: look at the arbiter's records of Resources, and the leases.
	Observe
	// Claim*: ask the arbiter for a new term; Claim.
	Claim
	// Release*: tell the arbiter that this node has demoted; Resource, Term.
	Release
	// Resign*: end this node's lease, it has stopped all it ran; Session.
	Resign

	// PromiseTerm*: polluxd accepts no write of a lower term any more; Resource, Term.
	PromiseTerm
	// Promote*: polluxd is Primary under Term, alone if Sole; Resource, Force. On a Primary it changes the term.
	Promote
	// Demote*: Secondary; Resource.
	Demote
	// Export*: the volumes of Resource to one client, as RES/VOL@Incarnation.
	Export
	// Unexport*: no client any more, whatever the incarnation; Resource.
	Unexport
	// FreezeReads*: reads wait, too, until the resource has a new term or is demoted; Resource.
	FreezeReads
	// Failsafe*: polluxd asks the peer of a Primary to stand back: to be Outdated, durably, from the
	// end of the connection on. Without On that is taken back; Resource.
	Failsafe
	// TellLease: this node's lease lasts until the Tick in Until: polluxd freezes the Primaries
	// then that are without their peer, if polluxha is gone by that time.
	TellLease

	// StartService*: Service, Incarnation.
	StartService
	// StopService*: ask it to stop, and wait; Service. What does not stop in time is an error, and runs on.
	StopService
	// KillService*: it is gone, for certain, when this is done; Service.
	KillService
	// AddIPs*: the floating addresses of Service.
	AddIPs
	// RemoveIPs*: they are gone when this is done; Service.
	RemoveIPs
	// Hook: run one; Hook, Service, Node, Text. The runtime limits its time.
	Hook
	// Fence*: power Node off; Term.
	Fence
	// ConfirmOff*: a person has seen that Node is off; the arbiter that fences is told.
	ConfirmOff
	// Watchdog: this node must be reset now, unless Service can be killed after all; Text.
	Watchdog

	// Persist*: Saved, durably.
	Persist
	// SendBeat: from now on heartbeats carry Beat; the next one at once.
	SendBeat
	// Note: for the log and the event stream; Note.
	Note
	// Answer: to the command with ID Command; Done, Text, Err.
	Answer
)

// Order is one thing to do: a flat value, Kind says which fields are set.
type Order struct {
	Kind    OrderKind
	ID      OrderID
	Timeout Tick // how long it may take

	Service     string
	Resource    string
	Resources   []string
	Node        string
	Session     string
	Incarnation string
	Term        uint64
	Sole        bool
	Force       bool // Promote: of a copy that is known to lack writes, as the operator wants
	On          bool // Failsafe
	Deposed     bool // StartService: its last owner did not give it up, and may still answer for its addresses
	Until       Tick
	Claim       arbiter.Claim
	Hook        HookName
	Saved       Saved
	Beat        Beat
	Note        Notice

	Command uint64
	Done    bool
	Text    string
	Err     string // why a command was refused, with the next step
	Asks    bool   // it was refused for lack of a name in Confirm only
}

// HookName names a program of the operator's.
type HookName string

// The hooks.
const (
	OnPromote     HookName = "on-promote"
	OnDemote      HookName = "on-demote"
	OnLeader      HookName = "on-leader"
	OnFollower    HookName = "on-follower"
	OnNodeLost    HookName = "on-node-lost"
	OnUnavailable HookName = "on-unavailable"
)

// Level says how much a notice matters.
type Level string

// The levels.
const (
	Info     Level = "info"
	Warning  Level = "warning"
	Critical Level = "critical" // somebody has to do something
)

// Topic sorts notices.
type Topic string

// The topics.
const (
	TopicNode     Topic = "node"
	TopicArbiter  Topic = "arbiter"
	TopicLease    Topic = "lease"
	TopicTerm     Topic = "term"
	TopicRole     Topic = "role"
	TopicService  Topic = "vm"
	TopicAddress  Topic = "address"
	TopicFence    Topic = "fence"
	TopicAlarm    Topic = "alarm"
	TopicConfig   Topic = "config"
	TopicOperator Topic = "operator" // for the audit log
)

// Notice is a line for people. One with a Key is an alarm that stands until a notice
// with the same Key and Cleared comes.
type Notice struct {
	Level    Level
	Topic    Topic
	Key      string
	Cleared  bool
	Service  string
	Resource string
	Node     string
	Term     uint64
	Text     string
}
