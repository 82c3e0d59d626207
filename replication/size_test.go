package replication

import (
	"errors"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

func TestAgreeSize(t *testing.T) {
	first := func(s drbd.State) drbd.State { s.Conn = drbd.WFReportParams; s.Pdsk = dUnknown; return s }
	connected := st(sec, sec, drbd.Connected, upToDate, upToDate)
	handshake := first(connected)
	diskless := st(sec, sec, drbd.Connected, drbd.Diskless, upToDate)
	disklessPrimary := st(pri, sec, drbd.WFReportParams, drbd.Diskless, upToDate)
	for _, tt := range []struct {
		name string
		in   SizeInput
		want drbd.Sector
		err  string
	}{
		{"the smaller disk", SizeInput{MySize: 2000, PeerSize: 1600, State: first(st(sec, unk, 0, inconsistent, dUnknown))}, 1600, ""},
		{"mine is smaller", SizeInput{MySize: 1200, PeerSize: 1600, State: handshake}, 1200, ""},
		{"alone, nothing agreed", SizeInput{MySize: 2000, State: handshake}, 2000, ""},
		{"alone, agreed less", SizeInput{MySize: 2000, Agreed: 1600, State: handshake}, 1600, ""},
		{"alone, my disk shrank", SizeInput{MySize: 1500, Agreed: 1600, State: handshake}, 1500, ""},
		{"diskless peer, agreed less", SizeInput{MySize: 2000, PeerCurrent: 1800, Agreed: 1600, Current: 1600, State: handshake}, 1600, ""},
		{"the agreed size is no limit for two disks", SizeInput{MySize: 2000, PeerSize: 1900, Agreed: 1600, Current: 1600, State: connected}, 1900, ""},
		{"forced: the peer has space", SizeInput{MySize: 2000, Agreed: 1600, Current: 1600, Forced: true, State: handshake}, 2000, ""},
		{"first exchange: the smaller user size", SizeInput{MySize: 2000, PeerSize: 2000, MyUser: 1500, PeerUser: 1000, State: handshake}, 1000, ""},
		{"first exchange: one user size", SizeInput{MySize: 2000, PeerSize: 2000, MyUser: 1500, State: handshake}, 1500, ""},
		{"later: the peer's user size", SizeInput{MySize: 2000, PeerSize: 2000, MyUser: 1000, PeerUser: 1500, Current: 1000, State: connected}, 1500, ""},
		{"later: the peer gave its user size up", SizeInput{MySize: 2000, PeerSize: 2000, MyUser: 1000, Current: 1000, State: connected}, 2000, ""},
		{"a user size that nobody has", SizeInput{MySize: 2000, PeerSize: 1600, MyUser: 1700, State: handshake}, 1600, ""},
		{"the peer is too small", SizeInput{MySize: 2000, PeerSize: 1600, Current: 2000, State: handshake}, 0, "peer's disk is too small: 1600 sectors, but this node exports 2000"},
		{"an Outdated disk does not shrink", SizeInput{MySize: 2000, PeerSize: 1600, Current: 2000, State: first(st(sec, unk, 0, outdated, dUnknown))}, 0, "will not shrink"},
		{"an Inconsistent one does", SizeInput{MySize: 2000, PeerSize: 1600, Current: 2000, State: first(st(sec, unk, 0, inconsistent, dUnknown))}, 1600, ""},
		{"a small disk is attached at the peer", SizeInput{MySize: 2000, PeerSize: 1600, Current: 2000, State: st(pri, sec, drbd.Connected, upToDate, drbd.Diskless)}, 0, "too small"},
		{"online shrink", SizeInput{MySize: 2000, PeerSize: 2000, PeerUser: 1600, Current: 2000, State: connected}, 1600, ""},
		{"more than DRBD can", SizeInput{MySize: 1 << 42, PeerSize: 1 << 42, State: handshake}, 0, "above the limit"},
		{"diskless: what the peer exports", SizeInput{PeerSize: 2000, PeerCurrent: 1600, State: diskless}, 1600, ""},
		{"diskless: the peer's user size", SizeInput{PeerSize: 2000, PeerUser: 1500, State: diskless}, 1500, ""},
		{"diskless: the peer's disk", SizeInput{PeerSize: 2000, State: diskless}, 2000, ""},
		{"both diskless, I know", SizeInput{PeerCurrent: 1000, Current: 1600, State: diskless}, 1600, ""},
		{"both diskless, the peer knows", SizeInput{PeerCurrent: 1000, State: diskless}, 1000, ""},
		{"nobody knows", SizeInput{State: diskless}, 0, ""},
		{"nobody knows any more", SizeInput{Current: 1600, State: disklessPrimary}, 1600, ""},
		{"diskless Primary, smaller", SizeInput{PeerSize: 1500, PeerCurrent: 1500, Current: 1600, State: disklessPrimary}, 0, "demote this node first"},
		{"diskless Primary, larger", SizeInput{PeerSize: 2000, PeerCurrent: 2000, Current: 1600, State: disklessPrimary}, 2000, ""},
		{"diskless Secondary, smaller", SizeInput{PeerSize: 1500, PeerCurrent: 1500, Current: 1600, State: diskless}, 1500, ""},
		{"diskless: absurd", SizeInput{PeerSize: 1500, PeerCurrent: 1 << 60, State: diskless}, 0, "above the limit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := AgreeSize(tt.in)
			if got != tt.want {
				t.Errorf("size %d, want %d", got, tt.want)
			}
			switch {
			case tt.err == "" && err != nil:
				t.Error(err)
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("error %v, want %q", err, tt.err)
			}
			var se *SizeError
			if err != nil && !errors.As(err, &se) {
				t.Errorf("%T", err)
			}
		})
	}
}

// The refusing node of two of different size closes the connection without a
// word: the other one has to find out by itself, and must not forget it.
func TestTooSmallForPeer(t *testing.T) {
	r := New(Config{Name: "r0", Net: DefaultNetOptions(), Seed: 1})
	opts := DefaultDiskOptions()
	r.AddVolume(0, opts)
	now := Tick(1)
	reports := 0
	var step func(ev Event)
	step = func(ev Event) {
		now++
		ev.At = now
		jobs := 0
		for _, a := range r.Step(&ev) {
			switch a.Kind {
			case WriteMeta:
				jobs++
			case Report:
				if strings.Contains(a.Text, "too small") {
					reports++
				}
			default:
			}
		}
		for range jobs {
			step(Event{Kind: MetaDone})
		}
	}
	receive := func(cmd drbd.Command, p drbd.Packet) {
		b := p.Append(nil)
		step(Event{Kind: Received, Header: drbd.Header{Command: cmd, Length: uint32(len(b))}, Fixed: b})
	}
	up := func(peer drbd.Sector) {
		step(Event{Kind: SocketsUp, Link: Link{Version: 101}})
		receive(drbd.CmdProtocol, r.protocolPacket())
		receive(drbd.CmdSyncParam89, r.syncParam(r.vols[0]))
		receive(drbd.CmdSizes, drbd.Sizes{DSize: peer, CSize: peer, MaxBioSize: 1 << 20})
		receive(drbd.CmdUUIDs, drbd.UUIDs{Current: 0x1000})
		receive(drbd.CmdState, drbd.StatePacket{Word: 0xd082})
	}
	const want = "volume 0: this node's disk is too small: 1024 sectors, but the peer exports 2048; enlarge the device here"
	check := func(when, want string) {
		t.Helper()
		if got := r.Snapshot(now).LastError; got != want {
			t.Errorf("%s: last error %q, want %q", when, got, want)
		}
	}

	step(Event{Kind: Attached, Disk: &AttachedDisk{
		Superblock: meta.Superblock{UUIDs: meta.UUIDs{Current: 0x1000}, LASize: 1024, Flags: meta.MDFConsistent | meta.MDFWasUpToDate},
		Bitmap:     meta.NewBitmap(1024), AL: meta.NewActivityLog(67, 1, 8), Usable: 1024, BlockSize: 512, Options: opts,
	}})
	step(Event{Kind: Commanded, Command: Command{Kind: CmdConnect}})
	for range 3 {
		up(2048)
		check("connected", want)
		step(Event{Kind: SocketsDown, Reason: drbd.BrokenPipe, Err: errors.New("closed by the peer")})
		check("closed", want)
	}
	if reports != 1 {
		t.Errorf("reported %d times, want once", reports)
	}
	up(1024)
	check("the peer's disk was made as small", "")
	step(Event{Kind: SocketsDown, Reason: drbd.BrokenPipe, Err: errors.New("closed by the peer")})
	check("closed for another reason", "connection lost (BrokenPipe): closed by the peer")
}
