package blockdev

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// Long sequential writes go to the disk at once, others when the kernel sees fit.
func TestStream(t *testing.T) {
	const kib, mib = 1 << 10, 1 << 20
	for _, direct := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, make([]byte, 8*mib), 0o600); err != nil {
			t.Fatal(err)
		}
		dev, err := Open(path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer dev.Close()
		d := dev.(*fileDevice)
		d.direct = direct // only what is said of it: not all file systems have O_DIRECT
		var begun []int64
		var answer error
		d.stream.begin = func(fd int, off, length int64) error {
			if fd != d.fd {
				t.Errorf("descriptor %d, want %d", fd, d.fd)
			}
			begun = append(begun, off, length)
			return answer
		}
		buf := AlignedBuffer(mib)
		for _, tt := range []struct {
			off, length int64
			answer      error
			isBegun     bool
			want        error
		}{
			{off: mib, length: mib},                                  // where it begins
			{off: 2 * mib, length: mib, isBegun: true},               // and goes on
			{off: 3 * mib, length: 256 * kib, isBegun: true},         // in any length
			{off: 7 * mib, length: 4 * kib},                          // beside another one
			{off: 3*mib + 256*kib, length: 512 * kib, isBegun: true}, // that is no end of it
			{off: 3*mib + 768*kib, length: 128 * kib},                // too short
			{off: 6 * mib, length: mib},                              // elsewhere
			{off: 2 * mib, length: mib},                              // back
			{off: 3 * mib, length: mib, answer: unix.EIO, isBegun: true, want: unix.EIO},
			{off: 4 * mib, length: mib, answer: unix.ENOSPC, isBegun: true, want: unix.ENOSPC},
			{off: 5 * mib, length: mib, answer: unix.EINTR, isBegun: true},
			{off: 6 * mib, length: mib, answer: unix.ENOSYS, isBegun: true},
			{off: 7 * mib, length: mib}, // it is not asked again
		} {
			begun, answer = begun[:0], tt.answer
			_, err := d.WriteAt(buf[:tt.length], tt.off)
			var want []int64
			if tt.isBegun && !direct {
				want = []int64{tt.off, tt.length}
			}
			if !slices.Equal(begun, want) {
				t.Errorf("direct %v, %d bytes at %d: begun %v, want %v", direct, tt.length, tt.off, begun, want)
			}
			if direct {
				tt.want = nil
			}
			if !errors.Is(err, tt.want) {
				t.Errorf("direct %v, %d bytes at %d: %v, want %v", direct, tt.length, tt.off, err, tt.want)
			}
		}
	}
}
