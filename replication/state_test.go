package replication

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// st builds the state "Role/Peer Conn Disk/Pdsk" with its most common fields.
func st(role, peer drbd.Role, conn drbd.ConnState, disk, pdsk drbd.DiskState) drbd.State {
	return drbd.State{Role: role, Peer: peer, Conn: conn, Disk: disk, Pdsk: pdsk}
}

const (
	unk = drbd.RoleUnknown
	pri = drbd.Primary
	sec = drbd.Secondary

	upToDate     = drbd.UpToDate
	inconsistent = drbd.Inconsistent
	outdated     = drbd.Outdated
	consistent   = drbd.Consistent
	dUnknown     = drbd.DUnknown
)

var normal = st(pri, sec, drbd.Connected, upToDate, upToDate)

func with(s drbd.State, f func(*drbd.State)) drbd.State {
	f(&s)
	return s
}

func TestSanitize(t *testing.T) {
	lost := st(pri, unk, drbd.NetworkFailure, upToDate, dUnknown)
	for _, tt := range []struct {
		name     string
		ctx      StateContext
		old      drbd.State
		in, want drbd.State
	}{
		{
			"1 below Connected: peer and its pause forgotten",
			StateContext{},
			normal,
			with(st(pri, sec, drbd.Timeout, upToDate, upToDate), func(s *drbd.State) { s.PeerISP, s.UserISP = true, true }),
			with(st(pri, unk, drbd.Timeout, upToDate, dUnknown), func(s *drbd.State) { s.UserISP = true }),
		},
		{"1 Diskless peer becomes DUnknown", StateContext{}, normal, st(sec, sec, drbd.Timeout, upToDate, drbd.Diskless), st(sec, unk, drbd.Timeout, upToDate, dUnknown)},
		{"1 Outdated peer is remembered", StateContext{}, normal, st(sec, sec, drbd.TearDown, upToDate, outdated), st(sec, unk, drbd.TearDown, upToDate, outdated)},
		{"1 Inconsistent peer is remembered", StateContext{}, normal, st(sec, sec, drbd.Timeout, upToDate, inconsistent), st(sec, unk, drbd.Timeout, upToDate, inconsistent)},
		{
			"2 unconfigured: no dependency",
			StateContext{},
			normal,
			with(st(sec, unk, drbd.StandAlone, drbd.Diskless, dUnknown), func(s *drbd.State) { s.AftrISP = true }),
			st(sec, unk, drbd.StandAlone, drbd.Diskless, dUnknown),
		},
		{"3 own disk fails in a resync", StateContext{}, normal, st(sec, pri, drbd.SyncTarget, drbd.Failed, upToDate), st(sec, pri, drbd.Connected, drbd.Failed, upToDate)},
		{"3 peer's disk fails in a verify", StateContext{}, normal, st(pri, sec, drbd.VerifyS, upToDate, drbd.Failed), st(pri, sec, drbd.Connected, upToDate, drbd.Failed)},
		{"3 target without source is not UpToDate", StateContext{}, normal, st(sec, pri, drbd.WFBitMapT, outdated, drbd.Diskless), st(sec, pri, drbd.Connected, inconsistent, drbd.Diskless)},
		{"3 Behind without its Primary's disk is not UpToDate", StateContext{}, normal, st(sec, pri, drbd.Behind, outdated, drbd.Failed), st(sec, pri, drbd.Connected, inconsistent, drbd.Failed)},
		{"3 peer Behind is not UpToDate", StateContext{}, normal, st(pri, sec, drbd.Ahead, drbd.Failed, consistent), st(pri, sec, drbd.Connected, drbd.Failed, inconsistent)},
		{"3 source without target", StateContext{}, normal, st(pri, sec, drbd.SyncSource, upToDate, drbd.Diskless), st(pri, sec, drbd.Connected, upToDate, drbd.Diskless)},
		{"4 Negotiating, other data than exposed", StateContext{NegotiatedDisk: upToDate, NegotiatedPdsk: outdated}, normal, st(pri, unk, drbd.Timeout, drbd.Negotiating, upToDate), st(pri, unk, drbd.Timeout, drbd.Diskless, dUnknown)},
		{"4 Negotiating, the exposed data", StateContext{ExposedUUIDMatches: true, NegotiatedDisk: consistent, NegotiatedPdsk: outdated}, normal, st(pri, unk, drbd.Timeout, drbd.Negotiating, upToDate), st(pri, unk, drbd.Timeout, consistent, outdated)},
		{"5 Consistent vanishes", StateContext{}, lost, st(pri, sec, drbd.Connected, consistent, outdated), normal},
		{"5 not while Behind", StateContext{}, lost, st(sec, pri, drbd.Behind, outdated, upToDate), st(sec, pri, drbd.Behind, outdated, upToDate)},
		{"6 WFBitMapT", StateContext{}, normal, st(sec, sec, drbd.WFBitMapT, upToDate, inconsistent), st(sec, sec, drbd.WFBitMapT, outdated, upToDate)},
		{"6 WFSyncUUID", StateContext{}, normal, st(sec, sec, drbd.WFSyncUUID, upToDate, upToDate), st(sec, sec, drbd.WFSyncUUID, outdated, upToDate)},
		{"6 StartingSyncT", StateContext{}, normal, st(sec, sec, drbd.StartingSyncT, upToDate, upToDate), st(sec, sec, drbd.StartingSyncT, outdated, upToDate)},
		{"6 Behind", StateContext{}, normal, st(sec, pri, drbd.Behind, upToDate, upToDate), st(sec, pri, drbd.Behind, outdated, upToDate)},
		{"3 a disk is Inconsistent in a verify", StateContext{}, normal, st(sec, sec, drbd.VerifyT, inconsistent, upToDate), st(sec, sec, drbd.Connected, inconsistent, upToDate)},
		{"6 WFBitMapS", StateContext{}, normal, st(pri, sec, drbd.WFBitMapS, outdated, upToDate), st(pri, sec, drbd.WFBitMapS, upToDate, consistent)},
		{"6 StartingSyncS", StateContext{}, normal, st(pri, sec, drbd.StartingSyncS, upToDate, upToDate), st(pri, sec, drbd.StartingSyncS, upToDate, consistent)},
		{"6 Ahead", StateContext{}, normal, st(pri, sec, drbd.Ahead, upToDate, upToDate), st(pri, sec, drbd.Ahead, upToDate, consistent)},
		{"6 SyncTarget", StateContext{}, normal, st(sec, pri, drbd.SyncTarget, outdated, upToDate), st(sec, pri, drbd.SyncTarget, inconsistent, upToDate)},
		{"6 SyncSource", StateContext{}, normal, st(pri, sec, drbd.SyncSource, upToDate, consistent), st(pri, sec, drbd.SyncSource, upToDate, inconsistent)},
		{"6 Connected leaves Negotiating", StateContext{}, normal, st(pri, sec, drbd.Connected, drbd.Negotiating, upToDate), st(pri, sec, drbd.Connected, drbd.Negotiating, upToDate)},
		{
			"7 stonith: Primary lost its peer",
			StateContext{Fencing: FencingResourceAndStonith},
			normal, lost,
			with(lost, func(s *drbd.State) { s.SuspFen = true }),
		},
		{"7 not again", StateContext{Fencing: FencingResourceAndStonith}, lost, lost, lost},
		{"7 not with resource-only", StateContext{Fencing: FencingResourceOnly}, normal, lost, lost},
		{
			"8 no data: suspend",
			StateContext{OnNoDataSuspend: true},
			normal, st(pri, sec, drbd.Connected, drbd.Failed, drbd.Diskless),
			with(st(pri, sec, drbd.Connected, drbd.Failed, drbd.Diskless), func(s *drbd.State) { s.SuspNod = true }),
		},
		{"8 io-error: go on", StateContext{}, normal, st(pri, sec, drbd.Connected, drbd.Failed, drbd.Diskless), st(pri, sec, drbd.Connected, drbd.Failed, drbd.Diskless)},
		{
			"9 pause the source",
			StateContext{},
			normal, with(st(pri, sec, drbd.SyncSource, upToDate, inconsistent), func(s *drbd.State) { s.PeerISP = true }),
			with(st(pri, sec, drbd.PausedSyncS, upToDate, inconsistent), func(s *drbd.State) { s.PeerISP = true }),
		},
		{
			"9 pause the target",
			StateContext{},
			normal, with(st(sec, pri, drbd.SyncTarget, inconsistent, upToDate), func(s *drbd.State) { s.UserISP = true }),
			with(st(sec, pri, drbd.PausedSyncT, inconsistent, upToDate), func(s *drbd.State) { s.UserISP = true }),
		},
		{"9 resume the source", StateContext{}, normal, st(pri, sec, drbd.PausedSyncS, upToDate, inconsistent), st(pri, sec, drbd.SyncSource, upToDate, inconsistent)},
		{"9 resume the target", StateContext{}, normal, st(sec, pri, drbd.PausedSyncT, outdated, upToDate), st(sec, pri, drbd.SyncTarget, inconsistent, upToDate)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Sanitize(tt.ctx, tt.old, tt.in); got != tt.want {
				t.Errorf("Sanitize(%v)\n got %v %+v\nwant %v %+v", tt.in, got, got, tt.want, tt.want)
			}
		})
	}
}

func drawState(t *rapid.T, name string) drbd.State {
	s := drbd.StateOf(rapid.Uint32Range(0, 1<<23-1).Draw(t, name))
	s.Role %= 3
	s.Peer %= 3
	s.Conn %= drbd.Behind + 1
	s.Disk %= upToDate + 1
	s.Pdsk %= upToDate + 1
	return s
}

func TestSanitizeProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx := StateContext{
			Fencing:            Fencing(rapid.IntRange(0, 2).Draw(t, "fencing")),
			OnNoDataSuspend:    rapid.Bool().Draw(t, "onNoData"),
			ExposedUUIDMatches: rapid.Bool().Draw(t, "exposed"),
			NegotiatedDisk:     rapid.SampledFrom([]drbd.DiskState{inconsistent, outdated, consistent, upToDate}).Draw(t, "ndisk"),
			NegotiatedPdsk:     rapid.SampledFrom([]drbd.DiskState{outdated, dUnknown}).Draw(t, "npdsk"),
		}
		old, s := drawState(t, "old"), drawState(t, "new")
		once := Sanitize(ctx, old, s)
		if twice := Sanitize(ctx, old, once); twice != once {
			t.Errorf("not idempotent:\nonce  %+v\ntwice %+v", once, twice)
		}
		if !once.Valid() || once.Role != s.Role {
			t.Errorf("Sanitize(%v) = %v", s, once)
		}
		r := diskRangeOf(once.Conn)
		if once.Disk < r.diskMin || once.Disk > r.diskMax || once.Pdsk < r.pdskMin || once.Pdsk > r.pdskMax {
			t.Errorf("%v: a disk is out of the range of its connection state", once)
		}
		if s.Conn > drbd.Connected && s.Disk <= outdated && s.Disk > drbd.Failed && s.Pdsk <= drbd.Failed &&
			diskRangeOf(s.Conn).diskMax <= outdated && once.Disk == upToDate {
			t.Errorf("%v: old data became UpToDate: %v", s, once)
		}
	})
}

func TestValidTransition(t *testing.T) {
	conn := func(c drbd.ConnState) drbd.State { return st(sec, unk, c, upToDate, dUnknown) }
	for _, tt := range []struct {
		name     string
		old, new drbd.State
		want     StateCode
	}{
		{"disconnect a StandAlone", conn(drbd.StandAlone), conn(drbd.Disconnecting), SSAlreadyStandAlone},
		{"StandAlone to WFConnection", conn(drbd.StandAlone), conn(drbd.WFConnection), SSNeedConnection},
		{"StandAlone to Unconnected", conn(drbd.StandAlone), conn(drbd.Unconnected), SSSuccess},
		{"WFConnection to Connected", conn(drbd.WFConnection), conn(drbd.Connected), SSNeedConnection},
		{"Unconnected to StartingSyncS", conn(drbd.Unconnected), conn(drbd.StartingSyncS), SSNeedConnection},
		{"WFReportParams to Connected", conn(drbd.WFReportParams), conn(drbd.Connected), SSSuccess},
		{"Timeout to WFConnection", conn(drbd.Timeout), conn(drbd.WFConnection), SSInTransientState},
		{"TearDown to BrokenPipe", conn(drbd.TearDown), conn(drbd.BrokenPipe), SSInTransientState},
		{"BrokenPipe to Unconnected", conn(drbd.BrokenPipe), conn(drbd.Unconnected), SSSuccess},
		{"ProtocolError to Disconnecting", conn(drbd.ProtocolFailure), conn(drbd.Disconnecting), SSSuccess},
		{"Disconnecting to Unconnected", conn(drbd.Disconnecting), conn(drbd.Unconnected), SSInTransientState},
		{"Disconnecting to StandAlone", conn(drbd.Disconnecting), conn(drbd.StandAlone), SSSuccess},
		{"Diskless fails", st(sec, sec, drbd.Connected, drbd.Diskless, upToDate), st(sec, sec, drbd.Connected, drbd.Failed, upToDate), SSIsDiskless},
		{"UpToDate fails", normal, with(normal, func(s *drbd.State) { s.Disk = drbd.Failed }), SSSuccess},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := ValidTransition(tt.old, tt.new); got != tt.want {
				t.Errorf("%v -> %v: %v, want %v", tt.old, tt.new, got, tt.want)
			}
		})
	}
}

func TestValidState(t *testing.T) {
	for _, tt := range []struct {
		name string
		ctx  StateContext
		s    drbd.State
		want StateCode
	}{
		{"normal", StateContext{}, normal, SSSuccess},
		{"two Primaries", StateContext{}, st(pri, pri, drbd.Connected, upToDate, upToDate), SSTwoPrimaries},
		{"two Primaries allowed", StateContext{AllowTwoPrimaries: true, OtherVolumePeerPrimary: true}, st(pri, pri, drbd.Connected, upToDate, upToDate), SSSuccess},
		{"peer Primary on another volume", StateContext{OtherVolumePeerPrimary: true}, normal, SSOVolPeerPri},
		{"Secondary, open", StateContext{DeviceOpen: true}, st(sec, sec, drbd.Connected, upToDate, upToDate), SSDeviceInUse},
		{"Primary alone, Outdated", StateContext{}, st(pri, unk, drbd.StandAlone, outdated, dUnknown), SSNoUpToDateDisk},
		{"Primary alone, Consistent", StateContext{}, st(pri, unk, drbd.WFConnection, consistent, upToDate), SSNoUpToDateDisk},
		{"Primary alone, peer not outdated", StateContext{Fencing: FencingResourceOnly}, st(pri, unk, drbd.WFConnection, upToDate, dUnknown), SSPrimaryNOP},
		{"the same, stonith", StateContext{Fencing: FencingResourceAndStonith}, st(pri, unk, drbd.WFConnection, upToDate, dUnknown), SSPrimaryNOP},
		{"Primary alone, peer outdated", StateContext{Fencing: FencingResourceAndStonith}, st(pri, unk, drbd.WFConnection, upToDate, outdated), SSSuccess},
		{"Primary alone, no fencing", StateContext{}, st(pri, unk, drbd.WFConnection, upToDate, dUnknown), SSSuccess},
		{"Primary, both Inconsistent", StateContext{}, st(pri, sec, drbd.Connected, inconsistent, inconsistent), SSNoUpToDateDisk},
		{"sync without own disk", StateContext{}, st(sec, sec, drbd.SyncTarget, drbd.Diskless, upToDate), SSNoLocalDisk},
		{"sync without peer's disk", StateContext{}, st(sec, sec, drbd.SyncSource, upToDate, drbd.Diskless), SSNoRemoteDisk},
		{"sync without good data", StateContext{}, st(sec, sec, drbd.WFBitMapS, outdated, inconsistent), SSNoUpToDateDisk},
		{"Outdated while Connected", StateContext{}, st(sec, sec, drbd.Connected, outdated, upToDate), SSConnectedOutdates},
		{"Outdated while WFBitMapS", StateContext{}, st(sec, sec, drbd.WFBitMapS, outdated, upToDate), SSConnectedOutdates},
		{"Outdated while SyncSource", StateContext{}, st(sec, sec, drbd.SyncSource, outdated, upToDate), SSConnectedOutdates},
		{"Outdated while PausedSyncS", StateContext{}, st(sec, sec, drbd.PausedSyncS, outdated, upToDate), SSConnectedOutdates},
		{"Outdated while WFBitMapT", StateContext{}, st(sec, sec, drbd.WFBitMapT, outdated, upToDate), SSSuccess},
		{"verify without algorithm", StateContext{Version: 101}, st(sec, sec, drbd.VerifyS, upToDate, upToDate), SSNoVerifyAlg},
		{"verify, version 87", StateContext{Version: 87, HasVerifyAlg: true}, st(sec, sec, drbd.VerifyT, upToDate, upToDate), SSNotSupported},
		{"verify", StateContext{Version: 88, HasVerifyAlg: true}, st(sec, sec, drbd.VerifyT, upToDate, upToDate), SSSuccess},
		{"Primary, no UpToDate copy", StateContext{}, st(pri, sec, drbd.Connected, inconsistent, consistent), SSNoUpToDateDisk},
		{"starting a sync with an unknown peer", StateContext{}, st(sec, sec, drbd.StartingSyncS, upToDate, dUnknown), SSNeedConnection},
		{"Connected to an unknown disk", StateContext{}, st(sec, sec, drbd.Connected, upToDate, dUnknown), SSConnectedOutdates},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := ValidState(tt.ctx, tt.s); got != tt.want {
				t.Errorf("%v: %v, want %v", tt.s, got, tt.want)
			}
		})
	}
}

func TestValidSoft(t *testing.T) {
	conn := func(c drbd.ConnState) drbd.State { return st(sec, sec, c, upToDate, upToDate) }
	disk := func(c drbd.ConnState, d drbd.DiskState) drbd.State { return st(sec, sec, c, d, upToDate) }
	sent := StateContext{StateSent: true}
	for _, tt := range []struct {
		name     string
		ctx      StateContext
		old, new drbd.State
		want     StateCode
	}{
		{"StartingSyncS in a resync", StateContext{}, conn(drbd.SyncSource), conn(drbd.StartingSyncS), SSResyncRunning},
		{"StartingSyncT in a verify", StateContext{}, conn(drbd.VerifyS), conn(drbd.StartingSyncT), SSResyncRunning},
		{"StartingSyncT", StateContext{}, conn(drbd.Connected), conn(drbd.StartingSyncT), SSSuccess},
		{"disconnect a StandAlone", StateContext{}, conn(drbd.StandAlone), conn(drbd.Disconnecting), SSAlreadyStandAlone},
		{"a disk from nowhere", StateContext{}, disk(drbd.Connected, drbd.Diskless), disk(drbd.Connected, outdated), SSLowerThanOutdated}, // the later rule
		{"a better disk from nowhere", StateContext{}, disk(drbd.Connected, drbd.Diskless), disk(drbd.Connected, upToDate), SSIsDiskless},
		{"attach", StateContext{}, disk(drbd.Connected, drbd.Diskless), disk(drbd.Connected, drbd.Attaching), SSSuccess},
		{"wait without network", StateContext{}, conn(drbd.StandAlone), conn(drbd.WFConnection), SSNoNetConfig},
		{"outdate an Inconsistent disk", StateContext{}, disk(drbd.WFConnection, inconsistent), disk(drbd.WFConnection, outdated), SSLowerThanOutdated},
		{"attach an Outdated disk", StateContext{}, disk(drbd.WFConnection, drbd.Attaching), disk(drbd.WFConnection, outdated), SSSuccess},
		{"outdate", StateContext{}, disk(drbd.WFConnection, upToDate), disk(drbd.WFConnection, outdated), SSSuccess},
		{"disconnect in between", StateContext{}, conn(drbd.Unconnected), conn(drbd.Disconnecting), SSInTransientState},
		{"promotion in the handshake", sent, st(sec, unk, drbd.WFReportParams, upToDate, dUnknown), st(pri, unk, drbd.WFReportParams, upToDate, dUnknown), SSInTransientState},
		{"handshake begins", sent, conn(drbd.WFConnection), conn(drbd.WFReportParams), SSSuccess},
		{"handshake ends", sent, conn(drbd.WFReportParams), conn(drbd.WFBitMapS), SSSuccess},
		{"after the handshake", StateContext{StateSent: true, HandshakeDone: true}, st(sec, sec, drbd.Connected, upToDate, upToDate), normal, SSSuccess},
		{"promotion before the resync", StateContext{}, st(sec, sec, drbd.WFBitMapT, outdated, upToDate), st(pri, sec, drbd.WFBitMapT, outdated, upToDate), SSInTransientState},
		{"promotion with a change", StateContext{}, st(sec, sec, drbd.PausedSyncT, inconsistent, upToDate), st(pri, sec, drbd.SyncTarget, inconsistent, upToDate), SSInTransientState},
		{"promotion of a SyncTarget", StateContext{}, st(sec, sec, drbd.SyncTarget, inconsistent, upToDate), st(pri, sec, drbd.SyncTarget, inconsistent, upToDate), SSSuccess},
		{"promotion of a diskless node", StateContext{}, st(sec, sec, drbd.Connected, drbd.Diskless, upToDate), st(pri, sec, drbd.Connected, drbd.Diskless, upToDate), SSSuccess},
		{"verify, unconnected", StateContext{}, conn(drbd.WFConnection), conn(drbd.VerifyS), SSNeedConnection},
		{"verify in a resync", StateContext{}, conn(drbd.SyncSource), conn(drbd.VerifyS), SSResyncRunning},
		{"verify goes on", StateContext{}, conn(drbd.VerifyS), with(conn(drbd.VerifyS), func(s *drbd.State) { s.UserISP = true }), SSSuccess},
		{"resync, unconnected", StateContext{}, conn(drbd.WFConnection), conn(drbd.StartingSyncT), SSNeedConnection},
		{"SyncSource, unconnected", StateContext{}, conn(drbd.WFConnection), conn(drbd.SyncSource), SSNeedConnection},
		{
			"outdate the absent peer and go",
			StateContext{},
			st(pri, unk, drbd.WFConnection, upToDate, dUnknown),
			st(pri, unk, drbd.Disconnecting, upToDate, outdated), SSOutdateWOConn,
		},
		{
			"outdate the peer and go",
			StateContext{},
			normal,
			st(pri, sec, drbd.Disconnecting, upToDate, outdated), SSSuccess,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := ValidSoft(tt.ctx, tt.old, tt.new); got != tt.want {
				t.Errorf("%v -> %v: %v, want %v", tt.old, tt.new, got, tt.want)
			}
		})
	}
}

func TestCheckState(t *testing.T) {
	both := st(pri, pri, drbd.Connected, upToDate, upToDate)
	secondary := st(sec, sec, drbd.Connected, upToDate, upToDate)
	alone := st(pri, unk, drbd.NetworkFailure, upToDate, dUnknown)
	fencing := StateContext{Fencing: FencingResourceOnly}
	for _, tt := range []struct {
		name              string
		ctx               StateContext
		old, new          drbd.State
		hard, clusterWide bool
		want              StateCode
	}{
		{"nothing", StateContext{}, normal, normal, false, false, SSNothingToDo},
		{"promote", StateContext{}, secondary, normal, false, true, SSSuccess},
		{"second Primary", StateContext{}, st(sec, pri, drbd.Connected, upToDate, upToDate), both, false, true, SSTwoPrimaries},
		{"hard changes are facts", fencing, normal, alone, true, false, SSSuccess},
		{"soft ones are not", fencing, normal, alone, false, false, SSPrimaryNOP},
		{"a hard impossibility", StateContext{}, alone, st(pri, unk, drbd.WFConnection, upToDate, dUnknown), true, false, SSInTransientState},
		{"an old violation is tolerated", fencing, alone, with(alone, func(s *drbd.State) { s.Conn = drbd.Unconnected }), false, false, SSSuccess},
		{"not in a cluster-wide request", StateContext{}, both, with(both, func(s *drbd.State) { s.Disk = drbd.Failed }), false, true, SSTwoPrimaries},
		{"the soft rules still count", fencing, with(alone, func(s *drbd.State) { s.Conn = drbd.Unconnected }), st(pri, unk, drbd.Disconnecting, upToDate, dUnknown), false, false, SSInTransientState},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := CheckState(tt.ctx, tt.old, tt.new, tt.hard, tt.clusterWide); got != tt.want {
				t.Errorf("%v -> %v: %v, want %v", tt.old, tt.new, got, tt.want)
			}
		})
	}
}

func TestNeedsClusterWide(t *testing.T) {
	secondary := st(sec, sec, drbd.Connected, upToDate, upToDate)
	conn := func(c drbd.ConnState) drbd.State { return st(sec, sec, c, upToDate, upToDate) }
	for _, tt := range []struct {
		name     string
		old, new drbd.State
		want     bool
	}{
		{"promote", secondary, normal, true},
		{"promote alone", conn(drbd.WFConnection), st(pri, unk, drbd.WFConnection, upToDate, dUnknown), false},
		{"demote", normal, secondary, false},
		{"invalidate", secondary, conn(drbd.StartingSyncT), true},
		{"invalidate-remote", secondary, conn(drbd.StartingSyncS), true},
		{"detach", secondary, st(sec, sec, drbd.Connected, drbd.Failed, upToDate), true},
		{"detach is under way", st(sec, sec, drbd.Connected, drbd.Failed, upToDate), st(sec, sec, drbd.Connected, drbd.Diskless, upToDate), false},
		{"disconnect", conn(drbd.SyncSource), conn(drbd.Disconnecting), true},
		{"disconnect, unconnected", conn(drbd.WFConnection), conn(drbd.Disconnecting), false},
		{"verify", secondary, conn(drbd.VerifyS), true},
		{"verify in a resync", conn(drbd.SyncSource), conn(drbd.VerifyS), false},
		{"renegotiate", secondary, conn(drbd.WFReportParams), true},
		{"link lost", secondary, conn(drbd.Timeout), false},
		{"pause", secondary, with(secondary, func(s *drbd.State) { s.UserISP = true }), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := NeedsClusterWide(tt.old, tt.new); got != tt.want {
				t.Errorf("%v -> %v: %v", tt.old, tt.new, got)
			}
		})
	}
}

// TestConvertState: the requests are those of captured kernels.
func TestConvertState(t *testing.T) {
	for _, tt := range []struct {
		name     string
		in, want uint32
	}{
		{"promote, mask", 0x00000003, 0x0000000c},
		{"promote, value", 0x00000001, 0x00000004},
		{"forced promotion, mask", 0x00001e03, 0x0001e00c},
		{"forced promotion, value", 0x00001001, 0x00010004},
		{"detach, mask", 0x00001e00, 0x0001e000},
		{"detach, value", 0x00000400, 0x00004000},
		{"connection mask", 0x000001f0, 0x000001f0},
		{"Disconnecting becomes TearDown", 0x00000010, 0x00000070},
		{"VerifyS becomes VerifyT", 0x00000120, 0x00000130},
		{"StartingSyncT becomes StartingSyncS", 0x000000c0, 0x000000b0},
		{"StartingSyncS becomes StartingSyncT", 0x000000b0, 0x000000c0},
		{"WFReportParams", 0x00000090, 0x00000090},
		{"Connected", 0x000000a0, 0x000000a0},
		{"SyncSource is nobody's request", 0x00000100, 0},
		{"disconnect and outdate you, mask", 0x0001e1f0, 0x00001ff0},
		{"disconnect and outdate you, value", 0x0000a010, 0x00000a70},
		{"disconnect and outdate me, mask", 0x00001ff0, 0x0001e1f0},
		{"disconnect and outdate me, value", 0x00000a10, 0x0000a070},
		{"user_isp becomes peer_isp", 1 << 20, 1<<20 | 1<<19},
		{"aftr_isp becomes peer_isp", 1 << 18, 1<<18 | 1<<19},
		{"peer_isp is the other side's", 1 << 19, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := ConvertState(tt.in); got != tt.want {
				t.Errorf("ConvertState(%08x) = %08x, want %08x", tt.in, got, tt.want)
			}
		})
	}
}

func TestLostContact(t *testing.T) {
	good := []drbd.DiskState{inconsistent, consistent, upToDate}
	gone := []drbd.DiskState{drbd.Diskless, drbd.Failed, drbd.Negotiating, drbd.Attaching, dUnknown, outdated}
	for o := drbd.Diskless; o <= upToDate; o++ {
		for n := drbd.Diskless; n <= upToDate; n++ {
			want := in(o, good) && in(n, gone) || o == dUnknown && in(n, []drbd.DiskState{drbd.Diskless, drbd.Failed, outdated})
			old := st(pri, sec, drbd.Connected, upToDate, o)
			if got := LostContact(old, with(old, func(s *drbd.State) { s.Pdsk = n })); got != want {
				t.Errorf("pdsk %v -> %v: %v", o, n, got)
			}
		}
	}
	down := func(s *drbd.State) { s.Pdsk = drbd.Diskless }
	for _, tt := range []struct {
		name string
		old  drbd.State
		want bool
	}{
		{"peer writes", st(sec, pri, drbd.Connected, upToDate, upToDate), true},
		{"nobody writes", st(sec, sec, drbd.Connected, upToDate, upToDate), false},
		{"our copy is not current", st(pri, sec, drbd.SyncTarget, inconsistent, upToDate), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := LostContact(tt.old, with(tt.old, down)); got != tt.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func in(d drbd.DiskState, list []drbd.DiskState) bool {
	for _, l := range list {
		if l == d {
			return true
		}
	}
	return false
}

func TestStateError(t *testing.T) {
	var err error = &StateError{Resource: "r0", Volume: 0, Code: SSNoUpToDateDisk}
	if got, want := err.Error(), "r0: State change failed: (-2) Need access to UpToDate data"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	var se *StateError
	if !errors.As(err, &se) || se.Code.String() != "SS_NO_UP_TO_DATE_DISK" {
		t.Errorf("code %v", se)
	}
	for c := StateCode(-21); c <= 4; c++ {
		if named := !strings.Contains(c.Text(), "unknown state change code"); named == (c == -3) {
			t.Errorf("code %d: %s, %s", c, c, c.Text())
		}
	}
}
