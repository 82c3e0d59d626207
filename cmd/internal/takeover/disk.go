package takeover

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/replication/meta"
)

// Placement is where a volume's configuration puts its metadata.
func Placement(v conf.Volume) meta.Placement {
	switch {
	case v.MetaDisk == "":
		return meta.Internal
	case v.MetaIndex >= 0:
		return meta.Indexed
	}
	return meta.FlexExternal
}

// Devices are a volume's disk and its metadata device, open and claimed; Meta is
// Data if the metadata is internal.
type Devices struct {
	Data, Meta blockdev.Device
	Layout     meta.Layout // as the devices' sizes give it
}

// Close gives them back.
func (d *Devices) Close() error {
	err := d.Data.Close()
	if d.Meta != d.Data {
		err = errors.Join(err, d.Meta.Close())
	}
	return err
}

// OpenDevices claims a volume's devices, past the page cache: whatever DRBD wrote
// went past it too. The metadata device of an index may be claimed by others who
// use their own part of it; it is opened beside them.
func OpenDevices(v conf.Volume, readOnly bool) (*Devices, error) {
	open := func(path string, exclusive bool) (blockdev.Device, error) {
		fi, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", path, unwrapPath(err))
		}
		return blockdev.Open(path, blockdev.Options{ReadOnly: readOnly, Exclusive: exclusive, Direct: fi.Mode()&os.ModeDevice != 0})
	}
	data, err := open(v.Disk, true)
	if err != nil {
		return nil, err
	}
	d := &Devices{Data: data, Meta: data}
	if v.MetaDisk != "" {
		if d.Meta, err = open(v.MetaDisk, Placement(v) != meta.Indexed); err != nil {
			data.Close() //nolint:errcheck // nothing was written
			return nil, err
		}
	}
	d.Layout, err = meta.NewLayout(Placement(v), max(v.MetaIndex, 0), d.Data.Size(), d.Meta.Size(), 1, 8)
	if err != nil {
		d.Close() //nolint:errcheck // nothing was written
		return nil, err
	}
	return d, nil
}

func unwrapPath(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// Disk looks at a volume's devices and its metadata as an attach would find them.
func (m Machine) Disk(name string, v conf.Volume) []Finding {
	about := fmt.Sprintf("disk %d", v.Number)
	if v.Disk == "" {
		return []Finding{{Verdict: Note, About: about, Text: "none: this node is diskless by configuration"}}
	}
	d, err := OpenDevices(v, true)
	if err != nil {
		return []Finding{m.openProblem(about, name, v, err)}
	}
	defer d.Close() // only read
	f := Finding{About: about, Text: fmt.Sprintf("%s, %s: nobody holds it", v.Disk, human(uint64(d.Data.Size())))}
	if v.MetaDisk != "" {
		f.Text += fmt.Sprintf("; metadata on %s", v.MetaDisk)
	}
	return append([]Finding{f}, metadata(name, v, d)...)
}

// openProblem says why a device can't be claimed, and by whom.
func (m Machine) openProblem(about, name string, v conf.Volume, err error) Finding {
	f := Finding{Verdict: Wrong, About: about, Text: err.Error()}
	switch {
	case errors.Is(err, blockdev.ErrHeld):
		path := v.Disk
		if v.MetaDisk != "" && strings.Contains(err.Error(), v.MetaDisk) {
			path = v.MetaDisk
		}
		mounts, holders := m.usersOf(path)
		f.Text = path + " is in use"
		if len(mounts) > 0 {
			f.Text += ", mounted on " + strings.Join(mounts, ", ")
			for _, at := range mounts {
				f.Do = append(f.Do, "umount "+at)
			}
		}
		if len(holders) > 0 {
			f.Text += ", part of " + strings.Join(holders, ", ")
			if !slices.ContainsFunc(holders, func(h string) bool { return strings.HasPrefix(h, "drbd") }) {
				f.Do = append(f.Do, "end what uses it: "+strings.Join(holders, ", "))
			}
		}
		if f.Do == nil {
			f.Do = []string{fmt.Sprintf("drbdadm down %s, or end the program that has it open", name)}
		}
	case errors.Is(err, os.ErrPermission):
		f.Do = []string{"run polluxadm as root"}
	case errors.Is(err, os.ErrNotExist):
		f.Do = []string{"bring the disk back (LVM: vgchange -ay), or correct the configuration"}
	case errors.Is(err, meta.ErrTooSmall):
		f.Do = []string{"give the disk its old size back"}
	}
	return f
}

// usersOf finds mounts of a block device, and devices that are built on it.
func (m Machine) usersOf(path string) (mounts, holders []string) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return nil, nil
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	return m.mountsOf(number), names(filepath.Join(m.path("/sys/dev/block"), number, "holders"))
}

// human is a size for people: 12 KiB, 3.5 GiB.
func human(n uint64) string {
	const units = "KMGTPE"
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	f, u := float64(n)/1024, 0
	for f >= 1024 && u < len(units)-1 {
		f, u = f/1024, u+1
	}
	if f == float64(uint64(f)) {
		return fmt.Sprintf("%d %ciB", uint64(f), units[u])
	}
	return fmt.Sprintf("%.1f %ciB", f, units[u])
}
