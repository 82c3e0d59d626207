package hostile

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

var (
	errClosed = errors.New("connection closed by the peer")
	errDisk   = errors.New("input/output error")
)

// node does for a core what the engine does, on disks of memory.
type node struct {
	w        *world
	id       int
	name     string
	res      *replication.Resource
	vols     []*volume
	alive    bool
	life     int
	timer    int
	wantLink bool
	paused   bool
	discard  bool
	net      replication.NetOptions
	disk     replication.DiskOptions
	held     map[*byte]int // buffers that the core has, in bytes
	heldSize int
	writes   map[*byte]*request // by their data
	open     int                // requests of clients that are not answered
	stuck    bool               // disks do not answer
	waiting  []func()
	faults   [4]int // operations that are to fail, by faultKind
	event    drbd.Command
	fence    int
}

type faultKind int

const (
	readFault faultKind = iota
	writeFault
	syncFault
	metaFault
)

type volume struct {
	num      uint16
	data     *disk
	meta     *metadata
	layout   meta.Layout
	attached bool
	jobs     int
	acked    []uint32 // by sector: what a client was told is written here, 0 if nothing is promised
	last     []uint32 // by sector: the stamp of the youngest request that changes it
}

// request is one of a client.
type request struct {
	op      replication.Op
	vol     *volume
	sector  int
	count   int
	stamp   uint32
	data    []byte
	local   bool // its local write has ended well
	disk    bool // there was a disk when it began
	err     error
	done    bool
	promise []uint32 // a flush: what was acknowledged before it
}

func newNode(w *world, id int, sectors []int, synced bool) *node {
	n := &node{w: w, id: id, name: string(rune('a' + id)), held: map[*byte]int{}, writes: map[*byte]*request{}}
	n.net, n.disk = w.cfg.net, w.cfg.disk
	for i, s := range sectors {
		m, l := newMetadata(s, synced)
		n.vols = append(n.vols, &volume{num: uint16(i), data: newDisk(s), meta: m, layout: l, acked: make([]uint32, s), last: make([]uint32, s)})
	}
	return n
}

func (n *node) start() {
	n.alive = true
	n.life++
	n.held, n.heldSize, n.writes, n.open = map[*byte]int{}, 0, map[*byte]*request{}, 0
	n.stuck, n.waiting, n.paused, n.wantLink = false, nil, false, false
	n.res = replication.New(replication.Config{
		Name: "r0", Net: n.net, Seed: uint64(n.id+1)<<32 + uint64(n.life),
		Handlers: replication.Handlers{HasFenceHandler: n.w.cfg.fenceHandler},
	})
	for _, v := range n.vols {
		v.attached, v.jobs = false, 0
		n.res.AddVolume(v.num, n.disk)
	}
}

// kill ends the process; what it had written stays.
func (n *node) kill() {
	if !n.alive {
		return
	}
	n.w.trace("%s killed", n.name)
	n.alive = false
	n.life++
	if l := n.w.link; l != nil && l.up[n.id] {
		n.w.closed(l, n.id)
	}
	for _, v := range n.vols {
		v.attached = false
		clear(v.acked) // what was not acknowledged may be on the disk now, too
	}
}

func (n *node) attach(i int) {
	v := n.vols[i]
	if !n.alive || v.attached {
		return
	}
	if _, err := meta.ApplyAL(v.meta, v.layout); err != nil {
		n.w.fail("%s: metadata that this node wrote: %v", n.name, err)
		return
	}
	sb, bm, err := meta.Load(v.meta, v.layout)
	if err != nil {
		n.w.fail("%s: metadata that this node wrote: %v", n.name, err)
		return
	}
	v.attached = true
	v.data.sync()() // as the engine does: an earlier process may have left something
	n.step(&replication.Event{Kind: replication.Attached, Volume: v.num, Disk: &replication.AttachedDisk{
		Superblock: sb, Bitmap: bm, AL: meta.NewActivityLog(n.disk.ALExtents, v.layout.Stripes, v.layout.StripeSize4k),
		Usable: v.layout.Usable, BlockSize: 512, Options: n.disk, NoTermFile: true,
	}})
}

func (n *node) up() {
	n.start()
	for i := range n.vols {
		n.attach(i)
	}
	n.command(replication.Command{Kind: replication.CmdConnect})
}

// outcome is the end of a command.
type outcome struct {
	done bool
	err  error
}

func (n *node) command(c replication.Command) *outcome {
	o := &outcome{}
	if !n.alive {
		return o
	}
	c.Tag = o
	n.w.trace("%s command %d force=%v", n.name, c.Kind, c.Force)
	n.step(&replication.Event{Kind: replication.Commanded, Command: c})
	return o
}

// step gives the core one event, and does what it says.
func (n *node) step(ev *replication.Event) {
	if !n.alive || n.w.failure != nil {
		return
	}
	ev.At = n.w.tick()
	acts := n.res.Step(ev)
	if len(acts) > maxActions {
		n.w.fail("%s: %d actions in one step", n.name, len(acts))
		return
	}
	for i := range acts {
		n.do(&acts[i])
	}
	if n.heldSize > maxHeld {
		n.w.fail("%s: the core holds %d bytes of buffers", n.name, n.heldSize)
	}
}

func (n *node) hold(b []byte) {
	if len(b) > 0 {
		n.held[&b[0]] = len(b)
		n.heldSize += len(b)
	}
}

func (n *node) free(b []byte) {
	if len(b) == 0 {
		return
	}
	size, ok := n.held[&b[0]]
	if !ok {
		n.w.fail("%s: a buffer of %d bytes is freed that the core has not", n.name, len(b))
		return
	}
	delete(n.held, &b[0])
	n.heldSize -= size
}

func (n *node) do(a *replication.Action) {
	life := n.life
	switch a.Kind {
	case replication.Send:
		n.send(a)
	case replication.DoLocal, replication.DoPeerLocal:
		n.local(a)
	case replication.Complete:
		n.complete(a)
	case replication.Free:
		n.free(a.Data)
	case replication.CloseDisk:
		v := n.vols[a.Volume]
		if v.jobs != 0 {
			n.w.fail("%s: volume %d is closed with %d operations under way", n.name, v.num, v.jobs)
		}
		v.attached = false
	case replication.WriteMeta:
		n.writeMeta(a)
	case replication.SyncData:
		n.syncData(n.vols[a.Volume])
	case replication.SetTimer:
		n.timer++
		number := n.timer
		n.w.after(max(int64(a.At-1)*1000-n.w.now, 0), func() {
			if number == n.timer && life == n.life {
				n.step(&replication.Event{Kind: replication.TimerFired})
			}
		})
	case replication.Disconnect:
		n.w.trace("%s disconnect %v: %v", n.name, a.Reason, a.Err)
		if l := n.w.link; l != nil && l.up[n.id] {
			n.paused = false
			n.w.closed(l, n.id)
		}
	case replication.Connect:
		n.wantLink = true
		n.w.after(1, n.w.connect)
	case replication.StopConnecting:
		n.wantLink = false
	case replication.ResumeReceive:
		if l := n.w.link; l != nil && n.paused {
			n.paused = false
			n.w.pump(l, 1-n.id, drbd.DataSocket)
		}
	case replication.WantDrain:
		l := n.w.link
		n.w.after(netDelay, func() {
			if n.w.link == l && l != nil && l.up[n.id] {
				n.step(&replication.Event{Kind: replication.Drained})
			}
		})
	case replication.RunHandler:
		name, vol, code := a.Name, a.Volume, n.fence
		n.w.after(2000, func() {
			if life == n.life {
				n.step(&replication.Event{Kind: replication.HandlerDone, Volume: vol, Name: name, ExitCode: code})
			}
		})
	case replication.CommandDone:
		if a.Tag == nil {
			n.w.trace("%s attach done: %v", n.name, a.Err)
		}
		if o, ok := a.Tag.(*outcome); ok {
			if o.done {
				n.w.fail("%s: a command is done twice", n.name)
			}
			o.done, o.err = true, a.Err
			n.w.trace("%s command done: %v", n.name, a.Err)
		}
	case replication.StateChanged:
		n.w.trace("%s/%d state %v -> %v: %s", n.name, a.Volume, a.From, a.To, a.Text)
		n.judgeState(a)
	case replication.ProbeDisk:
		v := n.vols[a.Volume]
		n.w.after(diskDelay, func() {
			if life == n.life {
				n.step(&replication.Event{Kind: replication.DiskProbed, Volume: v.num, Disk: &replication.AttachedDisk{
					Usable: v.layout.Usable, Superblock: v.layout.Place(meta.Superblock{}),
				}})
			}
		})
	case replication.Report:
		n.w.trace("%s report %s", n.name, a.Text)
	default:
		n.w.fail("%s: no case for action %d", n.name, a.Kind)
	}
}

// send files a packet, with the digest that it wants.
func (n *node) send(a *replication.Action) {
	l := n.w.link
	if l == nil || !l.up[n.id] {
		n.w.fail("%s: packet without a connection", n.name)
		return
	}
	b := append(append(make([]byte, 0, len(a.Bytes)+len(a.Data)), a.Bytes...), a.Data...)
	if a.DigestAlg != "" {
		sum := digest(a.DigestAlg, a.Data)
		copy(b[len(a.Bytes)-len(sum):], sum)
	}
	p := packet{a.Socket, b}
	n.w.trace("%s> %v %v %d bytes", n.name, a.Socket, p.header().Command, p.header().Length)
	if a.Socket == drbd.DataSocket {
		l.incoming[1-n.id].sent += uint64(len(b))
		pos, life := l.incoming[1-n.id].sent, n.life
		n.w.after(netDelay/2, func() {
			if n.w.link == l && l.up[n.id] && n.life == life {
				n.step(&replication.Event{Kind: replication.DataSent, Pos: pos})
			}
		})
	}
	n.w.file(n.id, p)
}

func digest(alg string, data []byte) []byte {
	h, err := drbd.NewDigest(alg)
	if err != nil {
		panic(err) // the core asks for an algorithm that does not exist
	}
	h.Write(data)
	return h.Sum(nil)
}

// integrity is the algorithm of the packets that a node receives, and how much
// the other has sent.
type integrity struct {
	alg  string
	size int
	sent uint64
}

// observe is what the engine's reader takes from a packet without data.
func (in *integrity) observe(h drbd.Header, payload []byte) error {
	if h.Command != drbd.CmdProtocol && h.Command != drbd.CmdProtocolUpdate {
		return nil
	}
	var p drbd.ProtocolPacket
	if p.Decode(payload) != nil {
		return nil
	}
	in.alg, in.size = "", 0
	if p.IntegrityAlg == "" {
		return nil
	}
	d, err := drbd.NewDigest(p.IntegrityAlg)
	switch {
	case err == nil:
		in.alg, in.size = p.IntegrityAlg, d.Size()
	case h.Command == drbd.CmdProtocolUpdate:
		return err
	}
	return nil
}

// receive checks what came as the engine's reader does, and steps it. A packet
// whose length lies beyond what came is the end of the stream.
func (n *node) receive(l *link, p packet) {
	for b := p.bytes; l.up[n.id] && n.w.link == l && n.alive && len(b) > 0; {
		h, err := drbd.DecodeHeader100(b)
		if err == nil {
			err = drbd.CheckLength(h, n.w.cfg.features&drbd.FeatureWSame != 0, p.sock)
		}
		if err != nil {
			n.violated(l, p.sock, err)
			return
		}
		b = b[drbd.HeaderSize100:]
		in := &l.incoming[n.id]
		hasData := h.Command == drbd.CmdData || h.Command == drbd.CmdDataReply || h.Command == drbd.CmdRSDataReply
		if hasData {
			if _, err := drbd.DataSize(h, in.size); err != nil {
				n.violated(l, p.sock, err)
				return
			}
		}
		if int(h.Length) > len(b) {
			n.down(l, drbd.BrokenPipe, errClosed)
			return
		}
		fixed, data := b[:h.Length], []byte(nil)
		b = b[h.Length:]
		if hasData {
			at := drbd.FixedLen(h.Command)
			data = append([]byte(nil), fixed[at+in.size:]...)
			if in.size > 0 && !bytes.Equal(fixed[at:at+in.size], digest(in.alg, data)) {
				n.violated(l, p.sock, &drbd.ProtocolError{Packet: h.Command, Field: "digest", Got: "another", Want: "that of the data"})
				return
			}
			fixed = fixed[:at]
			n.hold(data)
		} else if err := in.observe(h, fixed); err != nil {
			n.violated(l, p.sock, err)
			return
		}
		n.w.trace("%s< %v %v vol %d, %d bytes", n.name, p.sock, h.Command, h.Volume, h.Length)
		n.event = h.Command
		switch h.Command {
		case drbd.CmdStateChgReq, drbd.CmdConnStChgReq, drbd.CmdState:
			l.asked = l.asked || n.id == 0 // it may have a Primary give up its copy, as invalidate-remote does
		}
		n.step(&replication.Event{Kind: replication.Received, Socket: p.sock, Header: h, Fixed: append([]byte(nil), fixed...), Data: data})
		n.event = drbd.NoCommand
		if p.sock == drbd.DataSocket && n.alive && n.res.ReceivePaused() && len(b) > 0 {
			s := &l.streams[1-n.id][p.sock]
			s.q = append([]packet{{p.sock, b}}, s.q...)
			return
		}
	}
}

// violated is the state that the engine names for an error of its reader.
func (n *node) violated(l *link, sock drbd.Socket, err error) {
	var p *drbd.ProtocolError
	switch {
	case !errors.As(err, &p):
		n.down(l, drbd.BrokenPipe, err)
	case sock == drbd.DataSocket:
		n.down(l, drbd.ProtocolFailure, err)
	case p.Field == "command":
		n.down(l, drbd.Disconnecting, err)
	default:
		n.down(l, drbd.NetworkFailure, err)
	}
}

// down tells the core that its connection broke.
func (n *node) down(l *link, reason drbd.ConnState, err error) {
	if !l.up[n.id] || n.w.link != l {
		return
	}
	n.paused = false
	n.w.closed(l, n.id)
	n.step(&replication.Event{Kind: replication.SocketsDown, Reason: reason, Err: err})
}

func (n *node) String() string {
	s := fmt.Sprintf("%s %v", n.name, n.res.Role())
	for _, v := range n.vols {
		s += fmt.Sprintf(" %d: %v", v.num, n.res.VolumeState(v.num))
	}
	return s + " " + n.res.Waiting()
}
