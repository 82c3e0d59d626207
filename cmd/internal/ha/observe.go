package ha

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/pollux-project/pollux/hypervisor"
	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/protocol/adm"
)

// storageUp, storageReady and the next ones make a storageWatcher of the manager.
func (m *manager) storageUp(hello adm.Hello) {
	m.box.post(func() {
		m.downText = ""
		m.log.Info().Int("pid", hello.PID).Str("version", hello.Version).Msg("polluxd answers")
	})
}

func (m *manager) storageReady() {}

func (m *manager) storageStatus(r adm.Resource) {
	m.box.post(func() {
		// A command's answer may have overtaken an older status of the stream.
		if r.Seq != 0 && r.Seq <= m.seqs[r.Name] {
			return
		}
		m.seqs[r.Name] = r.Seq
		m.reportStorage(storageOf(r))
	})
}

func (m *manager) storageGone(resource string) {
	m.box.post(func() {
		m.reportStorage(ha.Storage{Resource: resource, Problem: fmt.Sprintf("polluxd does not know resource %s: polluxadm adjust %s", resource, resource)})
	})
}

func (m *manager) storageDown(err error) {
	m.box.post(func() {
		if m.downText != err.Error() {
			m.downText = err.Error()
			m.log.Warn().Err(err).Msg("polluxd does not answer")
		}
		m.reportStorageDown(err)
	})
}

func (m *manager) reportStorageDown(err error) {
	for _, v := range m.conf.vms {
		for _, name := range resourcesOf(v) {
			if slices.Contains(m.conf.nodesOf(name), m.conf.self()) {
				m.reportStorage(ha.Storage{Resource: name, Problem: fmt.Sprintf("%v: systemctl status polluxd says why", err)})
			}
		}
	}
}

// reportStorage tells the core if it is news, and of a resource that it cares for.
func (m *manager) reportStorage(s ha.Storage) {
	if old, known := m.stores[s.Resource]; known && old == s {
		return
	}
	m.stores[s.Resource] = s
	if !m.manages(s.Resource) {
		return
	}
	m.event(ha.Event{Kind: ha.StorageChanged, Storage: s})
}

// manages reports whether a resource belongs to a VM of this configuration.
func (m *manager) manages(resource string) bool { return m.conf.vmOf(resource) != nil }

// storageOf is polluxd's status as the core sees it.
func storageOf(r adm.Resource) ha.Storage {
	s := ha.Storage{
		Resource: r.Name, Up: r.State == adm.StateUp, Role: ha.Role(r.Role), Connected: isConnected(r.Connection),
		Disk: ha.UpToDate, PeerDisk: ha.UpToDate, Incarnation: r.Incarnation,
	}
	if s.Connected {
		s.PeerRole = ha.Role(r.PeerRole)
	}
	for _, v := range r.Volumes {
		s.Disk = worse(s.Disk, ha.Disk(v.Disk))
		s.PeerDisk = worse(s.PeerDisk, ha.Disk(v.PeerDisk))
		s.DirtyBytes += v.OutOfSyncBytes
		s.Clients += v.OpenCount
	}
	if len(r.Volumes) == 0 {
		s.Disk, s.PeerDisk = ha.Diskless, ha.DUnknown
	}
	s.Generation = generationOf(r.Volumes)
	if t := r.Term; t != nil {
		s.StandsBack, s.AsksPeer, s.PeerStandsBack = t.StandsBack, t.AsksPeer, t.PeerStandsBack
		s.Term, s.Promised, s.Owned, s.Sole, s.Marked, s.TermUnknown, s.Frozen = t.Term, t.Promised, t.Owned, t.Sole, t.Marked, t.Unknown, t.Frozen
		s.ReadsFrozen = t.Held
	}
	// A wait for the peer's word after a lease ends within a second, and is not told.
	if why := slices.DeleteFunc(slices.Clone(r.Suspended), func(w string) bool { return w == "lease" }); s.Frozen == "" && len(why) > 0 {
		s.Frozen = "suspended: " + strings.Join(why, ", ")
	}
	switch {
	case r.SplitBrain != "":
		s.Problem = "split brain: " + r.SplitBrain
	case r.Reason != "":
		s.Problem = r.Reason
	case r.WaitsToResume != "":
		s.Problem = r.WaitsToResume
	case r.LastError != "":
		s.Problem = r.LastError
	case r.State == adm.StateDown:
		s.Problem = "it is down: polluxadm up " + r.Name
	}
	if s.Problem != "" && r.Advice != "" {
		s.Problem += ": " + r.Advice
	}
	return s
}

// isConnected knows the connection states in which packets of data may flow
// (DRBD 8.4: all from C_CONNECTED on).
func isConnected(state string) bool {
	switch state {
	case "", "StandAlone", "Disconnecting", "Unconnected", "Timeout", "BrokenPipe", "NetworkFailure", "ProtocolError", "TearDown", "WFConnection", "WFReportParams":
		return false
	}
	return true
}

// worse is the worse of two disk states.
func worse(a, b ha.Disk) ha.Disk {
	if b == "" {
		b = ha.DUnknown
	}
	rank := func(d ha.Disk) int {
		i := slices.Index([]ha.Disk{ha.UpToDate, ha.Consistent, ha.Outdated, ha.Inconsistent, ha.DUnknown, ha.Diskless}, d)
		if i < 0 {
			return 3 // any other is as good as Inconsistent
		}
		return i
	}
	if cmp.Compare(rank(a), rank(b)) < 0 {
		return b
	}
	return a
}

// generationOf is the current UUID of the only volume, or a digest of all (FNV-1a
// over their bytes), the same on nodes with the same UUIDs; 0 if one is unknown.
func generationOf(volumes []adm.Volume) uint64 {
	if len(volumes) == 1 {
		return volumes[0].Generation()
	}
	sum := uint64(14695981039346656037)
	for _, v := range volumes {
		g := v.Generation()
		if g == 0 {
			return 0
		}
		for shift := 0; shift < 64; shift += 8 {
			sum = (sum ^ g>>shift&0xff) * 1099511628211
		}
	}
	if len(volumes) == 0 {
		return 0
	}
	return sum &^ 1
}

// heartbeat takes a beat that came from another node; from any goroutine.
func (m *manager) heartbeat(node string, link int, raw []byte) {
	if len(raw) == 0 {
		return // its core has not taken a step yet
	}
	m.box.post(func() {
		id, known := m.beats[node]
		e := ha.Event{Kind: ha.Heartbeat, Node: node, Link: link}
		if known && id.raw == string(raw) {
			e.Beat.Session, e.Beat.Seq = id.session, id.seq // nothing new: need not be decoded
		} else if err := json.Unmarshal(raw, &e.Beat); err != nil {
			m.log.Warn().Str("peer", node).Err(err).Msg("a heartbeat that can't be read is dropped")
			return
		}
		m.beats[node] = beatID{e.Beat.Session, e.Beat.Seq, string(raw)}
		m.event(e)
	})
}

// linkChanged takes the news of a path to another node; from any goroutine.
func (m *manager) linkChanged(node string, link int, up bool) {
	m.post(ha.Event{Kind: ha.LinkChanged, Node: node, Link: link, Up: up})
}

// measureMemory finds out what this machine has; from any goroutine.
func (m *manager) measureMemory() {
	total, available, err := hypervisor.HostMemory()
	if err != nil {
		return // what was found the last time stays
	}
	m.box.post(func() {
		m.total, m.available = uint64(total), uint64(available) //nolint:gosec // never negative
		m.reportMemory()
	})
}

// reportMemory tells the core what services may still take.
func (m *manager) reportMemory() { m.reportHealth(m.total, m.free()) }

// free is the memory that is free now, less what the services that run were promised
// and have not touched yet: a guest takes its memory page by page, and the host would
// be out of it long after the start.
func (m *manager) free() uint64 {
	promised := uint64(0)
	for _, w := range m.services {
		promised += w.work.untouched()
	}
	return m.available - min(m.available, promised)
}
