package adm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// HACommand is what an HARequest asks polluxha for.
type HACommand string

// The commands of polluxha's socket. Those that say "progress" may send HAMessage
// lines with Progress before their answer; "streams" turns the connection into
// lines of HAEvent.
const (
	HAHello  HACommand = "hello"  // -> HAHelloData
	HAReload HACommand = "reload" // read pollux.toml, the cluster file and all VM files again
	HAEvents HACommand = "events" // streams; Since, Follow

	HAVMList     HACommand = "vm-list"     // -> HAVMs
	HAVMStatus   HACommand = "vm-status"   // VM -> HAVMs with that one
	HAVMStart    HACommand = "vm-start"    // VM; progress; target-role becomes running; Node: there, if it may
	HAVMStop     HACommand = "vm-stop"     // VM; progress; target-role becomes stopped
	HAVMKill     HACommand = "vm-kill"     // VM; progress; as stop, without asking the guest
	HAVMMove     HACommand = "vm-move"     // VM, Node (or "": the other one); progress
	HAVMRestart  HACommand = "vm-restart"  // VM; progress; on the same node, with a new incarnation
	HAVMEnable   HACommand = "vm-enable"   // VM; polluxha starts, watches and takes over again
	HAVMDisable  HACommand = "vm-disable"  // VM; polluxha leaves it as it is
	HAVMFailover HACommand = "vm-failover" // VM, PeerIsDown, Confirm, Force; progress
	// HAVMResumeSole: VM, Confirm: its frozen I/O goes on here without peer and arbiter.
	HAVMResumeSole HACommand = "vm-resume-sole"

	HANodeList     HACommand = "node-list"     // -> HACluster
	HANodeStandby  HACommand = "node-standby"  // Node; progress; its VMs move away and none comes, also after a reboot
	HANodeOnline   HACommand = "node-online"   // Node
	HANodeEvacuate HACommand = "node-evacuate" // Node; progress; its VMs move away once, it stays online
	HANodeLeave    HACommand = "node-leave"    // this node; progress; its VMs move or stop, its lease ends; until polluxha starts again

	HAClusterStatus HACommand = "cluster-status" // -> HACluster
	HAClusterInit   HACommand = "cluster-init"   // Cluster, Links, Arbiter, ArbiterOptions -> HACluster
	HAClusterToken  HACommand = "cluster-token"  // Node, Kind, Links -> HAToken
	HAClusterJoin   HACommand = "cluster-join"   // Token; progress
	HAClusterLeave  HACommand = "cluster-leave"  // Node; progress

	HADrill HACommand = "drill" // VM, Kill, Confirm; progress -> HADrillResult
)

// haShape says which names a command needs.
type haShape struct{ vm, node bool }

var haShapes = map[HACommand]haShape{
	HAHello: {}, HAReload: {}, HAEvents: {},
	HAVMList: {}, HAVMStatus: {vm: true}, HAVMStart: {vm: true}, HAVMStop: {vm: true}, HAVMKill: {vm: true}, HAVMMove: {vm: true},
	HAVMRestart: {vm: true}, HAVMEnable: {vm: true}, HAVMDisable: {vm: true}, HAVMFailover: {vm: true}, HAVMResumeSole: {vm: true},
	HANodeList: {}, HANodeStandby: {node: true}, HANodeOnline: {node: true}, HANodeEvacuate: {node: true}, HANodeLeave: {},
	HAClusterStatus: {}, HAClusterInit: {}, HAClusterToken: {node: true}, HAClusterJoin: {}, HAClusterLeave: {node: true},
	HADrill: {vm: true},
}

// An HARequest is one line from a client of polluxha.
type HARequest struct {
	V    int       `json:"v"`
	ID   uint64    `json:"id"` // chosen by the client, comes back in every line of the answer
	Cmd  HACommand `json:"cmd"`
	VM   string    `json:"vm,omitempty"`
	Node string    `json:"node,omitempty"`
	Args HAArgs    `json:"args,omitzero"`
}

// HAArgs are the options of all commands; each command's zero value is the plain form.
type HAArgs struct {
	// PeerIsDown names the node that the operator answers for: it is off.
	// vm-failover without an arbiter that knows needs it.
	PeerIsDown string `json:"peer_is_down,omitempty"`
	// Force uses a copy that is known to lack acknowledged writes. vm-failover.
	Force bool `json:"force,omitempty"`
	// Confirm is the VM's name, typed again: vm-failover with PeerIsDown or Force, drill.
	Confirm string `json:"confirm,omitempty"`
	// NoWait: the answer comes as soon as the order is accepted.
	NoWait bool `json:"no_wait,omitempty"`

	Since  uint64 `json:"since,omitempty"`  // events: only those with a greater Seq
	Follow bool   `json:"follow,omitempty"` // events: go on with new ones until the client leaves
	Kill   string `json:"kill,omitempty"`   // drill: "primary"

	Cluster        string            `json:"cluster,omitempty"`         // cluster-init: its name
	Links          []string          `json:"links,omitempty"`           // cluster-init, -token: IP:PORT, the management link first
	Kind           string            `json:"kind,omitempty"`            // cluster-token: "data" or "witness"
	Arbiter        string            `json:"arbiter,omitempty"`         // cluster-init: etcd, witness, fence or manual
	ArbiterOptions map[string]string `json:"arbiter_options,omitempty"` // cluster-init: keys of the arbiter's table in cluster.toml
	Token          string            `json:"token,omitempty"`           // cluster-join
}

// maxHAText bounds the texts of a request, in bytes; a token is the longest.
const maxHAText = 4096

// Validate reports the first thing wrong with r, as a *ProtocolError.
func (r *HARequest) Validate() error {
	if r.V != Version {
		return &ProtocolError{What: fmt.Sprintf("version %d of the control protocol, this side speaks %d", r.V, Version)}
	}
	shape, known := haShapes[r.Cmd]
	a := &r.Args
	switch {
	case !known:
		return &ProtocolError{What: fmt.Sprintf("unknown command %q", clip(string(r.Cmd)))}
	case shape.vm && r.VM == "":
		return &ProtocolError{What: fmt.Sprintf("command %q without a VM", r.Cmd)}
	case shape.node && r.Node == "":
		return &ProtocolError{What: fmt.Sprintf("command %q without a node", r.Cmd)}
	case r.Cmd == HAClusterJoin && a.Token == "":
		return &ProtocolError{What: fmt.Sprintf("command %q without a token", r.Cmd)}
	case r.Cmd == HAClusterInit && a.Cluster == "":
		return &ProtocolError{What: fmt.Sprintf("command %q without a name for the cluster", r.Cmd)}
	case r.Cmd == HADrill && a.Kill != "primary":
		return &ProtocolError{What: fmt.Sprintf("command %q: kill %q, the only one is \"primary\"", r.Cmd, clip(a.Kill))}
	case a.Kind != "" && a.Kind != NodeData && a.Kind != NodeWitness:
		return &ProtocolError{What: fmt.Sprintf("node kind %q, want %q or %q", clip(a.Kind), NodeData, NodeWitness)}
	}
	for _, name := range append([]string{r.VM, r.Node, a.PeerIsDown, a.Confirm, a.Cluster}, a.Links...) {
		if len(name) > maxName || strings.ContainsAny(name, "\x00\n") {
			return &ProtocolError{What: fmt.Sprintf("name %q", clip(name))}
		}
	}
	if len(a.Token) > maxHAText {
		return &ProtocolError{What: fmt.Sprintf("token of %d bytes, at most %d", len(a.Token), maxHAText)}
	}
	return nil
}

// DecodeHARequest is DecodeRequest for polluxha.
func DecodeHARequest(line []byte) (HARequest, error) {
	var r HARequest
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return r, &ProtocolError{What: fmt.Sprintf("bad request %q", clip(string(line))), Err: err}
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return r, &ProtocolError{What: "more than one request on a line"}
	}
	return r, r.Validate()
}

// An HAMessage is one line of polluxha's answer to a request: progress while it
// works, then one Response with Progress nil.
type HAMessage struct {
	Response
	Progress *HAProgress `json:"progress,omitempty"`
}

// HAProgress is what a command that takes more than a second has to tell.
type HAProgress struct {
	Step      string `json:"step"`            // "stop", "promote", "start", ...
	Text      string `json:"text"`            // for people
	VM        string `json:"vm,omitempty"`    // of a command for several
	ElapsedMS int64  `json:"elapsed_ms"`      // since the request came
	Done      int    `json:"done,omitempty"`  // of Total, if that is known
	Total     int    `json:"total,omitempty"` //
}

// DecodeHAMessage decodes one line of polluxha's answer.
func DecodeHAMessage(line []byte) (HAMessage, error) {
	var m HAMessage
	if err := json.Unmarshal(line, &m); err != nil {
		return m, &ProtocolError{What: fmt.Sprintf("bad answer %q", clip(string(line))), Err: err}
	}
	if m.V != Version {
		return m, &ProtocolError{What: fmt.Sprintf("polluxha speaks version %d of the control protocol, polluxadm %d", m.V, Version)}
	}
	return m, nil
}

// HAHelloData describes polluxha.
type HAHelloData struct {
	Version  string `json:"version"`
	Protocol int    `json:"protocol"`
	PID      int    `json:"pid"`
	Node     string `json:"node"`
	Session  string `json:"session"` // of this run of polluxha; its lease carries it
	BootID   string `json:"boot_id"`
	Cluster  string `json:"cluster,omitempty"` // "": this node is in no cluster
}

// The kinds of node.
const (
	NodeData    = "data"
	NodeWitness = "witness" // votes and watches, has no disk
)

// The states of a node in its cluster.
const (
	NodeSolo      = "solo"      // in no cluster, or the only node of it
	NodeLeader    = "leader"    // owns the arbiter's pseudo-resource _leader
	NodeFollower  = "follower"  //
	NodeCandidate = "candidate" // does not know a leader
	NodeError     = "error"     // silent, without a lease, or at odds with the others
)

// Levels of a verdict and of an event.
const (
	HALevelOK       = "ok"
	HALevelInfo     = "info"
	HALevelWarning  = "warning"
	HALevelCritical = "critical"
)

// HACluster is the answer to cluster-status and node-list, as the answering node
// sees it. Its JSON names are stable.
type HACluster struct {
	Name       string    `json:"name"`
	ID         string    `json:"id"`
	Node       string    `json:"node"` // that answers
	Level      string    `json:"level"`
	Verdict    string    `json:"verdict"` // one sentence
	Advice     string    `json:"advice,omitempty"`
	Arbiter    HAArbiter `json:"arbiter"`
	ConfigHash string    `json:"config_hash"` // of the cluster file
	Nodes      []HANode  `json:"nodes"`       // in the cluster file's order
}

// HAArbiter is how the arbiter is.
type HAArbiter struct {
	Kind      string `json:"kind"` // etcd, witness, fence, manual
	Reachable bool   `json:"reachable"`
	Detail    string `json:"detail,omitempty"` // members, what is ill
	TTLMS     int64  `json:"ttl_ms"`
	SinceMS   int64  `json:"since_ms"` // since it answered, or, if not Reachable, since it last did; negative: never

	SelfTest *time.Time `json:"self_test,omitempty"` // last successful self-test of the fence agents; nil: none, or no fence
}

// HANode is one line of cluster status.
type HANode struct {
	Name        string   `json:"name"`
	Kind        string   `json:"kind"`
	State       string   `json:"state"`
	Online      bool     `json:"online"` // heartbeats come
	Standby     bool     `json:"standby"`
	Term        uint64   `json:"term"`  // the highest of its resources
	Votes       string   `json:"votes"` // "1", "0", or "-" where the arbiter counts none
	InSync      int      `json:"in_sync"`
	Copies      int      `json:"copies"`   // resources with a copy there; InSync of them count
	Lease       string   `json:"lease"`    // "alive", "ended", "none"
	LeaseMS     int64    `json:"lease_ms"` // left, of this node's own; 0 of others
	SilentMS    int64    `json:"silent_ms"`
	Session     string   `json:"session,omitempty"`
	Version     string   `json:"version,omitempty"`
	Links       []HALink `json:"links,omitempty"`
	VMs         []string `json:"vms,omitempty"` // that run there
	MemoryBytes uint64   `json:"memory_bytes"`  // of the host
	FreeBytes   uint64   `json:"free_bytes"`    // that VMs may still take
	SameConfig  bool     `json:"same_config"`   // its cluster file is this node's
	Why         string   `json:"why,omitempty"` // one sentence with the next step
}

// HALink is one heartbeat path to a node.
type HALink struct {
	Address  string `json:"address"`
	Up       bool   `json:"up"`
	SilentMS int64  `json:"silent_ms"`
}

// HAVMs is the answer to vm-list and vm-status.
type HAVMs struct {
	Node string `json:"node"` // that answers
	VMs  []HAVM `json:"vms"`  // sorted by name
}

// The states of a VM.
const (
	VMStopped  = "stopped"
	VMStarting = "starting"
	VMRunning  = "running"
	VMStopping = "stopping"
	VMMoving   = "moving"
	VMFrozen   = "frozen"  // runs, and its I/O waits for a decision
	VMBlocked  = "blocked" // should run and may not; Why says what is to be done
	VMFailed   = "failed"  // its restarts are used up
	VMUnknown  = "unknown" // the node that has it is silent
)

// HAVM is the status of one VM or service.
type HAVM struct {
	Name        string       `json:"name"`
	State       string       `json:"state"`
	Node        string       `json:"node,omitempty"` // where it runs, or is being started
	Target      string       `json:"target"`         // target-role: "running", "stopped"
	Enabled     bool         `json:"enabled"`
	Hypervisor  string       `json:"hypervisor"` // "qemu", ..., or "units"
	Nodes       []string     `json:"nodes"`      // that have a copy, best first
	Level       string       `json:"level"`
	Why         string       `json:"why,omitempty"` // why it is not as it should be
	Advice      string       `json:"advice,omitempty"`
	Protection  string       `json:"protection"` // what it is protected against, one phrase
	Incarnation string       `json:"incarnation,omitempty"`
	Restarts    int          `json:"restarts"`
	Since       *time.Time   `json:"since,omitempty"` // of State
	SameConfig  bool         `json:"same_config"`     // its file is equal on all its nodes
	MemoryBytes uint64       `json:"memory_bytes"`
	IPs         []string     `json:"ips,omitempty"`
	Monitor     string       `json:"monitor,omitempty"` // "ok", or what the probe said last
	Resources   []HAResource `json:"resources"`
	File        string       `json:"file"`
}

// HAResource is one resource of a VM.
type HAResource struct {
	Name       string   `json:"name"`
	Term       uint64   `json:"term"`  // the arbiter's record
	Owner      string   `json:"owner"` // of the record; "" is none
	InSync     []string `json:"in_sync"`
	Released   bool     `json:"released,omitempty"`
	Generation string   `json:"generation,omitempty"` // 16 hex digits
	Role       string   `json:"role,omitempty"`       // polluxd's words, of this node; "" if it has no copy
	Connection string   `json:"connection,omitempty"`
	Disk       string   `json:"disk,omitempty"`
	PeerDisk   string   `json:"peer_disk,omitempty"`
	LocalTerm  uint64   `json:"local_term,omitempty"`
	Promised   uint64   `json:"promised,omitempty"`
	Sole       bool     `json:"sole,omitempty"`
	Frozen     string   `json:"frozen,omitempty"`
	MaxLoss    string   `json:"max_loss,omitempty"` // bound of protocol A and B: "8 MiB or 5s"
}

// HAToken is the answer to cluster-token: what cluster-join on the new node takes.
type HAToken struct {
	Token   string    `json:"token"` // a secret, good once
	Node    string    `json:"node"`
	Expires time.Time `json:"expires"`
}

// HAEvent is one line of the event log and of the event stream.
type HAEvent struct {
	V        int       `json:"v"`
	Seq      uint64    `json:"seq"` // grows by one on a node; a gap means that lines were dropped
	Time     time.Time `json:"time"`
	Node     string    `json:"node"` // that wrote it
	Level    string    `json:"level"`
	Kind     string    `json:"kind"` // HAEvent... below
	VM       string    `json:"vm,omitempty"`
	Resource string    `json:"resource,omitempty"`
	Peer     string    `json:"peer,omitempty"` // the other node it is about
	Term     uint64    `json:"term,omitempty"`
	Text     string    `json:"text"` // for people
	MS       int64     `json:"ms"`   // monotonic milliseconds since the host booted: intervals are right whatever the clock does
}

// Kinds of HAEvent.
const (
	HAEventReady    = "ready"    // all that was recorded has been sent; of a stream only
	HAEventNode     = "node"     // a node came or went
	HAEventArbiter  = "arbiter"  // reachable, lost, behind
	HAEventLease    = "lease"    // this node's lease was made, prolonged late, or lost
	HAEventTerm     = "term"     // a term was granted or refused
	HAEventRole     = "role"     // promoted, demoted, frozen, resumed
	HAEventVM       = "vm"       // started, stopped, died, moved
	HAEventAddress  = "address"  // a floating address was added or removed
	HAEventHook     = "hook"     // a hook ran, failed or was cut off
	HAEventFence    = "fence"    // a shot, its result, a self-test
	HAEventAlarm    = "alarm"    // something needs a person
	HAEventConfig   = "config"   // read again, refused
	HAEventOperator = "operator" // a command that changes something
	HAEventDrill    = "drill"    //
)

// DecodeHAEvent decodes one line of an event stream or of the event log.
func DecodeHAEvent(line []byte) (HAEvent, error) {
	var e HAEvent
	if err := json.Unmarshal(line, &e); err != nil {
		return e, &ProtocolError{What: fmt.Sprintf("bad event %q", clip(string(line))), Err: err}
	}
	if e.V != Version {
		return e, &ProtocolError{What: fmt.Sprintf("event of version %d of the control protocol, this side speaks %d", e.V, Version)}
	}
	return e, nil
}

// HADrillResult is a rehearsed failover as a client saw it.
type HADrillResult struct {
	VM       string        `json:"vm"`
	From     string        `json:"from"`
	To       string        `json:"to"`
	OutageMS int64         `json:"outage_ms"` // last success to first success; negative: it did not come back
	Probe    string        `json:"probe"`     // what was asked, and how often
	Marks    []HADrillMark `json:"marks"`
}

// HADrillMark is one moment of a drill.
type HADrillMark struct {
	AtMS int64  `json:"at_ms"` // since the kill
	Node string `json:"node"`  // that saw it
	Text string `json:"text"`
}

// HAConfirm is the Number of a refusal for which nothing is missing but the name in
// Confirm: its text says what the operator has to answer for.
const HAConfirm = 1
