package repltest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// settleMS is how long a command of a script is given before the next one.
const settleMS = 300

// RunScript runs one golden file: a dialogue of commands and of what the two
// nodes a and b then do. Each command is followed by 300 ms of the fake clock
// (ms=N: by so many), without any randomness; -q leaves its output out,
// -s the packets and the disks' part of it.
//
//	new [protocol=C] [created] [kernel [early-ack]] [fencing=resource-and-stonith] ...
//	up a b | start a | attach a | connect a [discard] | disconnect a [force]
//	primary a [force] | secondary a | open a | close a | detach a [force]
//	invalidate a | invalidate-remote a | outdate a
//	pause-sync a | resume-sync a | sync-after a [waits] | before-resync a code=1
//	write|trim|zero|read a sector=8 size=4096 [fua] [n=3] | flush a
//	integrity alg=crc32c (both nodes, live)
//	two-primaries a yes|no [protocol=A] | delay a meta by=20 | race
//	fail a write n=1 | cut [silent] | heal | stall a data | kill a [power]
//	set a current=C1 bitmap=B1+p history=D1,E1 flags=consistent,crashed dirty=3 | verdict
//	fence a code=4 [after=1000] | barrier-ack to=a barrier=7 set_size=1 | run | state | check
//	promise a term=7 | primary a term=7 [sole] | primary a vote | resume-io a, and see term.go
//	freeze a | thaw a | lease a lasts=500 | failsafe a | failsafe-over a
func RunScript(t *testing.T, path string) {
	s := &script{}
	runGolden(t, path, func(d *directive) string {
		if d.cmd == "new" {
			return s.create(d)
		}
		if s.w == nil {
			d.fatalf("the first command is new")
		}
		s.run(d)
		s.w.Run(int64(d.number("ms", settleMS)))
		out := s.w.TakeTrace()
		if err := s.w.Err(); err != nil {
			d.fatalf("%v\n%s", err, out)
		}
		if d.has("-s") {
			out = withoutTraffic(out)
		}
		if d.has("-q") || out == "" {
			return "ok"
		}
		return out
	})
}

type script struct {
	w         *World
	savedMeta []byte
	savedTerm []byte
}

// withoutTraffic leaves states, reports, handlers and answers.
func withoutTraffic(out string) string {
	var kept []string
	for line := range strings.Lines(out) {
		switch w := strings.Fields(line); {
		case len(w) < 2:
		case w[1] == "data", w[1] == "meta", w[1] == "write-meta", w[1] == "sync-data", w[1] == "submit":
		case w[1] == "state" && (strings.Contains(line, `-> Unconnected" reason="retry"`) || strings.HasSuffix(line, "reason=\"connect\"\n")):
		default:
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

func (s *script) create(d *directive) string {
	c := DefaultConfig()
	c.Synced = !d.has("created")
	c.Sectors = d.number("sectors", c.Sectors)
	c.OtherSize = d.number("other-sectors", 0)
	c.Room, c.Internal = d.number("room", 0), d.has("internal")
	c.Volumes = d.number("volumes", 1)
	c.ALSlots = d.number("al-extents", 7)
	c.FenceAgent, c.NoData, c.BeforeResync = d.has("fence-handler"), d.has("suspend-io"), d.has("before-resync")
	c.Net[0].AllowTwoPrimaries, c.Net[1].AllowTwoPrimaries = d.has("two-primaries"), d.has("two-primaries")
	c.EarlyAck = d.has("early-ack")
	c.Version, c.Resolver = d.number("version", 0), d.number("resolver", 0)
	switch {
	case d.has("kernel"):
		c.Features = KernelFeatures
	case d.args["features"] == "trim":
		c.Features = drbd.FeatureTrim
	}
	for key, value := range d.args {
		s.option(d, &c, key, value)
	}
	s.w = NewWorld(c)
	s.w.SetTracing()
	return "ok"
}

func (s *script) option(d *directive, c *Config, key, value string) {
	for i := range c.Net {
		if policyOption(d, &c.Net[i], i, key, value) {
			continue
		}
		switch key {
		case "protocol":
			c.Net[i].Protocol = value[0]
		case "protocol-b":
			c.Net[1].Protocol = value[0]
		case "after-sb-b":
			c.Net[1].AfterSB0P = replication.SBDiscardZeroChanges
		case "verify-alg":
			c.Net[i].VerifyAlg = value
		case "integrity-b":
			c.Net[1].DataIntegrityAlg = value
		case "data-integrity-alg":
			c.Net[i].DataIntegrityAlg = value
		case "verify-b":
			c.Net[1].VerifyAlg = value
		case "max-loss":
			c.Net[i].MaxLossBytes, c.Net[i].MaxLossMS = uint64(d.number(key, 0)), 60_000
		case "max-loss-ms":
			c.Net[i].MaxLossMS = int64(d.number(key, 0))
		case "need-terms":
			c.Net[i].NeedTerms = value == "yes"
		case "max-epoch-size":
			c.Net[i].MaxEpochSize = d.number(key, 0)
		case "on-io-error":
			c.Disk[i].OnIOError = map[string]replication.OnIOError{
				"detach": replication.DetachOnError, "pass_on": replication.PassOnError, "call-local-io-error": replication.CallLocalIOError,
			}[value]
		case "fencing":
			c.Disk[i].Fencing = map[string]replication.Fencing{
				"resource-only": replication.FencingResourceOnly, "resource-and-stonith": replication.FencingResourceAndStonith,
			}[value]
		case "read-balancing":
			c.Disk[i].ReadBalancing = map[string]replication.ReadBalancing{
				"prefer-remote": replication.PreferRemote, "round-robin": replication.RoundRobin, "32K-striping": replication.Striping32K,
			}[value]
		case "disk-timeout":
			c.Disk[i].DiskTimeoutMS = int64(d.number(key, 0))
		case "on-congestion":
			c.Net[i].OnCongestion = map[string]replication.OnCongestion{
				"pull-ahead": replication.CongestionPullAhead, "disconnect": replication.CongestionDisconnect,
			}[value]
		case "congestion-fill":
			c.Net[i].CongestionFill = uint64(d.number(key, 0))
		case "congestion-extents":
			c.Net[i].CongestionExtents = d.number(key, 0)
		case "al-extents":
			c.Disk[i].ALExtents = d.number(key, 0)
		case "al-updates":
			c.Disk[i].ALUpdates = value != "no"
		case "csums-alg":
			c.Net[i].CsumsAlg = value
		case "rs-discard-granularity":
			c.Disk[i].RSDiscardGranularity = uint32(d.number(key, 0))
		case "c-max-rate":
			c.Disk[i].CMaxRateKiB = uint32(d.number(key, 0))
		}
	}
}

// nodes are those that the command names.
func (s *script) nodes(d *directive) []*Node {
	var ns []*Node
	for _, n := range s.w.Nodes {
		if d.has(n.name) {
			ns = append(ns, n)
		}
	}
	if len(ns) == 0 {
		d.fatalf("%s: no node a or b", d.cmd)
	}
	return ns
}

var scriptCommands = map[string]replication.CommandKind{
	"primary": replication.CmdPrimary, "secondary": replication.CmdSecondary, "disconnect": replication.CmdDisconnect,
	"detach": replication.CmdDetach, "invalidate": replication.CmdInvalidate, "invalidate-remote": replication.CmdInvalidateRemote,
	"pause-sync": replication.CmdPauseSync, "resume-sync": replication.CmdResumeSync, "sync-after": replication.CmdSyncAfter,
	"outdate": replication.CmdOutdate, "open": replication.CmdOpen, "close": replication.CmdClose, "connect": replication.CmdConnect,
	"suspend-io": replication.CmdSuspendIO, "resume-io": replication.CmdResumeIO, "new-current-uuid": replication.CmdNewCurrentUUID,
	"verify": replication.CmdVerify, "freeze": replication.CmdFreeze, "thaw": replication.CmdThaw, "lease": replication.CmdLease,
	"failsafe": replication.CmdFailsafe, "failsafe-over": replication.CmdFailsafeOver,
	"resize": replication.CmdResize,
}

var scriptOps = map[string]replication.Op{
	"read": replication.OpRead, "write": replication.OpWrite, "flush": replication.OpFlush,
	"trim": replication.OpTrim, "zero": replication.OpZero,
}

func (s *script) run(d *directive) {
	w := s.w
	if kind, ok := scriptCommands[d.cmd]; ok {
		for _, n := range s.nodes(d) {
			s.excuse(n, kind, d)
			from := replication.VerifyContinue
			if d.has("from") {
				from = drbd.Sector(d.number("from", 0))
			}
			n.Command(replication.Command{
				Kind: kind, Force: d.has("force") || d.has("discard"), AssumeClean: d.has("clear-bitmap") || d.has("assume-clean"),
				Volume: uint16(d.number("vol", 0)), Waits: d.has("waits"), SizeSectors: uint64(d.number("size", 0)),
				Term: uint64(d.number("term", 0)), Sole: d.has("sole"), Vote: d.has("vote"),
				LeaseMS:     uint64(d.number("lasts", 0)),
				StartSector: from, StopSector: drbd.Sector(d.number("to", 0)),
			}, nil)
		}
		return
	}
	if op, ok := scriptOps[d.cmd]; ok {
		s.submit(d, op)
		return
	}
	switch d.cmd {
	case "run":
	case "cut":
		w.Cut(d.has("silent"))
	case "heal":
		w.Heal()
	case "barrier-ack":
		s.barrierAck(d)
	case "integrity":
		w.SetIntegrity(d.args["alg"])
	case "check":
		w.Run(int64(d.number("ms", settleMS)))
		w.CheckQuiet()
	case "set":
		s.set(d)
	case "verdict":
		s.verdict(d)
	case "state":
		for _, n := range w.Nodes {
			s.printState(n)
		}
	default:
		for _, n := range s.nodes(d) {
			s.machine(d, n)
		}
	}
}

// machine is what happens to a node, not what its operator asks for.
func (s *script) machine(d *directive, n *Node) {
	switch d.cmd {
	case "up":
		n.Up()
	case "start":
		n.Start()
	case "attach":
		n.Attach(d.number("vol", 0))
	case "flip":
		n.flips++
	case "corrupt":
		n.corrupt(d.number("vol", 0), d.number("sector", 0))
	case "kill":
		n.Kill(d.has("power"), 0)
	case "grow":
		n.Grow(n.Vols[d.number("vol", 0)], d.number("by", 0))
	case "before-resync":
		n.before = d.number("code", 0)
	case "fence":
		n.fence, n.fenceMS = d.number("code", 0), int64(d.number("after", 0))
	case "two-primaries":
		net := s.w.cfg.Net[n.id]
		net.AllowTwoPrimaries, net.Protocol = d.has("yes"), 'C'
		if p, ok := d.args["protocol"]; ok {
			net.Protocol = p[0]
		}
		n.Command(replication.Command{Kind: replication.CmdSetOptions, Net: net, Disk: s.w.cfg.Disk[n.id]}, nil)
	case "handlers": // those that its config file has now
		s.w.cfg.FenceAgent, s.w.cfg.BeforeResync = d.has("fence-peer"), d.has("before-resync")
		n.Command(replication.Command{Kind: replication.CmdSetHandlers, Handlers: s.w.cfg.handlers()}, nil)
	case "adjust": // the options of a node, as in its config file now
		c := s.w.cfg
		for key, value := range d.args {
			s.option(d, &c, key, value)
		}
		s.w.cfg.Net[n.id], s.w.cfg.Disk[n.id] = c.Net[n.id], c.Disk[n.id]
		n.Command(replication.Command{Kind: replication.CmdSetOptions, Net: c.Net[n.id], Disk: c.Disk[n.id]}, nil)
	case "delay":
		sock := drbd.DataSocket
		if d.has("meta") {
			sock = drbd.MetaSocket
		}
		s.w.delayed[n.id][sock] = int64(d.number("by", 0)) * 1000
	case "blocked":
		n.step(&replication.Event{Kind: replication.SendBlocked})
	case "jam":
		s.w.Jam(n.id, int64(d.number("us", 500_000)))
	case "stall":
		sock := drbd.DataSocket
		if d.has("meta") {
			sock = drbd.MetaSocket
		}
		s.w.Stall(n.id, sock)
	case "hang":
		n.Hang()
	case "unhang":
		n.Unhang()
	case "fail":
		for _, f := range []fault{failRead, failWrite, failSync, failMeta, failTerm} {
			if d.has(string(f)) {
				n.faults[f] = d.number("n", 1)
			}
		}
	default:
		if !s.term(d, n) {
			d.fatalf("no command %q", d.cmd)
		}
	}
}

// excuse tells the checker what the operator does away with.
func (s *script) excuse(n *Node, kind replication.CommandKind, d *directive) {
	switch {
	case kind == replication.CmdInvalidate, kind == replication.CmdConnect && d.has("discard"):
		s.w.Model.Excuse(n)
	case kind == replication.CmdInvalidateRemote:
		s.w.Model.Excuse(s.w.Nodes[1-n.id])
	}
}

func (s *script) submit(d *directive, op replication.Op) {
	n := s.nodes(d)[0]
	q := Request{Op: op, FUA: d.has("fua"), Vol: d.number("vol", 0)}
	q.Sector = d.number("sector", 0)
	if op != replication.OpFlush {
		q.Count = d.number("size", blockSize) / sectorSize
	}
	step := d.number("step", q.Count)
	for range d.number("n", 1) {
		s.w.Model.Submit(n, q, nil)
		q.Sector += step
	}
}

// barrierAck lets node to receive a P_BARRIER_ACK that its peer never sent.
func (s *script) barrierAck(d *directive) {
	to := d.args["to"]
	if to != "a" && to != "b" {
		d.fatalf("no to=a or to=b")
	}
	n := s.w.Nodes[to[0]-'a']
	b := drbd.AppendHeader100(nil, drbd.Header{Command: drbd.CmdBarrierAck, Length: 8})
	b = drbd.BarrierAck{Barrier: uint32(d.number("barrier", 0)), SetSize: uint32(d.number("set_size", 1))}.Append(b)
	n.receive(drbd.MetaSocket, b, nil)
}

func (s *script) printState(n *Node) {
	if !n.alive {
		s.w.trace("%s is down", n.name)
		return
	}
	snap := n.res.Snapshot(s.w.Tick())
	for _, v := range snap.Volumes {
		line := fmt.Sprintf("%s/%d %v out-of-sync=%d uuids=%s flags=%v", n.name, v.Number, v.State, v.OutOfSyncBytes, uuidText(v.UUIDs), v.Flags)
		if len(snap.Suspended) > 0 {
			line += " suspended=" + strings.Join(snap.Suspended, ",")
		}
		line += termText(snap.Term)
		s.w.trace("%s", line)
	}
	if snap.SplitBrain != "" {
		s.w.trace("%s split brain: %s", n.name, snap.SplitBrain)
	}
}
