package engine

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/protocol/drbd/wiretest"
	"github.com/pollux-project/pollux/replication"
)

// replayed is one capture on its way past an engine that takes the place of
// node me; the scripted peer takes that of the other.
type replayed struct {
	t      *testing.T
	me     string
	events []wiretest.Event
	cfg    Config
	eng    *Engine
	peer   *scriptedPeer
	faults faults

	limit   int // line at which the replay ends, 0 is none
	at      int // index of the event that is due
	running *running
	rows    [][]wiretest.Poke // of the last command, if it was poke's
	silent  bool              // the peer is dead: it answers nothing
	hungUp  bool              // the capture has closed the sockets

	got     [2][]heard      // the engine's packets that are not matched yet, by socket
	probes  int             // answers to our probes that are awaited
	pings   int             // likewise
	unacked int64           // bytes of a resync that the engine has not acknowledged
	crash   bool            // a node dies in this capture
	anyBit  map[uint64]bool // random sync UUIDs: their bit 0 is random, too

	image       map[uint16][]byte // the peer's disk
	size        map[uint16]drbd.Sector
	uuids       map[uint64]uint64 // of the capture, to those of this run; without bit 0
	ids         map[uint64]uint64 // block ids of the capture's writes, to the engine's
	bars        map[uint32]closedHere
	epoch       []uint64 // block ids of the engine's writes since its last P_BARRIER that the peer acknowledges
	epochSize   uint32   // how many writes these are in all
	looseEpochs bool     // some of them were under way together
	acked       map[uint64]bool
	loose       []looseBar
	gaps        map[drbd.Sector]bool // asked for because the capture has not
	auth        authTexts
	seq         map[uint16]uint32          // the peer's last number
	seqs        map[uint16]map[uint32]bool // the engine's
	asked       []heard                    // resync requests that wait for their answer
	allowed     map[drbd.Sector]bool       // for which the peer may answer
	all         bool                       // it may for all
	alg         string
	prefix      uint32 // features agreed

	granted      bool   // the engine has granted a disconnect
	peerDiskless bool   // says the peer
	ownProtocol  []byte // the last of the engine's node
	kernelLoose  bool   // writes of the kernel's open epoch were under way together

	requested  map[drbd.Sector]bool  // by the peer, in this resync or verify
	done       map[drbd.Sector]bool  // acknowledged by the peer, likewise
	replied    map[drbd.Sector]heard // by the engine, likewise
	auto       bool                  // the peer does the rest of this resync or verify by itself
	endFirst   bool                  // the peer closes data before it grants a disconnect
	peerSecret string
	adjust     []func(*replication.NetOptions) // what the node's drbd.conf has at each adjust
	newCfg     *Config                         // of the running command
	protocol   []byte                          // the last P_PROTOCOL or P_PROTOCOL_UPDATE of either node
	used       []int                           // how often each freedom was
	fields     map[string]int

	matched int      // packets of the engine that were the kernel's
	diffs   []string // fields that are not the kernel's
}

type running struct {
	event wiretest.Event
	done  chan error
	over  bool
	err   error
}

type closedHere struct {
	handle uint32
	writes uint32
}

// stop ends a replay where it stands.
type stop struct{ why string }

func (r *replayed) stopf(format string, args ...any) { panic(stop{fmt.Sprintf(format, args...)}) }

// run walks through the capture; it returns the line that it could not pass,
// and why, or 0.
func (r *replayed) run() (line int, why string) {
	defer func() {
		if p := recover(); p != nil {
			s, ok := p.(stop)
			if !ok {
				panic(p)
			}
			line, why = r.events[min(r.at, len(r.events)-1)].Line, s.why
		}
	}()
	r.unannounced()
	for r.at = range r.events {
		if r.events[r.at].Line == r.limit {
			return 0, ""
		}
		r.event(r.events[r.at])
	}
	r.settle()
	return 0, ""
}

// unannounced brings up what the capture does not: nodes that were up before.
func (r *replayed) unannounced() {
	r.start()
	for _, e := range r.events {
		if e.From != r.me {
			continue
		}
		if e.Kind == wiretest.Command && (strings.Contains(e.Text, "connect") || strings.Contains(e.Text, " up ") || strings.Contains(e.Text, "adjust")) {
			return
		}
		if e.Kind == wiretest.Packet {
			break
		}
	}
	r.expectPeer()
	if err := r.eng.Connect(ConnectOptions{}); err != nil {
		r.stopf("connect: %v", err)
	}
}

func (r *replayed) event(e wiretest.Event) {
	if r.hungUp && e.Kind != wiretest.Fin && e.Kind != wiretest.Reset {
		r.afterEnd()
	}
	switch e.Kind {
	case wiretest.Connect:
		r.connect(e)
	case wiretest.Fin, wiretest.Reset:
		if c := r.connOf(e.Conn); c != nil {
			r.hungUp = true
			if e.From != r.me {
				c.hangUp()
			}
		}
	case wiretest.Command:
		if e.From == r.me {
			if strings.Contains(e.Text, "disconnect") && r.eng != nil && r.eng.Status().Volumes[0].Conn == drbd.SyncTarget {
				// It had come so far when it was interrupted.
				r.pump("the requests for what was answered", func() bool { return len(r.allowed) == 0 && r.unacked == 0 })
			}
			r.sync()
			r.finishCommand()
			r.expectPeer()
			if r.eng == nil { // its machine was started again
				r.cfg.BootID = "boot-2"
				r.start()
			}
			r.command(e)
			r.begun()
		} else {
			r.peersCommand(e)
		}
	case wiretest.Note:
		r.note(e)
	case wiretest.Cut:
		r.cut(e)
	case wiretest.Packet:
		if e.From == r.me {
			r.expect(e)
		} else {
			r.play(e)
		}
	case wiretest.Comment:
	}
}

// connOf is the peer's socket of the capture's connection n, or nil.
func (r *replayed) connOf(n int) *peerConn {
	for _, c := range []*peerConn{r.peer.data, r.peer.meta} {
		if c != nil && c.number == n {
			return c
		}
	}
	return nil
}

// first is the first packet on the capture's connection n: none is an attempt
// that failed.
func (r *replayed) first(n int) (wiretest.Event, bool) {
	for _, e := range r.events[r.at:] {
		if e.Kind == wiretest.Packet && e.Conn == n {
			return e, true
		}
	}
	return wiretest.Event{}, false
}

// expectPeer lets the engine find its peer if it is the one to open the next
// data socket.
func (r *replayed) expectPeer() {
	if r.peer.data != nil {
		return
	}
	for _, e := range r.events[r.at:] {
		if e.Kind != wiretest.Connect {
			continue
		}
		if _, used := r.first(e.Conn); used {
			r.check(r.peer.listen(e.From == r.me))
			return
		}
	}
	r.check(r.peer.listen(false))
}

func (r *replayed) check(err error) {
	if err != nil {
		r.stopf("%v", err)
	}
}

// connect opens one of the two sockets, by the node that opened it.
func (r *replayed) connect(e wiretest.Event) {
	first, used := r.first(e.Conn)
	if !used {
		return
	}
	h, err := first.DecodeHeader()
	r.check(err)
	if e.From == r.me {
		r.check(r.peer.listen(true))
		for {
			c, cmd, err := r.peer.accept()
			r.check(err)
			if cmd == h.Command {
				r.peer.adopt(c, e.Conn, cmd)
				break
			}
			c.Close() // both opened one at the same time
		}
	} else {
		r.check(r.peer.listen(h.Command == drbd.CmdInitialData && r.opensNext() == r.me))
		c, err := r.peer.dial()
		r.check(err)
		r.peer.adopt(c, e.Conn, h.Command)
	}
	if h.Command == drbd.CmdInitialData {
		r.newConnection()
	} else {
		r.check(r.peer.listen(false))
	}
}

// opensNext is the node that opens the next socket.
func (r *replayed) opensNext() string {
	for _, e := range r.events[r.at+1:] {
		if _, used := r.first(e.Conn); e.Kind == wiretest.Connect && used {
			return e.From
		}
	}
	return ""
}

// newConnection forgets what belongs to the connection before.
func (r *replayed) newConnection() {
	r.got = [2][]heard{}
	r.ids, r.bars = map[uint64]uint64{}, map[uint32]closedHere{}
	r.seq, r.seqs = map[uint16]uint32{}, map[uint16]map[uint32]bool{}
	r.asked, r.epoch, r.probes, r.pings, r.unacked = nil, nil, 0, 0, 0
	r.acked, r.loose, r.gaps = map[uint64]bool{}, nil, map[drbd.Sector]bool{}
	r.granted, r.peerDiskless, r.kernelLoose, r.auto = false, false, false, false
	r.replied = map[drbd.Sector]heard{}
	r.requested, r.done = map[drbd.Sector]bool{}, map[drbd.Sector]bool{}
	r.epochSize, r.looseEpochs, r.allowed, r.all = 0, false, map[drbd.Sector]bool{}, false
	r.alg = ""
	r.silent = false
}

// pump takes the engine's packets in until cond holds.
func (r *replayed) pump(what string, cond func() bool) {
	deadline := time.NewTimer(replayTime)
	defer deadline.Stop()
	poll := time.NewTicker(2 * time.Millisecond) // for what the engine tells no one
	defer poll.Stop()
	for !cond() {
		var done chan error
		if r.running != nil && !r.running.over {
			done = r.running.done
		}
		select {
		case h := <-r.peer.in:
			r.hear(h)
		case err := <-done:
			r.running.over, r.running.err = true, err
		case <-poll.C:
		case <-deadline.C:
			r.stopf("waited in vain for %s; the engine: %s; unmatched: %s", what, r.describe(), r.unmatched())
		}
	}
}

func (r *replayed) describe() string {
	if r.eng == nil {
		return "down"
	}
	s := r.eng.Status()
	var b strings.Builder
	fmt.Fprintf(&b, "%v %v/%v", s.Conn, s.Role, s.PeerRole)
	for _, v := range s.Volumes {
		fmt.Fprintf(&b, " %v %v/%v oos %d", v.Conn, v.Disk, v.PeerDisk, v.OutOfSyncBytes)
	}
	if s.LastError != "" {
		b.WriteString(" " + s.LastError)
	}
	return b.String()
}

func (r *replayed) unmatched() string {
	var b strings.Builder
	for _, q := range r.got {
		for _, h := range q {
			fmt.Fprintf(&b, "%v %.32x ", h.header.Command, h.payload)
		}
		b.WriteString("/ ")
	}
	return b.String()
}

// begun waits until a command has ended, or has sent something: then it waits
// for the peer.
func (r *replayed) begun() {
	n := len(r.got[0]) + len(r.got[1])
	r.pump("the command "+r.running.event.Text, func() bool { return r.running.over || len(r.got[0])+len(r.got[1]) > n })
}

// finishCommand waits for the end of the last command.
func (r *replayed) finishCommand() {
	if r.running == nil {
		return
	}
	c := r.running
	r.pump("the end of "+c.event.Text, func() bool { return c.over })
	r.running = nil
	if r.newCfg != nil {
		r.cfg, r.newCfg = *r.newCfg, nil
	}
	want := r.refusal(c.event)
	if c.err != nil && otherwise(c.event.Text, c.err.Error()) {
		return
	}
	switch {
	case c.err != nil && want == "":
		r.stopf("the engine refuses %q: %v", c.event.Text, c.err)
	case c.err == nil && want != "":
		r.stopf("the engine does %q, the kernel: %s", c.event.Text, want)
	case want != "" && !strings.Contains(c.err.Error(), want):
		r.diff("refusal of %q: %v, the kernel's has %q", c.event.Text, c.err, want)
	}
}

// refusal is what drbd said to a command, up to the next one; "" if it did it.
func (r *replayed) refusal(c wiretest.Event) string {
	for _, e := range r.events {
		if e.Line <= c.Line || e.From != c.From {
			continue
		}
		if e.Kind == wiretest.Command {
			return ""
		}
		if e.Kind == wiretest.Note && strings.HasPrefix(e.Text, "exit ") {
			_, text, _ := strings.Cut(e.Text, ": State change failed: ")
			text, _, _ = strings.Cut(text, " Command ")
			if text == "" {
				text = e.Text // it was another program that refused
			}
			return text
		}
	}
	return ""
}

// sync waits until the engine has dealt with all that was sent to it: it
// answers a request that changes nothing.
func (r *replayed) sync() {
	if r.peer.data == nil || r.peer.meta == nil || r.hungUp || r.silent || r.eng == nil {
		return
	}
	s := r.eng.Status()
	if s.Conn != drbd.Connected {
		return
	}
	r.probes++
	if r.peer.send(drbd.DataSocket, drbd.CmdConnStChgReq, 0, drbd.ReqState{}.Append(nil)) != nil {
		return
	}
	r.pump("the answer to a probe", func() bool { return r.probes == 0 || r.peer.data.ended || r.peer.meta.ended })
}

// afterEnd waits for the end of a connection that the capture has closed.
func (r *replayed) afterEnd() {
	data, meta := r.peer.data, r.peer.meta
	for _, c := range []*peerConn{data, meta} {
		c.hangUp()
		r.pump("the end of the connection", func() bool { return c == nil || c.ended })
	}
	r.numbered()
	r.peer.forget()
	r.hungUp = false
	for _, q := range r.got {
		for _, h := range q {
			r.stopf("the engine sent %v, the kernel did not: %x", h.header.Command, h.payload)
		}
	}
	r.expectPeer()
}

// numbered checks the sequence numbers of a connection that is over.
func (r *replayed) numbered() {
	for v, seen := range r.seqs {
		for n := range uint32(len(seen)) {
			if !seen[n+1] {
				r.diff("volume %d has no packet with number %d of %d", v, n+1, len(seen))
			}
		}
	}
}

// settle ends a replay that has come to the end of its capture.
func (r *replayed) settle() {
	if r.hungUp {
		r.afterEnd()
	}
	if r.eng != nil && r.running != nil && (r.running.over || len(r.got[drbd.DataSocket]) == 0) {
		r.sync()
		r.finishCommand() // else the capture ends within it
	}
}

func (r *replayed) diff(format string, args ...any) {
	line := 0
	if r.at < len(r.events) {
		line = r.events[r.at].Line
	}
	r.diffs = append(r.diffs, fmt.Sprintf("line %d: ", line)+fmt.Sprintf(format, args...))
}

// kill stops the engine as a crash does: what it has not written is lost. Its
// sockets end when it does nothing more.
func (r *replayed) kill() {
	eng, stopped := r.eng, make(chan struct{})
	go func() {
		eng.halt()
		close(stopped)
	}()
	r.pump("the end of the node", func() bool {
		eng.mu.Lock()
		defer eng.mu.Unlock()
		return eng.closed
	})
	r.peer.forget()
	<-stopped
	r.eng, r.running = nil, nil
}

// note holds what the engine says of itself against what the kernel said.
func (r *replayed) note(e wiretest.Event) {
	switch {
	case strings.Contains(e.Text, "killed") && e.From == r.me:
		r.kill()
		r.check(r.peer.listen(false))
	case strings.Contains(e.Text, "killed"):
		r.silent = true
	case strings.Contains(e.Text, "backing device is now"):
		r.grow(e)
	}
	if e.From != r.me || r.eng == nil {
		return
	}
	if gi, ok := wiretest.ParseGI(e.Text); ok {
		r.sync()
		r.compareGI(gi)
	}
	if p, ok := wiretest.ParseProc(e.Text); ok {
		r.sync()
		r.compareProc(p)
	}
}
