package engine

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/protocol/drbd/wiretest"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// TestReplayVersions greets an engine as v01-versions greets a kernel: with
// offers from 86..101 down to 85, and with fewer features. From version 100 on it
// must answer what the kernel answers. Below, where the kernel goes down to 86,
// we give up, since we speak 100 and 101 only: StandAlone, with both offers in
// the reason, and not a packet more.
func TestReplayVersions(t *testing.T) {
	for _, part := range offers(wiretest.Load(t, "v01-versions")) {
		t.Run(part.name, func(t *testing.T) {
			t.Parallel()
			r := prepareReplay(t, "v01-versions", "A", part.events)
			n := &r.cfg.Net
			n.VerifyAlg, n.CsumsAlg = "sha1", "md5"
			o := replication.DefaultDiskOptions()
			o.ResyncRateKiB, o.CPlanAhead = 50<<10, 0
			r.cfg.Volumes = []VolumeConfig{{Device: "/dev/drbd0", MetaIndex: -1, Options: o}}
			bits := meta.NewBitmap(32688)
			bits.Set(0, 1)
			r.setUpDisk(0, start{
				uuids: meta.UUIDs{Current: 0x297038c6fd6f4f6c, Bitmap: 0x74d53d4327d794d3, History: [2]uint64{0x70070a146c238341, meta.UUIDJustCreated}},
				flags: meta.MDFConsistent | meta.MDFWasUpToDate | meta.MDFALClean, bits: bits, sectors: 32688,
			})
			r.mustPass()
			if part.offer.Max >= drbd.MinVersion {
				if r.matched != 6 {
					t.Errorf("%d packets were compared, want 6", r.matched)
				}
				return
			}
			r.pump("the end of the connection", func() bool { return r.peer.data.ended })
			r.pump("StandAlone", func() bool { return r.eng.Status().Conn == drbd.StandAlone })
			want := fmt.Sprintf("%d..%d", part.offer.Min, part.offer.Max)
			if got := r.eng.Status().LastError; !strings.Contains(got, want) || !strings.Contains(got, "100..101") {
				t.Errorf("the reason is %q, want the offers %s and 100..101 in it", got, want)
			}
			if len(r.got[0])+len(r.got[1]) != 0 {
				t.Errorf("sent beyond the features: %s", r.unmatched())
			}
		})
	}
}

type offer struct {
	name   string
	offer  drbd.Features
	events []wiretest.Event
}

// offers are the connections of v01-versions, each up to what an engine answers.
func offers(events []wiretest.Event) (parts []offer) {
	for _, e := range events {
		if name, ok := strings.CutPrefix(e.Text, "peer offers "); ok && e.Kind == wiretest.Comment {
			parts = append(parts, offer{name: name})
		}
		if len(parts) == 0 {
			continue
		}
		p := &parts[len(parts)-1]
		if h, err := e.DecodeHeader(); e.Kind == wiretest.Packet && err == nil {
			if h.Command == drbd.CmdConnectionFeatures && e.From == "B" && p.offer.Decode(e.Payload) != nil {
				continue
			}
			if e.From == "A" && h.Command != drbd.CmdConnectionFeatures && p.offer.Max < drbd.MinVersion {
				continue // the kernel speaks it, we do not
			}
		}
		if e.Kind == wiretest.Fin && p.offer.Max < drbd.MinVersion {
			continue
		}
		p.events = append(p.events, e)
	}
	return parts
}
