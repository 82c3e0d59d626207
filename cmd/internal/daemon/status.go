package daemon

import (
	"fmt"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/protocol/adm"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/engine"
)

// Status translates the engine's snapshot.
func (r *runningEngine) Status() adm.Resource {
	s := r.e.Status()
	st := adm.Resource{
		Role: s.Role.String(), PeerRole: s.PeerRole.String(), Connection: s.Conn.String(), Protocol: string(rune(s.Protocol)),
		Suspended: s.Suspended, SplitBrain: s.SplitBrain, LastError: s.LastError, WaitsToResume: s.WaitsToResume,
	}
	if !s.PeerLostSince.IsZero() {
		t := s.PeerLostSince.UTC()
		st.PeerLostSince = &t
	}
	if t := s.TLS; t != nil {
		st.TLS = &adm.TLS{Cipher: t.Cipher}
		if t.Cipher != "" {
			st.TLS.Until, st.TLS.PeerUntil = &t.Until, &t.PeerUntil
		}
	}
	if s.Violations > 0 {
		st.Violation = &adm.Violation{Text: s.Violation, Count: s.Violations, Last: s.ViolationAt.UTC()}
	}
	if t := s.Term; t.Promised > 0 {
		st.Term = &adm.Term{
			Term: t.Term, Promised: t.Promised, Owned: t.Owned, Sole: t.Sole, Override: t.Override, Marked: t.Marked, Unknown: t.Unknown, Frozen: t.Frozen, Held: t.Held,
			StandsBack: t.StandsBack, AsksPeer: t.AsksPeer, PeerStandsBack: t.PeerStandsBack,
		}
	}
	switch {
	case s.Term.LeaseOver:
		st.Lease = adm.LeaseOver
	case s.Term.Lease:
		st.Lease = adm.LeaseRunning
	}
	if l := s.Loss; l.MaxBytes > 0 {
		st.Loss = &adm.Loss{
			MaxBytes: l.MaxBytes, MaxSeconds: uint64(l.MaxMS) / 1000, Bytes: l.Bytes, AgeMS: l.AgeMS, Holds: l.Held > 0,
		}
	}
	for _, v := range s.Volumes {
		st.Volumes = append(st.Volumes, volumeStatus(v))
	}
	return st
}

func volumeStatus(v engine.VolumeStatus) adm.Volume {
	a := adm.Volume{
		Volume: v.Number, Minor: v.Minor, Device: v.Device, BackingDisk: v.BackingDisk, Replication: v.Conn.String(),
		Disk: v.Disk.String(), PeerDisk: v.PeerDisk.String(), SizeBytes: v.SizeBytes, OutOfSyncBytes: v.OutOfSyncBytes,
		OpenCount: v.Open, DiskError: v.DiskError, Flags: uint32(v.Flags),
		ReadBytes: v.Counters.ReadBytes, WrittenBytes: v.Counters.WrittenBytes, SentBytes: v.Counters.SentBytes,
		LocalPending: v.Gauges.Local, PeerPending: v.Gauges.Pending, Unacked: v.Gauges.Unacked, AppPending: v.Gauges.App,
		Epochs: v.Gauges.Epochs, WriteOrder: v.WriteOrder,
		ReceivedBytes: v.Counters.ReceivedBytes, ALWrites: v.Counters.ALWrites, BitmapWrites: v.Counters.BMWrites,
	}
	a.ResyncPausedBy = replication.PausedBy(v.State)
	for i, u := range [...]uint64{v.UUIDs.Current, v.UUIDs.Bitmap, v.UUIDs.History[0], v.UUIDs.History[1]} {
		a.UUIDs[i] = fmt.Sprintf("%016X", u)
	}
	if r := v.Resync; r != nil {
		p := progress(*r)
		a.Resync = &p
	}
	a.VerifyFrom = v.VerifyFrom
	if r := v.Verify; r != nil {
		a.Verify = &adm.Verify{
			Resync:      progress(r.ResyncStatus),
			StartSector: r.StartSector, StopSector: r.StopSector, Position: r.Position, FoundBytes: r.FoundBytes, FailedBytes: r.FailedBytes,
		}
	}
	return a
}

func progress(r engine.ResyncStatus) adm.Resync {
	return adm.Resync{
		Source: r.Source, Paused: r.Paused, TotalBytes: r.TotalBytes, LeftBytes: r.LeftBytes, RateBytesPerSec: r.RateBytesPerSec,
		ETASeconds: r.ETASeconds, AverageBytesPerSec: r.AverageBytesPerSec, WantBytesPerSec: r.WantBytesPerSec,
		FailedBytes: r.FailedBytes, SameBytes: r.SameBytes,
	}
}

// changedOptions says which options in force differ from the configured ones,
// and by what command, in words for people.
func changedOptions(running, configured resourceSpec) []string {
	if running.Resource == nil || configured.Resource == nil {
		return nil
	}
	var out []string
	for _, c := range conf.Changes(running.Resource, configured.Resource) {
		where := string(c.Section)
		if c.Volume >= 0 && len(running.Volumes) > 1 {
			where = fmt.Sprintf("%s (volume %d)", where, c.Volume)
		}
		out = append(out, fmt.Sprintf("%s %s %s; the file has %s", where, c.Option, wordOrNone(c.InForce), wordOrNone(c.Configured)))
	}
	return out
}

func wordOrNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
