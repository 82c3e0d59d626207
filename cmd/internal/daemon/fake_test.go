package daemon

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/blockdev/export"
	"github.com/pollux-project/pollux/internal/perf"
	"github.com/pollux-project/pollux/protocol/adm"
)

// A fakeEngine keeps roles and states and replicates nothing.
type fakeEngine struct {
	w    *fakeWorld
	spec resourceSpec

	mu      sync.Mutex
	role    string
	conn    string
	disks   map[int]string
	open    int
	frozen  []string // why its I/O is suspended
	syncing bool     // its volumes are resynced
	waits   bool     // or would be, but for resync-after
	orphan  atomic.Bool
	changed func()
	closed  bool
}

// A fakeWorld makes fakeEngines and says which of their calls fail.
type fakeWorld struct {
	mu      sync.Mutex
	engines map[string]*fakeEngine
	fail    map[string]error // by "attach r0" and the like
	calls   []string
	perf    *perf.Volume // of each volume
}

func newFakeWorld() *fakeWorld {
	return &fakeWorld{engines: map[string]*fakeEngine{}, fail: map[string]error{}}
}

func (w *fakeWorld) make(spec resourceSpec, _ zerolog.Logger) (engineAPI, error) {
	if err := w.call("new", spec.Name); err != nil {
		return nil, err
	}
	e := &fakeEngine{w: w, spec: spec, role: "Secondary", conn: "StandAlone", disks: map[int]string{}}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.engines[spec.Name] = e
	return e, nil
}

func (w *fakeWorld) call(what, res string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, what+" "+res)
	return w.fail[what+" "+res]
}

func (w *fakeWorld) setFail(what string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail[what] = err
}

func (w *fakeWorld) engine(res string) *fakeEngine {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.engines[res]
}

// do runs a call that changes the state.
func (e *fakeEngine) do(what string, change func()) error {
	if err := e.w.call(what, e.spec.Name); err != nil {
		return err
	}
	e.mu.Lock()
	change()
	changed := e.changed
	e.mu.Unlock()
	if changed != nil {
		changed()
	}
	return nil
}

func (e *fakeEngine) Attach(vol int) error {
	return e.do("attach", func() { e.disks[vol] = "UpToDate" })
}

func (e *fakeEngine) Detach(vol int, _ bool) error {
	return e.do("detach", func() { e.disks[vol] = "Diskless" })
}

func (e *fakeEngine) Connect(discard, _ bool) error {
	what := "connect"
	if discard {
		what = "discard"
	}
	return e.do(what, func() { e.conn = "WFConnection" })
}

func (e *fakeEngine) Disconnect(bool) error {
	return e.do("disconnect", func() { e.conn = "StandAlone" })
}

func (e *fakeEngine) Primary(force bool) error {
	what := "primary"
	if force {
		what = "force"
	}
	return e.do(what, func() { e.role = "Primary" })
}

func (e *fakeEngine) PromiseTerm(term uint64) error {
	return e.do(fmt.Sprintf("promise-term %d", term), func() {})
}

func (e *fakeEngine) PrimaryWithTerm(term uint64, sole bool) error {
	return e.do(fmt.Sprintf("primary-with-term %d %t", term, sole), func() { e.role = "Primary" })
}

func (e *fakeEngine) PrimaryByVote(force bool) error {
	return e.do(fmt.Sprintf("primary-by-vote %t", force), func() { e.role = "Primary" })
}

func (e *fakeEngine) ForceTerm(term uint64, sole bool) error {
	return e.do(fmt.Sprintf("force-term %d %t", term, sole), func() { e.role = "Primary" })
}

func (e *fakeEngine) Freeze() error { return e.do("freeze", func() {}) }
func (e *fakeEngine) Orphan() bool  { return e.orphan.Load() }

func (e *fakeEngine) Failsafe(on bool) error {
	return e.do(fmt.Sprint("failsafe ", on), func() {})
}
func (e *fakeEngine) Thaw() error           { return e.do("thaw", func() {}) }
func (e *fakeEngine) Lease(ms uint64) error { return e.do(fmt.Sprintf("lease %d", ms), func() {}) }

func (e *fakeEngine) Secondary() error {
	if e.isOpen() {
		return heldOpen(e.spec.Name)
	}
	return e.do("secondary", func() { e.role = "Secondary" })
}

func (e *fakeEngine) isOpen() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.open > 0
}

func heldOpen(res string) error {
	return &adm.Error{Exit: adm.ExitStateChange, Number: -12, Text: res + ": State change failed: (-12) Device is held open by someone"}
}

func (e *fakeEngine) Invalidate(int) error       { return e.do("invalidate", func() {}) }
func (e *fakeEngine) InvalidateRemote(int) error { return e.do("invalidate-remote", func() {}) }
func (e *fakeEngine) ResumeIO() error            { return e.do("resume-io", func() {}) }
func (e *fakeEngine) SuspendIO() error           { return e.do("suspend-io", func() {}) }
func (e *fakeEngine) PauseSync(int) error        { return e.do("pause-sync", func() {}) }
func (e *fakeEngine) ResumeSync(int) error       { return e.do("resume-sync", func() {}) }
func (e *fakeEngine) SyncAfter(_ int, waits bool) error {
	return e.do("sync-after", func() { e.waits = waits })
}
func (e *fakeEngine) Started()                       { _ = e.w.call("started", e.spec.Name) }
func (e *fakeEngine) Outdate() error                 { return e.do("outdate", func() {}) }
func (e *fakeEngine) Reconfigure(resourceSpec) error { return e.do("reconfigure", func() {}) }

func (e *fakeEngine) Verify(vol int, start, stop uint64) error {
	return e.do(fmt.Sprintf("verify %d %d %d", vol, start, stop), func() {})
}

func (e *fakeEngine) Resize(vol int, size uint64, clean, force bool) error {
	return e.do(fmt.Sprintf("resize %d %d %t %t", vol, size, clean, force), func() {})
}

func (e *fakeEngine) NewCurrentUUID(vol int, clearBitmap bool) error {
	return e.do(fmt.Sprintf("new-current-uuid %d %t", vol, clearBitmap), func() {})
}

func (e *fakeEngine) Perf(int) *perf.Volume { return e.w.perf }

func (e *fakeEngine) Backend(int) export.Backend { return &fakeBackend{e} }

func (e *fakeEngine) Status() adm.Resource {
	e.mu.Lock()
	defer e.mu.Unlock()
	st := adm.Resource{Role: e.role, PeerRole: "Unknown", Connection: e.conn, Protocol: "C", Suspended: e.frozen}
	for _, v := range e.spec.Volumes {
		disk := e.disks[v.Number]
		if disk == "" {
			disk = "Diskless"
		}
		st.Volumes = append(st.Volumes, adm.Volume{
			Volume: v.Number, Minor: v.Minor, Device: v.Device, BackingDisk: v.Disk, Disk: disk, PeerDisk: "DUnknown",
			SizeBytes: fakeSize, OpenCount: e.open,
		})
		last := &st.Volumes[len(st.Volumes)-1]
		if e.syncing {
			last.Replication = "SyncTarget"
		}
		if e.waits {
			last.ResyncPausedBy = []string{"dependency"}
		}
	}
	return st
}

func (e *fakeEngine) Subscribe(changed func()) func() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.changed = changed
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.changed = nil
	}
}

func (e *fakeEngine) Down() error {
	if e.isOpen() {
		return heldOpen(e.spec.Name)
	}
	return e.do("down", func() { e.closed = true })
}

func (e *fakeEngine) Close() error { return e.do("close", func() { e.closed = true }) }

const fakeSize = 1 << 20

var exportClient = export.ClientInfo{Export: "test"}

// A fakeBackend reads as zeroes and forgets what is written.
type fakeBackend struct{ e *fakeEngine }

func (b *fakeBackend) Info() export.Info { return export.Info{Size: fakeSize, BlockSize: 512} }

func (b *fakeBackend) Open(export.ClientInfo) (func(), error) {
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	if b.e.role != "Primary" {
		return nil, errors.New("this node is Secondary")
	}
	b.e.open++
	return func() {
		b.e.mu.Lock()
		defer b.e.mu.Unlock()
		b.e.open--
	}, nil
}

func (b *fakeBackend) Submit(batch []*blockdev.Request) {
	for _, r := range batch {
		clear(r.Data)
		r.Sink.Completed(r)
	}
	if len(batch) > 0 {
		batch[0].Sink.Flush()
	}
}
