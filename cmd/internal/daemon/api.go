package daemon

import (
	"github.com/pollux-project/pollux/blockdev/export"
	"github.com/pollux-project/pollux/internal/perf"
	"github.com/pollux-project/pollux/protocol/adm"
)

// engineAPI is what the daemon needs of a running resource; volumes are named
// by number. Errors are *adm.Error where the engine's have a DRBD number.
// All methods are safe for concurrent use; those that change something return
// when it is done or refused.
type engineAPI interface {
	Attach(vol int) error
	Detach(vol int, force bool) error
	Connect(discardMyData, tentative bool) error
	Disconnect(force bool) error
	Primary(force bool) error
	// PromiseTerm and PrimaryWithTerm are an arbiter's (docs/adr/0008-terms.md).
	PromiseTerm(term uint64) error
	PrimaryWithTerm(term uint64, sole bool) error
	// PrimaryByVote takes the term from the copies; ForceTerm is an operator's override.
	PrimaryByVote(force bool) error
	ForceTerm(term uint64, sole bool) error
	Freeze() error
	Thaw() error
	// Failsafe has the peer asked to stand back while the arbiter is away.
	Failsafe(on bool) error
	Lease(ms uint64) error
	// Orphan reports whether the lease has ended, and this Primary is frozen without its peer.
	Orphan() bool
	Secondary() error
	Invalidate(vol int) error
	InvalidateRemote(vol int) error
	Outdate() error
	ResumeIO() error
	SuspendIO() error
	// Verify compares both copies of a volume; sectors, stop 0 is the end.
	Verify(vol int, start, stop uint64) error
	PauseSync(vol int) error
	ResumeSync(vol int) error
	// SyncAfter pauses a volume's resync because another is to go first, or lets it go on.
	SyncAfter(vol int, waits bool) error
	// Resize takes over that the backing device has grown; sectors, 0 is all of it.
	Resize(vol int, size uint64, assumeClean, assumePeerHasSpace bool) error
	NewCurrentUUID(vol int, clearBitmap bool) error
	// Reconfigure takes over changed options; what can't be changed while
	// running is refused and nothing is changed.
	Reconfigure(spec resourceSpec) error
	// Backend serves the volume's NBD export.
	Backend(vol int) export.Backend
	// Perf is where the volume's time goes, nil if that is not measured.
	Perf(vol int) *perf.Volume
	// Status fills in everything but State, Reason and Advice.
	Status() adm.Resource
	// Started is called when the disks are attached and connecting has begun:
	// a former Primary of the same boot may go on now.
	Started()
	// Subscribe calls changed after every change of the status, from any
	// goroutine; changed must not block.
	Subscribe(changed func()) (cancel func())
	// Down demotes, disconnects, detaches and ends; it is refused while a
	// volume is held open.
	Down() error
	// Close ends at once and leaves all durable state as it is, so that the
	// resource can go on in the next process.
	Close() error
}
