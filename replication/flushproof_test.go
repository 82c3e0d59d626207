package replication

import (
	"testing"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// kernelPeer drives a Resource by hand as drbd.ko would: disks answer at once,
// packets are collected in sent, answers to clients in done.
type kernelPeer struct {
	t    *testing.T
	r    *Resource
	now  Tick
	sent []drbd.Header
	body [][]byte
	done map[any]error
}

const kernelPeerSectors = 8192

// newKernelPeer returns a Primary that is connected to an UpToDate Secondary
// without our feature bit.
func newKernelPeer(t *testing.T) *kernelPeer {
	t.Helper()
	k := &kernelPeer{t: t, r: New(Config{Name: "r0", Net: DefaultNetOptions(), Seed: 1}), now: 1, done: map[any]error{}}
	opts := DefaultDiskOptions()
	k.r.AddVolume(0, opts)
	sb := meta.Superblock{
		LASize: kernelPeerSectors, UUIDs: meta.UUIDs{Current: 0x1000}, Flags: meta.MDFConsistent | meta.MDFWasUpToDate,
	}
	k.step(&Event{Kind: Attached, Tag: "attach", Disk: &AttachedDisk{
		Superblock: sb, Bitmap: meta.NewBitmap(kernelPeerSectors), AL: meta.NewActivityLog(67, 1, 8),
		Usable: kernelPeerSectors, BlockSize: 512, Options: opts,
	}})
	k.command(CmdConnect)
	k.step(&Event{Kind: SocketsUp, Link: Link{Version: 101, Features: drbd.FeatureTrim | drbd.FeatureWSame | drbd.FeatureWZeroes}})
	k.receive(drbd.DataSocket, drbd.CmdProtocol, k.r.protocolPacket())
	k.receive(drbd.DataSocket, drbd.CmdSyncParam89, k.r.syncParam(k.r.vols[0]))
	k.receive(drbd.DataSocket, drbd.CmdSizes, drbd.Sizes{DSize: kernelPeerSectors, CSize: kernelPeerSectors, MaxBioSize: 1 << 20, WSame: true})
	k.receive(drbd.DataSocket, drbd.CmdUUIDs, drbd.UUIDs{Current: 0x1000})
	k.receive(drbd.DataSocket, drbd.CmdState, drbd.StatePacket{Word: 0xd082})
	k.command(CmdPrimary)
	k.receive(drbd.MetaSocket, drbd.CmdPingAck, nil)
	k.receive(drbd.MetaSocket, drbd.CmdStateChgReply, drbd.ReqStateReply{Code: int32(SSSuccess)})
	if err, ok := k.done[CmdPrimary]; !ok || err != nil {
		t.Fatalf("not Primary: %v", err)
	}
	k.sent, k.body = nil, nil
	return k
}

func (k *kernelPeer) command(c CommandKind) {
	k.step(&Event{Kind: Commanded, Command: Command{Kind: c, Tag: c}})
}

func (k *kernelPeer) receive(s drbd.Socket, cmd drbd.Command, p drbd.Packet) {
	var body []byte
	if p != nil {
		body = p.Append(nil)
	}
	k.step(&Event{Kind: Received, Socket: s, Header: drbd.Header{Command: cmd, Length: uint32(len(body))}, Fixed: body})
}

// step runs ev and whatever the disks answer to it.
func (k *kernelPeer) step(ev *Event) {
	k.t.Helper()
	queue := []*Event{ev}
	for len(queue) > 0 {
		ev, queue = queue[0], queue[1:]
		k.now++
		ev.At = k.now
		for _, a := range k.r.Step(ev) {
			switch a.Kind {
			case Send:
				h, err := drbd.DecodeHeader100(a.Bytes)
				if err != nil {
					k.t.Fatal(err)
				}
				k.sent = append(k.sent, h)
				k.body = append(k.body, append([]byte(nil), a.Bytes[drbd.HeaderSize100:]...))
			case DoLocal:
				queue = append(queue, &Event{Kind: LocalDone, ID: a.ID})
			case WriteMeta:
				queue = append(queue, &Event{Kind: MetaDone})
			case SyncData:
				queue = append(queue, &Event{Kind: Synced})
			case Complete, CommandDone:
				k.done[a.Tag] = a.Err
			case Disconnect:
				k.t.Fatalf("connection dropped: %v: %v", a.Reason, a.Err)
			default: // timers, handlers and the like: not here
			}
		}
	}
}

// write runs one write up to its answer and the peer's P_WRITE_ACK.
func (k *kernelPeer) write(tag string) {
	k.t.Helper()
	k.step(&Event{Kind: Submitted, Op: OpWrite, Size: 4096, Data: make([]byte, 4096), Tag: tag})
	var d drbd.Data
	k.last(drbd.CmdData, &d)
	k.receive(drbd.MetaSocket, drbd.CmdWriteAck, drbd.BlockAck{Sector: d.Sector, BlockID: d.BlockID, Size: 4096, Seq: 1})
	k.answered(tag, true)
}

func (k *kernelPeer) flush(tag string) { k.step(&Event{Kind: Submitted, Op: OpFlush, Tag: tag}) }

// last decodes the last packet sent, which must be a cmd.
func (k *kernelPeer) last(cmd drbd.Command, p interface{ Decode([]byte) error }) {
	k.t.Helper()
	n := len(k.sent) - 1
	if n < 0 || k.sent[n].Command != cmd {
		k.t.Fatalf("sent %v, want a %v last", k.sent, cmd)
	}
	if err := p.Decode(k.body[n]); err != nil {
		k.t.Fatal(err)
	}
}

func (k *kernelPeer) count(cmd drbd.Command) (n int) {
	for _, h := range k.sent {
		if h.Command == cmd {
			n++
		}
	}
	return n
}

func (k *kernelPeer) answered(tag string, want bool) {
	k.t.Helper()
	err, ok := k.done[tag]
	if ok != want || err != nil {
		k.t.Fatalf("%s: answered %v (error %v), want %v", tag, ok, err, want)
	}
}

func (k *kernelPeer) barrierAck(epoch, size uint32) {
	k.receive(drbd.MetaSocket, drbd.CmdBarrierAck, drbd.BarrierAck{Barrier: epoch, SetSize: size})
}

func (k *kernelPeer) reply(q drbd.BlockRequest) {
	k.step(&Event{
		Kind: Received, Socket: drbd.DataSocket, Header: drbd.Header{Command: drbd.CmdDataReply, Length: 24 + q.Size},
		Fixed: drbd.Data{Sector: q.Sector, BlockID: q.BlockID}.Append(nil), Data: make([]byte, q.Size),
	})
}

// TestFlushProof: a kernel peer acknowledges an epoch before it flushes. Only
// the answer to a read behind the P_BARRIER ends a FLUSH.
func TestFlushProof(t *testing.T) {
	k := newKernelPeer(t)
	k.flush("nothing written")
	k.answered("nothing written", true)
	if len(k.sent) != 0 {
		t.Fatalf("a FLUSH with nothing written sent %v", k.sent)
	}

	k.write("w1")
	k.flush("f1")
	var b drbd.Barrier
	var q1, q2 drbd.BlockRequest
	k.last(drbd.CmdDataRequest, &q1)
	if q1.Size != proofBytes || k.count(drbd.CmdBarrier) != 1 {
		t.Fatalf("sent %v with a read of %d bytes, want a P_BARRIER and a P_DATA_REQUEST of %d bytes", k.sent, q1.Size, proofBytes)
	}
	if err := b.Decode(k.body[len(k.body)-2]); err != nil {
		t.Fatal(err)
	}
	k.barrierAck(b.Barrier, 1)
	k.answered("f1", false)

	// The epoch is acknowledged and not proven: another FLUSH must wait, too,
	// and must not close an empty epoch.
	k.flush("f2")
	k.answered("f2", false)
	k.last(drbd.CmdDataRequest, &q2)
	if q1.BlockID == q2.BlockID || k.count(drbd.CmdBarrier) != 1 {
		t.Fatalf("sent %v: want a second proof without a P_BARRIER", k.sent)
	}
	k.reply(q1)
	k.answered("f1", true)
	k.answered("f2", false)
	k.reply(q2)
	k.answered("f2", true)

	k.sent, k.body = nil, nil
	k.flush("proven")
	k.answered("proven", true)
	if len(k.sent) != 0 {
		t.Fatalf("a FLUSH after a proven one sent %v", k.sent)
	}
}

// TestFlushProofOfLaterWrite: a proof covers what was sent before its barrier only.
func TestFlushProofOfLaterWrite(t *testing.T) {
	k := newKernelPeer(t)
	var q drbd.BlockRequest
	k.write("w1")
	k.flush("f1")
	k.last(drbd.CmdDataRequest, &q)
	k.write("w2")
	k.barrierAck(0, 1)
	k.reply(q)
	k.answered("f1", true)
	k.flush("f2")
	k.answered("f2", false)
	k.last(drbd.CmdDataRequest, &q)
	if k.count(drbd.CmdBarrier) != 2 {
		t.Fatalf("sent %v, want a second P_BARRIER", k.sent)
	}
	k.barrierAck(1, 1)
	k.reply(q)
	k.answered("f2", true)
}
