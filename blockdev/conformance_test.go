package blockdev_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/blockdev/blocktest"
)

func TestFileConformance(t *testing.T) {
	for _, tt := range []struct {
		name string
		opts blockdev.Options
	}{
		{"buffered", blockdev.Options{Exclusive: true}},
		{"direct", blockdev.Options{Direct: true, Exclusive: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			blocktest.Conformance(t, func(t *testing.T) blockdev.Device {
				return mustOpen(t, makeFile(t, 2<<20+77), tt.opts)
			})
		})
	}
}

// newLoop makes a loop device over a fresh file; it takes root.
func newLoop(t *testing.T, size int, args ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loop devices need root")
	}
	cmd := exec.Command("losetup", append(append([]string{"-f", "--show"}, args...), makeFile(t, size))...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	loop := strings.TrimSpace(string(out)) // always the name that losetup prints
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", loop).CombinedOutput(); err != nil {
			t.Errorf("losetup -d: %v: %s", err, out)
		}
	})
	return loop
}

func TestE2ELoopConformance(t *testing.T) {
	for _, tt := range []struct {
		name string
		opts blockdev.Options
		args []string
		want int // block size
	}{
		{"buffered", blockdev.Options{Exclusive: true}, nil, 512},
		{"direct", blockdev.Options{Direct: true, Exclusive: true}, nil, 512},
		{"direct 4Kn", blockdev.Options{Direct: true, Exclusive: true}, []string{"--sector-size", "4096"}, 4096},
	} {
		t.Run(tt.name, func(t *testing.T) {
			blocktest.Conformance(t, func(t *testing.T) blockdev.Device {
				dev := mustOpen(t, newLoop(t, 2<<20, tt.args...), tt.opts)
				if dev.BlockSize() != tt.want || dev.Size() != 2<<20 {
					t.Errorf("block size %d, size %d", dev.BlockSize(), dev.Size())
				}
				return dev
			})
		})
	}
}

func TestE2ELoopExclusive(t *testing.T) {
	loop := newLoop(t, 2<<20)
	excl := blockdev.Options{Exclusive: true}
	dev := mustOpen(t, loop, excl)
	if d, err := blockdev.Open(loop, excl); err == nil {
		d.Close()
		t.Error("two exclusive openers of a block device")
	} else if !strings.Contains(err.Error(), "is held by another process") {
		t.Error(err)
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, loop, excl)
}
