package engine

import (
	"errors"
	"testing"
	"time"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/internal/fuzztest"
	"github.com/pollux-project/pollux/replication/meta"
	"github.com/pollux-project/pollux/replication/repltest/hostile"
)

// FuzzAttach attaches a disk with damaged metadata as polluxd does. Whatever
// stands there, the engine says what is wrong, or takes the disk and serves what
// it exports, to the last sector; what lies outside is not touched.
func FuzzAttach(f *testing.F) {
	f.Add([]byte{0})
	f.Add([]byte{0x79, 0, 0x30, 16, 0x02, 17, 0xff})
	f.Add([]byte{0x00, 13, 3, 0, 4, 0, 0, 0, 1, 0x0c, 1, 0, 12, 1, 2, 3, 4})
	f.Add([]byte{0x80, 22, 0x70, 23, 5, 0, 0, 15, 255, 255, 255, 255, 255, 2})
	f.Fuzz(func(t *testing.T, program []byte) {
		if len(program) > 1024 {
			return
		}
		watchdog := time.AfterFunc(4*fuzzPatience, func() { panic("a damaged disk keeps the engine busy") })
		defer watchdog.Stop()
		n := fuzzNode(t, fuzztest.NewProgram(nil))
		spoilDisk(t, n.cfg.Volumes[0].Disk, program)
		e, err := New(n.cfg)
		if err != nil {
			t.Fatal(err)
		}
		n.Engine = e
		defer e.halt()
		fuzztest.Bounded(t, fuzzMemory, func() {
			err := e.Attach(0)
			var refusal *AdminError
			switch {
			case err == nil:
				serveToTheEnd(t, n)
			case !errors.As(err, &refusal) || refusal.Text == "":
				t.Errorf("attach gives %T: %v", err, err)
			}
		})
	})
}

// spoilDisk is a disk that was in sync, and then damaged.
func spoilDisk(t *testing.T, path string, program []byte) {
	t.Helper()
	editSuperblock(t, path, func(sb *meta.Superblock, l meta.Layout) {
		sb.LASize, sb.Flags = l.Usable, meta.MDFConsistent|meta.MDFWasUpToDate|meta.MDFPrimaryInd
		sb.UUIDs.Current = 0x1111111111111110
	})
	onDisk(t, path, func(dev blockdev.Device, l meta.Layout) error {
		hostile.Spoil(dev, l, program)
		return nil
	})
}

// serveToTheEnd uses what a node exports. The last sector has to be there.
func serveToTheEnd(t *testing.T, n *node) {
	if err := n.Primary(true); err != nil {
		return // the disk may be one that nobody may use
	}
	size := int64(n.Status().Volumes[0].SizeBytes)
	usable := int64(4 << 20)
	if size > usable {
		t.Fatalf("%d bytes are exported of a disk of %d", size, usable)
	}
	if size < 4096 {
		return
	}
	c := n.open()
	defer c.release()
	at := (size - 4096) &^ 511
	c.write(at, pattern(7, 4096))
	c.write(0, pattern(8, 4096))
	c.flush()
	if got := c.read(at, 4096); string(got) != string(pattern(7, 4096)) && at >= 4096 {
		t.Fatal("another pattern is read than was written")
	}
}
