package ha

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	"github.com/pollux-project/pollux/protocol/adm"
)

// slowStorage is a polluxd that remembers what it was told.
type slowStorage struct {
	mu   sync.Mutex
	told []string
}

func (s *slowStorage) do(_ context.Context, req adm.Request, _ any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if req.Cmd != adm.CmdStatus {
		s.told = append(s.told, string(req.Cmd)+" "+req.Resource)
	}
	return nil
}

func (s *slowStorage) watch(ctx context.Context, _ storageWatcher) { <-ctx.Done() }
func (s *slowStorage) close()                                      {}

func (s *slowStorage) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.told)
}

// performer is a manager whose orders are given by the test, not by a core's decisions.
func performer(t *testing.T, dir string, s storage) *manager {
	t.Helper()
	c, err := readAll(files(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := c.core(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	events, err := openEventLog(filepath.Join(t.TempDir(), "events"), "a", bootClock{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(events.close)
	m, err := newManager(parts{
		settings: c.settings, storage: s, saved: store[ha.Saved]{path: filepath.Join(dir, "state.json")}, events: events,
		clock: bootClock{}, wall: time.Now, log: zerolog.Nop(), arbiter: alone{time.Second},
	}, c, cfg, "s", "b")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.stop)
	return m
}

// serve runs the mailbox until the manager has nothing under way.
func (m *manager) serve() {
	for {
		m.lanes.wait()
		items := m.box.take()
		if len(items) == 0 {
			return
		}
		for _, f := range items {
			f()
		}
	}
}

// What has to be remembered is on disk before what depends on it begins; what ends
// something does not wait for a disk.
func TestPersistComesFirst(t *testing.T) {
	dir := t.TempDir()
	s := &slowStorage{}
	m := performer(t, dir, s)
	m.dispatch(ha.Order{Kind: ha.Persist, ID: 1, Saved: ha.Saved{Boot: "b"}}, 7)
	m.dispatch(ha.Order{Kind: ha.Promote, ID: 2, Resource: "web", Term: 3}, 7)
	m.dispatch(ha.Order{Kind: ha.Demote, ID: 3, Resource: "web"}, 8)
	m.dispatch(ha.Order{Kind: ha.FreezeReads, ID: 4, Resource: "web"}, 8)
	if len(m.held) != 2 {
		t.Fatalf("%d orders wait, want promote and demote", len(m.held))
	}
	m.serve()
	m.workers.Wait()
	m.serve()
	told := s.all()
	promote, demote := slices.Index(told, "primary web"), slices.Index(told, "secondary web")
	if !slices.Contains(told, "freeze web") || promote < 0 || demote < promote {
		t.Errorf("polluxd was told %v", told)
	}
	if v, err := m.saved.load(); err != nil || v.Boot != "b" {
		t.Errorf("remembered: %+v, %v", v, err)
	}
}

// A full disk: what depends on it is not done, an alarm stands, and it is tried again.
func TestPersistFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	s := &slowStorage{}
	m := performer(t, dir, s)
	m.dispatch(ha.Order{Kind: ha.Persist, ID: 1, Saved: ha.Saved{Boot: "b"}}, 7)
	m.dispatch(ha.Order{Kind: ha.Promote, ID: 2, Resource: "web", Term: 3}, 7)
	m.dispatch(ha.Order{Kind: ha.Demote, ID: 3, Resource: "web"}, 8)
	m.serve()
	if told := s.all(); !slices.Equal(told, []string{"secondary web"}) {
		t.Errorf("polluxd was told %v, want only what does not depend on the disk", told)
	}
	if m.unsaved == nil || m.health.Problem == "" {
		t.Errorf("unsaved %v, health %+v", m.unsaved, m.health)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	m.pollAll()
	m.serve()
	if m.unsaved != nil || m.health.Problem != "" {
		t.Errorf("room again: unsaved %v, health %+v", m.unsaved, m.health)
	}
}

// The arbiter's conditions reach the core as they are; all else leaves open what happened.
func TestOutcomes(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want ha.Outcome
	}{
		{arbiter.ErrHeld, ha.Held},
		{arbiter.ErrStale, ha.Stale},
		{arbiter.ErrBehind, ha.Behind},
		{arbiter.ErrChanged, ha.Changed},
		{arbiter.ErrInvalid, ha.Invalid},
		{errors.New("what"), ha.Unreachable},
	} {
		if got := outcomeOf(&arbiter.RefusedError{Err: tt.err}); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.err, got, tt.want)
		}
	}
}

// polluxd's words as the core takes them.
func TestStorageOf(t *testing.T) {
	volume := func(disk, peer, uuid string) adm.Volume {
		return adm.Volume{Disk: disk, PeerDisk: peer, UUIDs: [4]string{uuid}, OutOfSyncBytes: 4096, OpenCount: 1}
	}
	r := adm.Resource{
		Name: "web", State: adm.StateUp, Role: "Primary", PeerRole: "Secondary", Connection: "SyncSource",
		Term:    &adm.Term{Term: 3, Promised: 4, Owned: true, Sole: true, Marked: true},
		Volumes: []adm.Volume{volume("UpToDate", "UpToDate", "A1"), volume("UpToDate", "Inconsistent", "B3")},
	}
	s := storageOf(r)
	if !s.Up || !s.Connected || s.PeerRole != ha.Secondary || s.Disk != ha.UpToDate || s.PeerDisk != ha.Inconsistent ||
		s.DirtyBytes != 8192 || s.Clients != 2 || s.Term != 3 || s.Promised != 4 || !s.Sole || s.Generation == 0 || s.Generation&1 != 0 {
		t.Errorf("%+v", s)
	}
	r.Connection, r.Suspended = "WFConnection", []string{"term"}
	if s = storageOf(r); s.Connected || s.PeerRole != "" || s.Frozen == "" {
		t.Errorf("without its peer: %+v", s)
	}
	// A lease that ended while polluxha was away holds nothing up, and nobody tells
	// when another one begins; a freeze does.
	r.Connection, r.Suspended, r.Lease = "Connected", []string{"lease"}, adm.LeaseOver
	if s = storageOf(r); s.Frozen != "" || s.ReadsFrozen {
		t.Errorf("after a lease: %+v", s)
	}
	r.Term.Held = true
	if s = storageOf(r); !s.ReadsFrozen {
		t.Errorf("after a freeze: %+v", s)
	}
	one := adm.Resource{Name: "web", State: adm.StateUp, Volumes: []adm.Volume{volume("Attaching", "", "A1")}}
	if s = storageOf(one); s.Disk != "Attaching" || s.PeerDisk != ha.DUnknown || s.Generation != 0xA0 {
		t.Errorf("one volume: %+v", s)
	}
}

// stoppedStorage is a polluxd whose manager is stopped for a while during its first command.
type stoppedStorage struct {
	slowStorage
	at    int64
	stops []int64
	told  []uint64
}

func (s *stoppedStorage) do(_ context.Context, req adm.Request, _ any) error {
	if len(s.stops) > 0 {
		s.at += s.stops[0]
		s.stops = s.stops[1:]
	}
	s.told = append(s.told, req.Args.LeaseMS)
	return nil
}

func (s *stoppedStorage) now() int64            { return s.at }
func (s *stoppedStorage) alarm() (alarm, error) { return bootClock{}.alarm() }

// polluxd is told how long the lease lasts; a manager that was stopped on the way
// tells it again, so that it does not last longer there.
func TestLeaseIsToldInTime(t *testing.T) {
	for _, tt := range []struct {
		stops []int64
		want  []uint64
	}{
		{nil, []uint64{6000}},
		{[]int64{300}, []uint64{6000}},
		{[]int64{2000}, []uint64{6000, 4000}},
		{[]int64{2000, 900}, []uint64{6000, 4000, 3100}},
		{[]int64{30000}, []uint64{6000, 1}},
	} {
		s := &stoppedStorage{at: 1000, stops: tt.stops}
		m := performer(t, t.TempDir(), s)
		m.clock = s
		if err := m.tellLease(t.Context(), ha.Order{Kind: ha.TellLease, Until: 7000}); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(s.told, tt.want) {
			t.Errorf("stopped for %v ms: polluxd was told %v, want %v", tt.stops, s.told, tt.want)
		}
	}
}

// A status that was overtaken by a newer one is no news.
func TestOvertakenStatus(t *testing.T) {
	m := performer(t, t.TempDir(), &slowStorage{})
	for _, r := range []adm.Resource{
		{Name: "web", Seq: 5, State: adm.StateUp, Role: "Secondary"},
		{Name: "web", Seq: 9, State: adm.StateUp, Role: "Primary"},
		{Name: "web", Seq: 7, State: adm.StateUp, Role: "Secondary"},
	} {
		m.storageStatus(r)
	}
	m.serve()
	if got := m.stores["web"].Role; got != ha.Primary {
		t.Errorf("the resource is %s, want what the newest status says", got)
	}
}
