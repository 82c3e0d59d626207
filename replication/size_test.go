package replication

import (
	"errors"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/protocol/drbd"
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
