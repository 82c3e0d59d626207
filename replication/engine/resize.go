package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// probe answers ProbeDisk: it measures the volume's devices.
func (v *Volume) probe() {
	ev := replication.Event{Kind: replication.DiskProbed, Volume: uint16(v.cfg.Number)}
	ev.Disk, ev.Err = v.measure()
	v.e.event(ev)
}

func (v *Volume) measure() (*replication.AttachedDisk, error) {
	v.diskMu.RLock()
	defer v.diskMu.RUnlock()
	if v.data == nil {
		return nil, replication.ErrNoData
	}
	size, err := blockdev.Remeasure(v.data)
	if err != nil {
		return nil, err
	}
	to, moved, err := v.layout.Moved(size, v.layout.MetaBytes)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", v.cfg.Disk, err)
	case moved && size < v.layout.DataBytes:
		return nil, fmt.Errorf("%s has shrunk from %d to %d bytes: give it its old size back", v.cfg.Disk, v.layout.DataBytes, size)
	}
	v.next = to
	return &replication.AttachedDisk{Usable: to.Usable, Moved: moved, Superblock: to.Place(meta.Superblock{})}, nil
}

// moveMeta does a MetaJob that moves the metadata; by the volume's metaWorker.
func (v *Volume) moveMeta(job *replication.MetaJob) error {
	r := meta.Relocation{
		From: v.layout, To: v.next, Marked: job.Marked, Final: job.Superblock,
		Bitmap: func(write func(int, []byte) error) error {
			for _, p := range job.Pages {
				if err := write(p.Page, p.Data); err != nil {
					return err
				}
			}
			return nil
		},
	}
	if err := r.Do(v.metaDev); err != nil {
		return err
	}
	v.layout = v.next
	if sb, err := meta.DecodeSuperblock(job.Superblock); err == nil {
		v.rememberSize(v.layout.DataBytes, sb.DeviceUUID)
	}
	return nil
}

// A DeviceRecord is what is remembered of a disk with internal metadata, so that
// the metadata can be found after the disk has been enlarged while nobody used
// it. DRBD's tools keep the same per minor.
type DeviceRecord struct {
	Disk       string `json:"disk"`
	Bytes      int64  `json:"bytes"`
	DeviceUUID string `json:"device_uuid"`
}

// DeviceRecordPath is where the record of a volume is kept.
func DeviceRecordPath(stateDir, resource string, volume int) string {
	return filepath.Join(stateDir, fmt.Sprintf("%s-%d.device", resource, volume))
}

// ReadDeviceRecord reads the record of a volume. It fails with an error that
// wraps fs.ErrNotExist if there is none.
func ReadDeviceRecord(stateDir, resource string, volume int) (DeviceRecord, error) {
	var d DeviceRecord
	path := DeviceRecordPath(stateDir, resource, volume)
	b, err := os.ReadFile(path)
	if err != nil {
		return d, err
	}
	if err := json.Unmarshal(b, &d); err != nil {
		return d, fmt.Errorf("%s: %w", path, err)
	}
	return d, nil
}

// Write makes d the record of a volume.
func (d DeviceRecord) Write(stateDir, resource string, volume int) error {
	b, err := json.Marshal(d)
	if err != nil {
		return err
	}
	path := DeviceRecordPath(stateDir, resource, volume)
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// rememberSize keeps where the metadata is. It is for check-resize alone, so a
// failure is said and costs nothing else.
func (v *Volume) rememberSize(bytes int64, deviceUUID uint64) {
	e := v.e
	if e.cfg.StateDir == "" || v.layout.Placement != meta.Internal {
		return
	}
	d := DeviceRecord{Disk: v.cfg.Disk, Bytes: bytes, DeviceUUID: fmt.Sprintf("%016X", deviceUUID)}
	have, err := ReadDeviceRecord(e.cfg.StateDir, e.cfg.Resource, v.cfg.Number)
	if err == nil && have == d {
		return
	}
	if err := d.Write(e.cfg.StateDir, e.cfg.Resource, v.cfg.Number); err != nil {
		e.log.Warn().Err(err).Int("vol", v.cfg.Number).Msg("the size of the disk is not remembered: after it was enlarged offline, check-resize will not find the metadata")
	}
}

// CheckResize moves the internal metadata of a disk that nobody uses to the
// end of the disk, after this has been enlarged: from where record says that it
// was. moved is false if it is in its place already.
func CheckResize(dev blockdev.Device, record DeviceRecord) (moved bool, err error) {
	to, err := meta.NewLayout(meta.Internal, 0, dev.Size(), 0, 1, 8)
	if err != nil {
		return false, err
	}
	if _, _, err = meta.ReadSuperblock(dev, to); err == nil {
		return false, nil
	}
	if !errors.Is(err, meta.ErrNoMetadata) || record.Bytes == 0 {
		return false, err
	}
	from, ferr := meta.NewLayout(meta.Internal, 0, record.Bytes, 0, 1, 8)
	if ferr != nil || record.Bytes > dev.Size() {
		return false, err
	}
	sb, from, ferr := meta.ReadSuperblock(dev, from)
	switch {
	case ferr != nil:
		return false, ferr
	case fmt.Sprintf("%016X", sb.DeviceUUID) != record.DeviceUUID:
		return false, fmt.Errorf("the metadata at the old end of the disk has device UUID %016X, that of the disk was %s", sb.DeviceUUID, record.DeviceUUID)
	}
	return true, meta.MoveOffline(dev, from, to)
}
