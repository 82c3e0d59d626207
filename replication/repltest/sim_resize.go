package repltest

import (
	"errors"
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// resizeFeature has backing devices grow under the volumes, in use or not, and
// the operator take that over.
var resizeFeature = feature{
	name: "resize",
	choose: func(d *dice, c *Config) {
		if d.chance(0.3) {
			c.Room = 8 * (1 + d.pick(512))
			c.Internal = d.chance(0.7)
			c.Litter = d.chance(0.8)
			if c.Features&drbd.FeaturePollux == 0 {
				// With a kernel, the rest of a block that was in use in part, and what
				// both devices have grown by while they were apart, is not synced.
				c.Litter = false
			}
		}
	},
	troubles: []*trouble{
		{"enlarge the devices", 3, func(s *sim, n *Node) {
			vol, by := s.w.pick(len(n.Vols)), 8*(1+s.w.pick(128))
			clean := !s.w.cfg.Litter && s.w.chance(0.5)
			for _, n := range s.w.Nodes {
				if s.w.chance(0.9) {
					n.Grow(n.Vols[vol], by)
				}
			}
			s.w.after(s.w.jitter(300_000), func() { s.resize(n, vol, clean) })
		}},
		{"resize", 2, func(s *sim, n *Node) { s.resize(n, s.w.pick(len(n.Vols)), false) }},
	},
}

func (s *sim) resize(n *Node, vol int, clean bool) {
	n.Command(replication.Command{Kind: replication.CmdResize, Volume: uint16(vol), AssumeClean: clean}, nil)
}

// internalLayout is layoutOf with the metadata at the end of the volume's own
// device, which is as large as that takes.
func internalLayout(sectors int) (meta.Layout, int) {
	device := int64(sectors)*sectorSize + 40<<10
	l, err := meta.NewLayout(meta.Internal, 0, device, 0, 1, 8)
	if err != nil {
		panic(err)
	}
	return l, int(device)
}

// Grow enlarges the backing device of a volume by sectors, as far as the
// simulated disk has room.
func (n *Node) Grow(v *Volume, sectors int) {
	most := v.first + int64(n.w.cfg.Room)*sectorSize
	v.device = min(v.device+int64(sectors)*sectorSize, most)
	n.w.trace("%s device of volume %d has %d sectors now", n.name, v.num, v.device/sectorSize)
}

// place is where metadata belongs on the device as it is now.
func (v *Volume) place() (to meta.Layout, moved bool, err error) {
	to, moved, err = v.layout.Moved(v.device, v.layout.MetaBytes)
	if !moved {
		to.BitmapBytes = v.layout.BitmapBytes // the test's own limit
	}
	return to, moved, err
}

// probeDisk answers ProbeDisk.
func (n *Node) probeDisk(v *Volume) {
	to, moved, err := v.place()
	ev := replication.Event{Kind: replication.DiskProbed, Volume: v.num, Err: err}
	if err == nil {
		v.moving = to
		ev.Disk = &replication.AttachedDisk{Usable: to.Usable, Moved: moved, Superblock: to.Place(meta.Superblock{})}
	}
	n.w.trace("%s probe-disk usable=%d moved=%t", n.name, to.Usable, moved)
	life := n.life
	n.w.after(10+n.w.jitter(500), func() {
		if life == n.life {
			n.step(&ev)
		}
	})
}

// checkResize is what polluxadm does before up: metadata that is not where it
// belongs on the device is moved there.
func (n *Node) checkResize(v *Volume) bool {
	to, moved, err := v.place()
	if err != nil {
		n.w.fail("%s/%d: place of the metadata: %v", n.name, v.num, err)
		return false
	}
	if moved {
		_, _, err = meta.ReadSuperblock(v.meta, to)
		if errors.Is(err, meta.ErrNoMetadata) {
			err = meta.MoveOffline(v.meta, v.layout, to)
		}
		if !n.alive {
			return false // the power went meanwhile
		}
		if err != nil {
			n.w.fail("%s/%d: check-resize: %v", n.name, v.num, err)
			return false
		}
	}
	v.layout = to
	return true
}

// moveSteps are the steps of a MetaJob that moves the metadata.
func (n *Node) moveSteps(v *Volume, job replication.MetaJob) []metaStep {
	rec := &recorder{disk: v.meta, now: append([]byte(nil), v.meta.now...)}
	r := meta.Relocation{From: v.layout, To: v.moving, Marked: job.Marked, Final: job.Superblock, Bitmap: func(write func(int, []byte) error) error {
		for _, p := range job.Pages {
			if err := write(p.Page, p.Data); err != nil {
				return err
			}
		}
		return nil
	}}
	if err := r.Do(rec); err != nil {
		n.w.fail("%s/%d: move: %v", n.name, v.num, err)
	}
	return append(rec.steps, metaStep{do: func() error {
		v.layout = v.moving
		return nil
	}})
}

// A recorder is a metadata device that notes what is done, to be done later.
type recorder struct {
	disk  *metaDisk
	now   []byte
	steps []metaStep
}

// ReadAt reads what was noted.
func (d *recorder) ReadAt(p []byte, off int64) (int, error) {
	if off -= int64(d.disk.base); off < 0 || off+int64(len(p)) > int64(len(d.now)) {
		return 0, fmt.Errorf("read of %d bytes at %d of %d", len(p), off, len(d.now))
	}
	return copy(p, d.now[off:]), nil
}

// WriteAt notes a write.
func (d *recorder) WriteAt(p []byte, off int64) (int, error) {
	b := append([]byte(nil), p...)
	d.steps = append(d.steps, metaStep{write: true, do: func() error {
		_, err := d.disk.WriteAt(b, off)
		return err
	}})
	return copy(d.now[off-int64(d.disk.base):], p), nil
}

// Sync notes a sync.
func (d *recorder) Sync() error {
	d.steps = append(d.steps, metaStep{do: d.disk.Sync})
	return nil
}

// litter fills what the devices can grow by with content of their own: writes
// that nobody was promised, older than all others.
func (m *Model) litter() {
	for _, n := range m.w.Nodes {
		m.nextID++
		m.reqs = append(m.reqs, &Request{ID: m.nextID, Op: replication.OpWrite, node: n, start: -1, end: -1, Done: true})
		for _, v := range n.Vols {
			for i := int(v.layout.Usable); i < len(v.data.now); i++ {
				v.data.put(i, m.nextID)
				v.data.durable[i] = m.nextID
			}
		}
	}
}

// exported is what both nodes have of a volume, in sectors.
func (w *World) exported(vol int) int {
	n := len(w.Nodes[0].Vols[vol].data.now)
	for _, node := range w.Nodes {
		n = min(n, len(node.Vols[vol].data.now))
		if node.alive {
			if size := node.res.SizeBytes(uint16(vol)); size > 0 {
				n = min(n, int(size/sectorSize))
			}
		}
	}
	return n
}
