package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/internal/perf"
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// Attach opens the disk of volume n, applies its activity log and takes it
// into use. Errors are *AdminError with DRBD's request error number.
func (e *Engine) Attach(n int) error {
	v := e.Volume(n)
	if v == nil {
		return e.refuse(codeMinorUnknown, "%s: no volume %d", e.cfg.Resource, n)
	}
	if v.cfg.Disk == "" {
		return nil
	}
	err := v.attach()
	v.setDiskError(err)
	return err
}

func (v *Volume) setDiskError(err error) {
	v.errMu.Lock()
	defer v.errMu.Unlock()
	v.diskErr = ""
	if err != nil {
		v.diskErr = err.Error()
	}
}

func (v *Volume) attach() error {
	e := v.e
	if s := e.Status(); s.volume(v.cfg.Number).Disk != drbd.Diskless {
		return e.refuse(codeAttached, "%s/%d: Failure: (124) Device is attached to a disk (use detach first)", e.cfg.Resource, v.cfg.Number)
	}
	v.awaitClosed()
	data, metaDev, err := v.open()
	if err != nil {
		return err
	}
	disk, err := v.load(data, metaDev)
	if err != nil {
		closeAll(data, metaDev)
		return err
	}
	v.diskMu.Lock()
	v.data, v.metaDev, v.direct = data, metaDev, data.Direct()
	v.async.Store(newAsync(v, data))
	v.closed = make(chan struct{})
	v.diskMu.Unlock()
	e.background.Add(2)
	stop := make(chan struct{})
	v.stopDisk = stop
	go v.metaWorker(stop)
	go v.syncWorker(stop)
	e.resume.look(v, disk)
	done := make(chan error, 1)
	e.event(replication.Event{Kind: replication.Attached, Volume: uint16(v.cfg.Number), Disk: disk, Tag: done})
	return <-done
}

// awaitClosed waits until the devices of the attach before are let go: the state
// is Diskless a moment earlier.
func (v *Volume) awaitClosed() {
	v.diskMu.RLock()
	closed := v.closed
	v.diskMu.RUnlock()
	if closed != nil {
		<-closed
	}
}

// open claims the backing and the metadata device.
func (v *Volume) open() (data, metaDev blockdev.Device, err error) {
	e := v.e
	data, err = e.openDevice(v.cfg.Disk, blockdev.Options{Direct: v.cfg.Direct, Exclusive: true})
	if err != nil {
		return nil, nil, e.openError(v, codeOpenDisk, "backing device", err)
	}
	if err := data.Sync(); err != nil { // what a process before this one has written
		data.Close() //nolint:errcheck // nothing was written
		return nil, nil, e.openError(v, codeOpenDisk, "backing device", err)
	}
	if v.cfg.MetaDisk == "" {
		return data, data, nil
	}
	metaDev, err = blockdev.OpenShared(v.cfg.MetaDisk, blockdev.Options{Direct: v.cfg.Direct, Exclusive: true})
	if err != nil {
		data.Close() //nolint:errcheck // nothing was written
		return nil, nil, e.openError(v, codeOpenMeta, "metadata device", err)
	}
	return data, metaDev, nil
}

func (e *Engine) openError(v *Volume, code int, what string, err error) error {
	if errors.Is(err, blockdev.ErrHeld) {
		code = codeClaimed
		return e.refuse(code, "%s/%d: Failure: (%d) %s: %v: end the program that uses it (another polluxd, a mount), then run `polluxadm attach %s`",
			e.cfg.Resource, v.cfg.Number, code, what, err, e.cfg.Resource)
	}
	return e.refuse(code, "%s/%d: Failure: (%d) can not open %s: %v", e.cfg.Resource, v.cfg.Number, code, what, err)
}

func closeAll(data, metaDev blockdev.Device) {
	data.Close() //nolint:errcheck // all that counts was synced
	if metaDev != data {
		metaDev.Close() //nolint:errcheck // likewise
	}
}

// load reads the metadata; an activity log of a crash is applied first.
func (v *Volume) load(data, metaDev blockdev.Device) (*replication.AttachedDisk, error) {
	e := v.e
	placement := meta.Internal
	switch {
	case v.cfg.MetaDisk != "" && v.cfg.MetaIndex >= 0:
		placement = meta.Indexed
	case v.cfg.MetaDisk != "":
		placement = meta.FlexExternal
	}
	l, err := meta.NewLayout(placement, max(v.cfg.MetaIndex, 0), data.Size(), metaDev.Size(), 1, 8)
	if err != nil {
		return nil, e.refuse(codeTooSmall, "%s/%d: Failure: (111) %s: %v", e.cfg.Resource, v.cfg.Number, v.cfg.Disk, err)
	}
	applied, err := meta.ApplyAL(metaDev, l)
	if err != nil {
		return nil, e.metaError(v, err)
	}
	if n := len(applied.Hot); n > 0 {
		e.log.Info().Int("vol", v.cfg.Number).Int("extents", n).Uint64("bits", applied.NewBits).Msg("activity log applied after a crash")
	}
	_, l, err = meta.ReadSuperblock(metaDev, l)
	if err != nil {
		return nil, e.metaError(v, err)
	}
	sb, bitmap, err := loadBitmap(metaDev, l)
	if err != nil {
		return nil, e.metaError(v, err)
	}
	if err := meta.InitRing(metaDev, l); err != nil {
		return nil, e.metaError(v, err)
	}
	v.layout = l
	v.rememberSize(data.Size(), sb.DeviceUUID)
	opts := v.options()
	if most := meta.MaxALExtents(l.ALBlocks); opts.ALExtents > most {
		e.log.Warn().Int("vol", v.cfg.Number).Int("al-extents", most).Msg("the activity log has room for fewer extents than configured")
		opts.ALExtents = most
	}
	term, noFile := v.loadTerm()
	return &replication.AttachedDisk{
		Term: term, NoTermFile: noFile, Superblock: sb, Bitmap: bitmap, AL: meta.NewActivityLog(opts.ALExtents, l.Stripes, l.StripeSize4k),
		Usable: l.Usable, BlockSize: uint32(data.BlockSize()), Options: opts,
	}, nil
}

func loadBitmap(dev blockdev.Device, l meta.Layout) (meta.Superblock, *meta.Bitmap, error) {
	return meta.Load(dev, l)
}

func (e *Engine) metaError(v *Volume, err error) error {
	code, advice := codeMetaIO, "check the disk"
	var corrupt *meta.CorruptError
	var version *meta.VersionError
	var shrunk *meta.ShrunkError
	switch {
	case errors.Is(err, meta.ErrNoMetadata):
		code, advice = codeNoMeta, fmt.Sprintf("if the disk is new, run `polluxadm create-md %s`; if it was enlarged, `polluxadm check-resize %s`", e.cfg.Resource, e.cfg.Resource)
	case errors.As(err, &version):
		code, advice = codeNoMeta, "only v08 metadata can be used"
	case errors.As(err, &shrunk):
		code, advice = codeTooSmall, "give the device its old size back"
	case errors.As(err, &corrupt):
		code, advice = codeNoMeta, "if the peer has good data, run create-md and let it resync"
	}
	return e.refuse(code, "%s/%d: Failure: (%d) metadata on %s: %v: %s", e.cfg.Resource, v.cfg.Number, code, v.metaPath(), err, advice)
}

func (v *Volume) metaPath() string {
	if v.cfg.MetaDisk != "" {
		return v.cfg.MetaDisk
	}
	return v.cfg.Disk
}

// closeDisk releases the devices after the core has let the disk go.
func (v *Volume) closeDisk() {
	v.diskMu.Lock()
	data, metaDev, closed := v.data, v.metaDev, v.closed
	async := v.async.Swap(nil)
	v.data, v.metaDev = nil, nil
	stop := v.stopDisk
	v.stopDisk = nil
	v.diskMu.Unlock()
	if stop != nil {
		close(stop)
	}
	if data != nil {
		closeAll(data, metaDev)
		if async != nil {
			go async.dev.Close() // this may be the goroutine that has its results
		}
		close(closed)
	}
}

// metaWorker does the metadata jobs of one attach, one at a time.
func (v *Volume) metaWorker(stop chan struct{}) {
	defer v.e.background.Done()
	for {
		select {
		case job := <-v.metaJobs:
			var termErr error
			if job.Term != nil { // before anything that depends on it
				termErr = v.storeTerm(job.Term)
			}
			what, began := perf.Metadata, perf.Now()
			if job.ALBlock != nil {
				what = perf.Transaction
			}
			v.joinTransaction(job)
			err := v.writeMeta(job)
			v.perf.Time(what, began)
			v.e.event(replication.Event{Kind: replication.MetaDone, Volume: uint16(v.cfg.Number), Err: err, TermErr: termErr})
		case <-stop:
			return
		}
	}
}

// joinTransaction lets the misses that came while this goroutine was woken, those of
// one burst of a client, share one transaction of the activity log.
func (v *Volume) joinTransaction(job *replication.MetaJob) {
	if job.ALBlock == nil {
		return
	}
	v.e.mu.Lock()
	v.e.core.JoinTransaction(uint16(v.cfg.Number), job)
	v.e.mu.Unlock()
}

func (v *Volume) syncWorker(stop chan struct{}) {
	defer v.e.background.Done()
	for {
		select {
		case <-v.syncs:
			v.sync()
		case <-stop:
			return
		}
	}
}

// sync makes the data durable and steps the result.
func (v *Volume) sync() {
	v.diskMu.RLock()
	err := error(replication.ErrNoData)
	if v.data != nil {
		began := perf.Now()
		err = v.data.Sync()
		v.perf.Time(perf.Fdatasync, began)
	}
	v.diskMu.RUnlock()
	v.e.event(replication.Event{Kind: replication.Synced, Volume: uint16(v.cfg.Number), Err: err})
}

// writeMeta does one job in its order: data, bitmap pages, then the
// transaction and the superblock, each group durable before the next.
func (v *Volume) writeMeta(job *replication.MetaJob) error {
	v.diskMu.RLock()
	defer v.diskMu.RUnlock()
	if v.data == nil {
		return replication.ErrNoData
	}
	if job.SyncData {
		if err := v.data.Sync(); err != nil {
			return err
		}
	}
	if job.Move {
		return v.moveMeta(job)
	}
	if err := v.writePages(job.Pages); err != nil {
		return err
	}
	if job.ResetAL && job.Marked != nil {
		if _, err := v.metaDev.WriteAt(job.Marked, v.layout.Superblock); err != nil {
			return err
		}
		if err := v.syncMeta(); err != nil {
			return err
		}
	}
	if job.ResetAL {
		if err := meta.InitRing(v.metaDev, v.layout); err != nil {
			return err
		}
	}
	if job.ALBlock != nil {
		if err := v.storeMeta(job.ALBlock, v.layout.RingBlock(job.ALRing)); err != nil {
			return err
		}
	}
	if job.Superblock != nil {
		return v.storeMeta(job.Superblock, v.layout.Superblock)
	}
	return nil
}

// storeMeta writes a block of metadata durably, and nothing else: a flush of
// internal metadata would be one of all data that is in the page cache.
func (v *Volume) storeMeta(p []byte, off int64) error {
	if v.mdFlushes.Load() {
		return v.metaDev.WriteFUA(p, off)
	}
	_, err := v.metaDev.WriteAt(p, off)
	return err
}

// fewPages is up to how many bitmap pages are each written durably, instead of all
// and then flushed. A durable write of 4 KiB took 0.1 ms, a flush of the data that
// 32 random writes have left in the page cache 2 ms.
const fewPages = 8

// writePages writes pages of the bitmap durably.
func (v *Volume) writePages(pages []replication.MetaPage) error {
	write := v.storeMeta
	if len(pages) > fewPages {
		write = func(p []byte, off int64) error {
			_, err := v.metaDev.WriteAt(p, off)
			return err
		}
	}
	for _, p := range pages {
		off := int64(p.Page) * meta.BlockSize
		n := min(int64(len(p.Data)), v.layout.BitmapBytes-off)
		if n <= 0 {
			return fmt.Errorf("bitmap page %d lies beyond the metadata", p.Page)
		}
		if err := write(p.Data[:n], v.layout.Bitmap+off); err != nil {
			return err
		}
	}
	if len(pages) > fewPages {
		return v.syncMeta()
	}
	return nil
}

// syncMeta is a flush of the metadata; md-flushes no leaves it out.
func (v *Volume) syncMeta() error {
	if !v.mdFlushes.Load() {
		return nil
	}
	return v.metaDev.Sync()
}

// Detach gives the disk of volume n up; force does not ask the peer.
func (e *Engine) Detach(ctx context.Context, n int, force bool) error {
	if e.Volume(n) == nil {
		return e.refuse(codeMinorUnknown, "%s: no volume %d", e.cfg.Resource, n)
	}
	return e.command(ctx, replication.Command{Kind: replication.CmdDetach, Volume: uint16(n), Force: force})
}
