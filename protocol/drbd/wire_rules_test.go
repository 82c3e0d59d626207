package drbd_test

import (
	"slices"
	"strconv"
	"strings"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/protocol/drbd/wiretest"
)

// ruleNames are all rules that the captures are held against; TestWire wants
// each to have been tried.
var ruleNames = []string{
	"8-byte headers before P_PROTOCOL and below version 100 only",
	"order of the greeting", "protocol of the configuration", "after-sb policies of the configuration",
	"discard-my-data and dry-run as commanded", "two_primaries of the configuration", "integrity_alg of the configuration",
	"resync parameters of the configuration", "queue_order_type is 0", "max_bio_size of the version", "the export fits both disks",
	"a UUID packet's flags", "number of bits within the device", "P_UUIDS as the node's rules have it", "metadata on disk as the node's rules have it",
	"sync UUID = bitmap UUID + 2^48", "the first P_STATE comes from WFConnection", "states fit together", "role as commanded", "role of /proc/drbd",
	"protocol of /proc/drbd", "val within mask", "the operator wanted the state change", "a reply answers a request", "a ping was sent",
	"sequence number used once", "sequence numbers grow on a socket", "sequence numbers without a gap",
	"block id of a write", "flags of a write", "ack flags of the protocol", "a write inside the device", "no barrier for an empty epoch", "barrier numbers grow",
	"P_BARRIER_ACK in order, handle echoed", "set_size = writes of the epoch", "acks before their epoch's P_BARRIER_ACK", "an epoch that lost a conflict is passed over",
	"an ack repeats sector and size", "an ack that was asked for", "all ones in resync packets only", "a request inside the device",
	"resync request: extent and alignment", "an answer to a request", "an answer has no number", "result of a verify",
	"the blocks asked for are the union of both bitmaps", "data are those of the sender's disk", "digest is that of the sender's disk", "a deallocated range is zero there",
	"the verdict fits both disks", "out of sync in the peer's file", "the first bitmap has the bits that P_UUIDS announced", "copies that are in sync are equal",
}

// rule holds one packet, or line, against a rule.
func (r *replay) rule(e wiretest.Event, ok bool, name, format string, args ...any) {
	r.t.Helper()
	r.rules[name]++
	if !ok {
		r.t.Errorf("line %d: %s: "+format, append([]any{e.Line, name}, args...)...)
	}
}

// A session is what one connection, a pair of sockets, has told.
type session struct {
	conn     int // its data socket
	over     bool
	version  int
	greeting map[string][]drbd.Command // by sender: its first packets
	asked    map[string][]drbd.Command // by sender: requests without a reply
	pings    map[string]int
	seqs     map[volumeOf]map[uint32]bool
	lastSeq  map[socketOf]uint32
	writes   map[volumeOf]map[uint64]*write
	reads    map[volumeOf]map[uint64]drbd.BlockRequest
	epoch    map[string][]*write
	barriers map[string][]closedEpoch
	lastBar  map[string]uint32
	wanted   map[volumeOf]map[span]int // resync and verify requests without an answer
	verified map[volumeOf]map[span][]byte
	resync   map[uint16]*resynced
	bitmaps  map[volumeOf]*received
	state    map[volumeOf]drbd.State
	uuids    map[volumeOf]drbd.UUIDs // the last packet
	protocol map[string]uint32
	verify   string
	csums    string
	cut      bool // packets were left out
}

type volumeOf struct {
	node   string
	volume uint16
}

type socketOf struct {
	volumeOf
	sock drbd.Socket
}

type span struct {
	sector drbd.Sector
	size   uint32
}

func newSession() *session {
	return &session{
		version: drbd.MaxVersion, greeting: map[string][]drbd.Command{}, asked: map[string][]drbd.Command{}, pings: map[string]int{},
		seqs: map[volumeOf]map[uint32]bool{}, lastSeq: map[socketOf]uint32{}, writes: map[volumeOf]map[uint64]*write{},
		reads: map[volumeOf]map[uint64]drbd.BlockRequest{}, epoch: map[string][]*write{}, barriers: map[string][]closedEpoch{},
		lastBar: map[string]uint32{}, wanted: map[volumeOf]map[span]int{}, verified: map[volumeOf]map[span][]byte{}, resync: map[uint16]*resynced{},
		bitmaps: map[volumeOf]*received{}, state: map[volumeOf]drbd.State{}, uuids: map[volumeOf]drbd.UUIDs{}, protocol: map[string]uint32{},
	}
}

func (r *replay) event(e wiretest.Event) {
	switch e.Kind {
	case wiretest.Packet:
		r.packet(e)
	case wiretest.Command:
		r.command[e.From] = e.Text
		r.operator(e)
	case wiretest.Note:
		r.note(e)
	case wiretest.Cut:
		r.session.cut = true
	case wiretest.Fin, wiretest.Reset:
		if e.Conn == r.session.conn && !r.session.over {
			r.session.over = true
			r.lostContact()
		}
	case wiretest.Comment, wiretest.Connect: // the first packet begins a session
	}
}

// other is the node that is not this one.
func other(node string) string {
	if node == "A" {
		return "B"
	}
	return "A"
}

// differs lists what the configuration in a capture's head does not say of
// node B: it was changed on that node alone.
var differs = map[string]map[string][]string{
	"TestWire/s22-mismatch": {"protocol": {"A", "C"}, "verify-alg": {"", "md5"}},
}

// option is the value of an option on a node now: it is one of those returned.
func (r *replay) option(node, name, byDefault string) []string {
	if d := differs[r.t.Name()][name]; node == "B" && d != nil {
		return d
	}
	all := []string{byDefault}
	if v := wiretest.Option(r.events, name); v != "" {
		all = []string{v}
	}
	if name == "protocol" { // given twice, the second one counts
		head := wiretest.Config(r.events)
		i := strings.LastIndex(head, " protocol ")
		all = []string{head[i+10 : i+11]}
	}
	for _, e := range r.events { // options that were changed on the way
		for key, value := range r.changed(e) {
			if key == name && e.From == node {
				all = append(all, value)
			}
		}
	}
	return all
}

// changed are the options that a command sets.
func (r *replay) changed(e wiretest.Event) map[string]string {
	if e.Kind != wiretest.Command || !strings.Contains(e.Text, "-options") {
		return nil
	}
	set := map[string]string{}
	for _, w := range strings.Fields(e.Text) {
		if o, ok := strings.CutPrefix(w, "--"); ok {
			key, value, _ := strings.Cut(o, "=")
			set[key] = value
		}
	}
	return set
}

var policies = map[string]uint32{
	"disconnect": 0, "discard-younger-primary": 1, "discard-older-primary": 2, "discard-zero-changes": 3, "discard-least-changes": 4,
	"discard-local": 5, "discard-remote": 6, "consensus": 7, "discard-secondary": 8, "call-pri-lost-after-sb": 9, "violently-as0p": 10,
}

// greetingOf checks the packets that say who a node is, whenever they come.
func (r *replay) greetingOf(e wiretest.Event, h drbd.Header, p drbd.Packet) {
	s := r.session
	if h.Command == drbd.CmdInitialData {
		r.ended()
		s = newSession()
		s.conn = e.Conn
		r.session = s
	}
	early := h.Command == drbd.CmdInitialData || h.Command == drbd.CmdInitialMeta || h.Command == drbd.CmdConnectionFeatures
	if f, ok := p.(*drbd.Features); ok && e.From == "B" && f.Max < 100 {
		s.version = int(f.Max) // of v01-versions: only B offers less
	}
	want := drbd.HeaderSize100
	if early || s.version < 100 {
		want = drbd.HeaderSize80
	}
	r.rule(e, len(e.Header) == want, "8-byte headers before P_PROTOCOL and below version 100 only", "%v has %d bytes", h.Command, len(e.Header))
	switch p := p.(type) {
	case *drbd.ProtocolPacket:
		r.protocolOf(e, p)
	case *drbd.SyncParam89:
		r.syncParamOf(e, h, p)
	case *drbd.Sizes:
		r.sizesOf(e, h, p)
	}
	if e.Socket == drbd.DataSocket && !early {
		r.orderOf(e, h)
	}
}

// orderOf checks what a node says before and with its first state.
func (r *replay) orderOf(e wiretest.Event, h drbd.Header) {
	s := r.session
	if l := s.greeting[e.From]; len(l) > 0 && l[len(l)-1] == drbd.CmdState && len(l) >= 4*r.volumes() {
		return // it is over
	}
	s.greeting[e.From] = append(s.greeting[e.From], h.Command)
	sync := drbd.CmdSyncParam89
	if s.version < 89 {
		sync = drbd.CmdSyncParam
	}
	var full []drbd.Command
	if wiretest.Option(r.events, "cram-hmac-alg") != "" {
		full = append(full, drbd.CmdAuthChallenge, drbd.CmdAuthResponse)
	}
	full = append(full, drbd.CmdProtocol)
	diskless := slices.Clone(full)
	for range r.volumes() {
		full = append(full, sync, drbd.CmdSizes, drbd.CmdUUIDs, drbd.CmdState)
		diskless = append(diskless, sync, drbd.CmdSizes, drbd.CmdState)
	}
	got := s.greeting[e.From]
	isPrefix := func(all []drbd.Command) bool { return len(got) <= len(all) && slices.Equal(got, all[:len(got)]) }
	ok := isPrefix(full) || isPrefix(diskless) || len(got) > len(diskless) && slices.Equal(got[:len(diskless)], diskless)
	r.rule(e, ok, "order of the greeting", "%v", got)
}

func (r *replay) volumes() int {
	return max(1, strings.Count(wiretest.Config(r.events), "device /dev/drbd"))
}

func (r *replay) protocolOf(e wiretest.Event, p *drbd.ProtocolPacket) {
	r.session.protocol[e.From] = p.Protocol
	letter := map[uint32]string{drbd.ProtocolA: "A", drbd.ProtocolB: "B", drbd.ProtocolC: "C"}[p.Protocol]
	if r.t.Name() == "TestWire/v01-versions" {
		letter = "" // the probe's head has no configuration
	} else {
		r.rule(e, slices.Contains(r.option(e.From, "protocol", "C"), letter), "protocol of the configuration", "%s", letter)
	}
	for name, got := range map[string]uint32{"after-sb-0pri": p.AfterSB0P, "after-sb-1pri": p.AfterSB1P, "after-sb-2pri": p.AfterSB2P} {
		ok := slices.ContainsFunc(r.option(e.From, name, "disconnect"), func(v string) bool { return policies[v] == got })
		r.rule(e, ok, "after-sb policies of the configuration", "%s %d", name, got)
	}
	var want uint32
	if strings.Contains(r.command[e.From], "--discard-my-data") {
		want |= drbd.ConnDiscardMyData
	}
	if strings.Contains(r.command[e.From], "--tentative") {
		want |= drbd.ConnDryRun
	}
	r.rule(e, p.ConnFlags == want, "discard-my-data and dry-run as commanded", "conn_flags %d after %q, want %d", p.ConnFlags, r.command[e.From], want)
	two := r.option(e.From, "allow-two-primaries", "no")
	r.rule(e, slices.Contains(two, map[uint32]string{0: "no", 1: "yes"}[p.TwoPrimaries]), "two_primaries of the configuration", "%d", p.TwoPrimaries)
	r.rule(e, slices.Contains(r.option(e.From, "data-integrity-alg", ""), p.IntegrityAlg), "integrity_alg of the configuration", "%q", p.IntegrityAlg)
}

func (r *replay) syncParamOf(e wiretest.Event, h drbd.Header, p *drbd.SyncParam89) {
	s := r.session
	s.verify, s.csums = p.VerifyAlg, p.CsumsAlg
	if r.t.Name() == "TestWire/v01-versions" {
		return
	}
	want := drbd.SyncParam89{ResyncRate: 250, CPlanAhead: 20, CDelayTarget: 10, CFillTarget: 100, CMaxRate: 102400} // a diskless node's
	if p.ResyncRate != want.ResyncRate {
		want.CPlanAhead, want.CFillTarget = 0, p.CFillTarget
		if slices.ContainsFunc(r.option("A", "resync-rate", ""), func(v string) bool { return v != "" && uint64(p.ResyncRate) == kib(v) }) {
			want.ResyncRate = p.ResyncRate
		}
	} else {
		r.rule(e, !r.nodes[e.From].attached(h.Volume), "resync parameters of the configuration", "defaults of a node with a disk")
	}
	want.VerifyAlg, want.CsumsAlg = p.VerifyAlg, p.CsumsAlg
	r.rule(e, *p == want, "resync parameters of the configuration", "%+v, want %+v", *p, want)
	r.rule(e, slices.Contains(r.option(e.From, "verify-alg", ""), p.VerifyAlg), "resync parameters of the configuration", "verify-alg %q", p.VerifyAlg)
	r.rule(e, slices.Contains(r.option(e.From, "csums-alg", ""), p.CsumsAlg), "resync parameters of the configuration", "csums-alg %q", p.CsumsAlg)
}

// kib is a rate of the configuration in KiB/s.
func kib(v string) uint64 {
	unit := uint64(1)
	if n, ok := strings.CutSuffix(v, "M"); ok {
		unit, v = 1024, n
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		return 0
	}
	return n * unit
}

func (r *replay) sizesOf(e wiretest.Event, h drbd.Header, p *drbd.Sizes) {
	s, n := r.session, r.nodes[e.From]
	r.rule(e, p.QueueOrderType == 0, "queue_order_type is 0", "%d", p.QueueOrderType)
	limit := uint32(drbd.MaxRequestSize)
	switch {
	case s.version <= 94:
		limit = 32 << 10
	case s.version < 100:
		limit = 128 << 10
	}
	r.rule(e, p.MaxBioSize <= limit && p.MaxBioSize > 0, "max_bio_size of the version", "%d with version %d", p.MaxBioSize, s.version)
	n.disk[h.Volume] = p.DSize
	if p.CSize != 0 {
		r.nodes["A"].size[h.Volume], r.nodes["B"].size[h.Volume] = p.CSize, p.CSize
		for _, d := range []drbd.Sector{p.DSize, r.nodes[other(e.From)].disk[h.Volume]} {
			r.rule(e, d == 0 || p.CSize <= d, "the export fits both disks", "%d of %d sectors", p.CSize, d)
		}
	}
}
