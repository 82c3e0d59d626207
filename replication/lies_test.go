package replication

import (
	"strings"
	"testing"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// A liar is a peer of a Resource with some volumes, played packet by packet. Disks
// answer at once, but for fdatasync while noSync is set.
type liar struct {
	t       *testing.T
	r       *Resource
	now     Tick
	noSync  bool
	syncs   int // not answered
	reports []string
	resumed bool
}

func newLiar(t *testing.T, net NetOptions, volumes int, features uint32) *liar {
	t.Helper()
	l := &liar{t: t, r: New(Config{Name: "r0", Net: net, Seed: 1})}
	for i := range volumes {
		opts := DefaultDiskOptions()
		l.r.AddVolume(uint16(i), opts)
		l.step(Event{Kind: Attached, Volume: uint16(i), Disk: &AttachedDisk{
			Superblock: meta.Superblock{LASize: 8192, UUIDs: meta.UUIDs{Current: 0x1000}, Flags: meta.MDFConsistent | meta.MDFWasUpToDate},
			Bitmap:     meta.NewBitmap(8192), AL: meta.NewActivityLog(67, 1, 8), Usable: 8192, BlockSize: 512, Options: opts,
		}})
	}
	l.step(Event{Kind: Commanded, Command: Command{Kind: CmdConnect}})
	l.step(Event{Kind: SocketsUp, Link: Link{Version: 101, Features: features}})
	l.says(0, drbd.CmdProtocol, l.r.protocolPacket())
	for i := range volumes {
		n := uint16(i)
		l.says(n, drbd.CmdSyncParam89, l.r.syncParam(l.r.vols[i]))
		l.says(n, drbd.CmdSizes, drbd.Sizes{DSize: 8192, CSize: 8192, MaxBioSize: 1 << 20, WSame: features&drbd.FeatureWSame != 0})
		l.says(n, drbd.CmdUUIDs, drbd.UUIDs{Current: 0x1000})
		l.state(n, drbd.Secondary)
	}
	if l.r.conn != drbd.Connected {
		t.Fatalf("not connected: %v", l.r.lastError)
	}
	return l
}

func (l *liar) state(vol uint16, role drbd.Role) {
	s := drbd.State{Role: role, Peer: drbd.Secondary, Conn: drbd.Connected, Disk: drbd.UpToDate, Pdsk: drbd.UpToDate}
	l.says(vol, drbd.CmdState, drbd.StatePacket{Word: s.Word()})
}

func (l *liar) says(vol uint16, cmd drbd.Command, p drbd.Packet) {
	l.t.Helper()
	b := p.Append(nil)
	l.step(Event{Kind: Received, Header: drbd.Header{Command: cmd, Volume: vol, Length: uint32(len(b))}, Fixed: b})
}

func (l *liar) step(ev Event) {
	queue := []Event{ev}
	for len(queue) > 0 {
		ev, queue = queue[0], queue[1:]
		l.now++
		ev.At = l.now
		for _, a := range l.r.Step(&ev) {
			switch a.Kind {
			case WriteMeta:
				queue = append(queue, Event{Kind: MetaDone, Volume: a.Volume})
			case DoPeerLocal:
				queue = append(queue, Event{Kind: PeerLocalDone, Peer: a.Peer})
			case SyncData:
				if l.syncs++; !l.noSync {
					queue = append(queue, l.synced())
				}
			case Report:
				l.reports = append(l.reports, a.Text)
			case ResumeReceive:
				l.resumed = true
			default:
			}
		}
	}
}

func (l *liar) synced() Event {
	l.syncs--
	return Event{Kind: Synced}
}

// A peer that is Primary of one volume and Secondary of the other cannot have two
// Primaries forbidden while both nodes are Primary of the first.
func TestTwoPrimariesAreNotTakenBack(t *testing.T) {
	net := DefaultNetOptions()
	net.AllowTwoPrimaries = true
	l := newLiar(t, net, 2, 0)
	l.r.setRole(drbd.Primary, "test")
	l.state(0, drbd.Primary)
	l.state(1, drbd.Secondary)
	if v := l.r.vols[0]; v.st.Role != drbd.Primary || v.st.Peer != drbd.Primary {
		t.Fatalf("volume 0 is %v", v.st)
	}
	l.says(0, drbd.CmdProtocolUpdate, drbd.ProtocolPacket{Protocol: drbd.ProtocolC})
	const want = "P_PROTOCOL_UPDATE: two_primaries: wanted 1 as long as both nodes are Primary, got 0"
	if !strings.HasSuffix(l.r.lastError, want) {
		t.Errorf("last error %q, want %q", l.r.lastError, want)
	}
}

// While a volume shrinks, answers for blocks behind its new end are refused, and
// what was begun before marks nothing there.
func TestShrunkBitmapIsNotOverrun(t *testing.T) {
	l := newLiar(t, DefaultNetOptions(), 1, 0)
	v := l.r.vols[0]
	v.bitmap.Resize(4096, false)
	l.step(Event{
		Kind: Received, Socket: drbd.MetaSocket, Header: drbd.Header{Command: drbd.CmdOVResult, Length: 24},
		Fixed: drbd.BlockAck{Sector: 8000, BlockID: drbd.OVOutOfSync, Size: 4096}.Append(nil),
	})
	const want = "P_OV_RESULT: sector: wanted a range of 8 sectors that ends at 4096 at most, got 8000"
	if !strings.HasSuffix(l.r.lastError, want) {
		t.Errorf("last error %q, want %q", l.r.lastError, want)
	}
	v.setDirty(8000, 4096)
	if w := v.bitmap.Weight(); w != 0 {
		t.Errorf("%d bits for blocks behind the end", w)
	}
	v.setDirty(4088, 8192)
	if w := v.bitmap.Weight(); w != 1 {
		t.Errorf("%d bits for a range that begins before the end, want 1", w)
	}
}

// Volumes that only the peer has are named once each, and not all 65,536 of them.
func TestUnknownVolumesAreNamedOnce(t *testing.T) {
	l := newLiar(t, DefaultNetOptions(), 1, 0)
	before := len(l.reports)
	for range 3 {
		for vol := range uint16(1000) {
			l.state(vol+1, drbd.Secondary)
		}
	}
	if n := len(l.reports) - before; n != maxUnknownVolumes {
		t.Errorf("%d reports, want %d", n, maxUnknownVolumes)
	}
}

// A peer that closes epoch after epoch while the disk cannot be flushed is not
// read any more at some point, and read on when they are acknowledged.
func TestEpochsWithoutEnd(t *testing.T) {
	l := newLiar(t, DefaultNetOptions(), 1, drbd.FeaturePollux)
	l.state(0, drbd.Primary)
	l.noSync = true
	n := 0
	for ; !l.r.ReceivePaused(); n++ {
		if n > 2*maxRecvEpochs {
			t.Fatalf("%d epochs are kept", l.r.recv.q.len())
		}
		d := drbd.Data{Sector: 8, BlockID: 1, Seq: 1, Flags: drbd.DPSendReceiveAck}
		b := d.Append(nil)
		l.step(Event{Kind: Received, Header: drbd.Header{Command: drbd.CmdData, Length: 24 + 512}, Fixed: b, Data: make([]byte, 512)})
		l.says(0, drbd.CmdBarrier, drbd.Barrier{Barrier: uint32(n)})
	}
	if n < maxRequests {
		t.Errorf("reading stops after %d epochs, which an honest peer may have", n)
	}
	l.noSync = false
	for range 10 {
		if l.syncs > 0 {
			l.step(l.synced())
		}
		l.step(Event{Kind: TimerFired})
	}
	if l.r.ReceivePaused() || !l.resumed {
		t.Errorf("still not read, with %d epochs kept", l.r.recv.q.len())
	}
}
