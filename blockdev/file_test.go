package blockdev_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/blockdev"
)

// makeFile makes a plain file of size bytes of 0xee.
func makeFile(t testing.TB, size int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	data := make([]byte, size)
	for i := range data {
		data[i] = 0xee
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustOpen(t testing.TB, path string, o blockdev.Options) blockdev.Device {
	t.Helper()
	dev, err := blockdev.Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dev.Close() }) // a second Close does nothing
	return dev
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		name, path string
		want       error
	}{
		{"missing", filepath.Join(dir, "none"), unix.ENOENT},
		{"directory", dir, nil},
		{"character device", "/dev/null", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dev, err := blockdev.Open(tt.path, blockdev.Options{})
			if err == nil {
				dev.Close()
				t.Fatal("opened")
			}
			if tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
		})
	}
}

func TestExclusiveFile(t *testing.T) {
	path := makeFile(t, 1<<20)
	excl := blockdev.Options{Exclusive: true}
	dev := mustOpen(t, path, excl)
	for _, o := range []blockdev.Options{excl, {Exclusive: true, ReadOnly: true}, {Exclusive: true, Direct: true}} {
		if d, err := blockdev.Open(path, o); !errors.Is(err, blockdev.ErrHeld) {
			if err == nil {
				d.Close()
			}
			t.Errorf("second exclusive open %+v: %v, want ErrHeld", o, err)
		}
	}
	mustOpen(t, path, blockdev.Options{ReadOnly: true}) // inspection stays possible
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, path, excl)
}

func TestOpenShared(t *testing.T) {
	path := makeFile(t, 1<<20)
	excl := blockdev.Options{Exclusive: true}
	a, err := blockdev.OpenShared(path, excl)
	if err != nil {
		t.Fatal(err)
	}
	link := path + ".link"
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	b, err := blockdev.OpenShared(link, excl)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := blockdev.OpenShared(path, blockdev.Options{}); !errors.Is(err, blockdev.ErrHeld) {
		t.Errorf("other options: %v", err)
	}
	for range 2 { // the second Close must not drop b's reference
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.WriteAt([]byte("still open"), 0); err != nil {
		t.Error(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, path, excl)
}

func TestReadOnly(t *testing.T) {
	dev := mustOpen(t, makeFile(t, 8192), blockdev.Options{ReadOnly: true})
	p := make([]byte, 512)
	if _, err := dev.ReadAt(p, 512); err != nil || p[0] != 0xee {
		t.Errorf("read: %v", err)
	}
	if _, err := dev.WriteAt(p, 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: %v", err)
	}
	if err := dev.WriteFUA(p, 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("durable write: %v", err)
	}
	if err := dev.Zero(0, 512, true); !errors.Is(err, unix.EROFS) {
		t.Errorf("zero: %v", err)
	}
	if err := dev.Sync(); err != nil {
		t.Errorf("sync: %v", err)
	}
}

func TestFileNeverGrows(t *testing.T) {
	path := makeFile(t, 1<<20+100)
	for _, o := range []blockdev.Options{{}, {Direct: true}} {
		dev := mustOpen(t, path, o)
		if dev.Size() != 1<<20 {
			t.Fatalf("size %d", dev.Size())
		}
		p := make([]byte, 1024)
		if _, err := dev.WriteAt(p, 1<<20-512); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("write across the end: %v", err)
		}
		if err := dev.Zero(1<<20, 512, true); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("zero at the end: %v", err)
		}
		if _, err := dev.ReadAt(p, 1<<20-512); !errors.Is(err, unix.EINVAL) {
			t.Errorf("read across the end: %v", err)
		}
		if _, err := dev.WriteAt(p, -512); err == nil {
			t.Error("write at a negative offset succeeded")
		}
		var ioErr *blockdev.IOError
		if _, err := dev.WriteAt(p, 1<<62); !errors.As(err, &ioErr) || ioErr.Offset != 1<<62 {
			t.Errorf("not an IOError with the offset: %v", err)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Size() != 1<<20+100 {
		t.Errorf("file size changed: %v %v", st.Size(), err)
	}
}

func TestClosed(t *testing.T) {
	dev := mustOpen(t, makeFile(t, 8192), blockdev.Options{})
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := dev.ReadAt(make([]byte, 512), 0); !errors.Is(err, blockdev.ErrClosed) {
		t.Errorf("read: %v", err)
	}
	if err := dev.Sync(); !errors.Is(err, blockdev.ErrClosed) {
		t.Errorf("sync: %v", err)
	}
	if err := dev.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

// A file that another process cuts is an error, never a short success.
func TestCutFile(t *testing.T) {
	path := makeFile(t, 8192)
	dev := mustOpen(t, path, blockdev.Options{})
	if err := os.Truncate(path, 1024); err != nil {
		t.Fatal(err)
	}
	if n, err := dev.ReadAt(make([]byte, 4096), 0); err == nil || n != 1024 {
		t.Errorf("read %d, %v", n, err)
	}
}

func TestSection(t *testing.T) {
	dev := mustOpen(t, makeFile(t, 64<<10), blockdev.Options{})
	s := blockdev.Section(dev, 8192, 4096)
	if s.Size() != 4096 || s.BlockSize() != dev.BlockSize() || s.Direct() {
		t.Errorf("size %d, block size %d", s.Size(), s.BlockSize())
	}
	if _, err := s.WriteAt([]byte("hello"), 4096-5); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 7)
	if _, err := dev.ReadAt(p, 8192+4096-6); err != nil || string(p) != "\xeehello\xee" {
		t.Errorf("%q %v", p, err)
	}
	if err := s.Zero(0, 4096, false); err != nil {
		t.Fatal(err)
	}
	if _, err := dev.ReadAt(p, 8192+4096-6); err != nil || string(p) != "\x00\x00\x00\x00\x00\x00\xee" {
		t.Errorf("%q %v", p, err)
	}
	for _, off := range []int64{-1, 4092, 4096, 1 << 62} {
		if _, err := s.WriteAt(p, off); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("write at %d: %v", off, err)
		}
		if _, err := s.ReadAt(p, off); !errors.Is(err, unix.EINVAL) {
			t.Errorf("read at %d: %v", off, err)
		}
		if err := s.WriteFUA(p, off); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("durable write at %d: %v", off, err)
		}
		if err := s.Zero(off, 7, true); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("zero at %d: %v", off, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := dev.Sync(); err != nil {
		t.Errorf("device closed by its section: %v", err)
	}
}

func TestMap(t *testing.T) {
	dev := mustOpen(t, makeFile(t, 4<<20), blockdev.Options{})
	if err := dev.Zero(1<<20, 2<<20, true); err != nil {
		t.Fatal(err)
	}
	type stretch struct {
		n      int64
		isHole bool
	}
	var got []stretch
	mapper := dev.(interface {
		Map(off, length int64, add func(length int64, isHole bool) bool) error
	})
	err := mapper.Map(512<<10, 3<<20, func(n int64, isHole bool) bool {
		got = append(got, stretch{n, isHole})
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) == 1 && !got[0].isHole && got[0].n == 3<<20 {
		t.Skip("the file system does not tell its holes")
	}
	want := []stretch{{512 << 10, false}, {2 << 20, true}, {512 << 10, false}}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if err := mapper.Map(0, 5<<20, nil); !errors.Is(err, unix.EINVAL) {
		t.Errorf("past the end: %v", err)
	}
}

func TestFileAllocs(t *testing.T) {
	path := makeFile(t, 1<<20)
	for _, o := range []blockdev.Options{{}, {Direct: true}} {
		dev := mustOpen(t, path, o)
		p := blockdev.AlignedBuffer(4096)
		odd := blockdev.AlignedBuffer(8192)[7 : 7+1024]
		n := testing.AllocsPerRun(50, func() {
			if _, err := dev.WriteAt(p, 4096); err != nil {
				t.Fatal(err)
			}
			if err := dev.WriteFUA(p, 4096); err != nil {
				t.Fatal(err)
			}
			if _, err := dev.ReadAt(p, 4096); err != nil {
				t.Fatal(err)
			}
			if _, err := dev.WriteAt(odd, 5000); err != nil {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("direct=%v: %v allocations", o.Direct, n)
		}
	}
}
