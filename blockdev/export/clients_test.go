package export_test

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/blockdev/blocktest"
	"github.com/pollux-project/pollux/blockdev/export"
)

// eachDevice runs a test over memory, a buffered and a direct file.
func eachDevice(t *testing.T, size int64, test func(t *testing.T, r *rig)) {
	for _, tt := range []struct {
		name string
		open func(t *testing.T) blockdev.Device
	}{
		{"memory", func(*testing.T) blockdev.Device { return blocktest.NewMem(size) }},
		{"buffered", func(t *testing.T) blockdev.Device { d, _ := fileDevice(t, size, false); return d }},
		{"direct", func(t *testing.T) blockdev.Device { d, _ := fileDevice(t, size, true); return d }},
	} {
		t.Run(tt.name, func(t *testing.T) { test(t, newRig(t, tt.open(t), export.Config{})) })
	}
}

func TestNbdinfo(t *testing.T) {
	r := memRig(t, 64<<20)
	var info struct {
		Exports []struct {
			Name        string `json:"export-name"`
			Description string `json:"description"`
			Size        int64  `json:"export-size"`
			ReadOnly    bool   `json:"is_read_only"`
			CanCache    bool   `json:"can_cache"`
			CanDF       bool   `json:"can_df"`
			FastZero    bool   `json:"can_fast_zero"`
			Flush       bool   `json:"can_flush"`
			FUA         bool   `json:"can_fua"`
			MultiConn   bool   `json:"can_multi_conn"`
			Trim        bool   `json:"can_trim"`
			Zero        bool   `json:"can_zero"`
			Minimum     int    `json:"block_size_minimum"`
			Preferred   int    `json:"block_size_preferred"`
			Maximum     int    `json:"block_size_maximum"`
		} `json:"exports"`
	}
	for _, name := range []string{"web-root", ""} {
		if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--json", r.uri(name))), &info); err != nil {
			t.Fatal(err)
		}
		e := info.Exports[0]
		if e.Size != 64<<20 || e.ReadOnly || e.CanCache || e.FastZero || !e.CanDF || !e.Flush || !e.FUA || !e.MultiConn || !e.Trim || !e.Zero {
			t.Errorf("export %q: %+v", name, e)
		}
		if e.Minimum != 512 || e.Preferred != 4096 || e.Maximum != 32<<20 {
			t.Errorf("block sizes: %+v", e)
		}
	}
	out := run(t, "nbdinfo", "--list", r.uri(""))
	if !strings.Contains(out, `export="web-root"`) || !strings.Contains(out, "test volume") {
		t.Errorf("list: %s", out)
	}
	if out, err := tryRun(t, "nbdinfo", r.uri("nothing")); err == nil {
		t.Errorf("unknown export: %v\n%s", err, out)
	}
	if out := run(t, "qemu-nbd", "--list", "-k", r.socket); !strings.Contains(out, "export: 'web-root'") {
		t.Errorf("qemu-nbd --list: %s", out)
	}
	if out := run(t, "nbdinfo", "--map", r.uri("web-root")); !strings.Contains(out, "67108864") {
		t.Errorf("map: %s", out)
	}
}

func TestRefusal(t *testing.T) {
	r := memRig(t, 1<<20)
	r.backend.Refuse(errSecondary{})
	if out, err := tryRun(t, "nbdinfo", r.uri("web-root")); err == nil {
		t.Errorf("opened: %s", out)
	}
	out, err := tryRun(t, "qemu-io", "-f", "raw", "-c", "read 0 512", r.uri("web-root"))
	if err == nil || !strings.Contains(out, errSecondary{}.Error()) {
		t.Errorf("the client's user does not see the reason: %v\n%s", err, out)
	}
	r.backend.Refuse(nil)
	run(t, "nbdinfo", r.uri("web-root"))
}

type errSecondary struct{}

func (errSecondary) Error() string { return "web volume 0: open: this node is Secondary" }

func TestNbdcopy(t *testing.T) {
	const size = 48 << 20
	eachDevice(t, size, func(t *testing.T, r *rig) {
		dir := t.TempDir()
		from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
		data := make([]byte, size)
		rng := rand.NewChaCha8([32]byte{1})
		_, _ = rng.Read(data)                    // never fails
		clear(data[5<<20 : 9<<20])               // a hole for nbdcopy to find
		copy(data[20<<20:], make([]byte, 4<<10)) // and a small one
		if err := os.WriteFile(from, data, 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, "nbdcopy", "--connections=4", "--requests=64", "--flush", from, r.uri("web-root"))
		run(t, "nbdcopy", "--connections=4", r.uri("web-root"), to)
		got, err := os.ReadFile(to)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, data) {
			t.Error("what came back is not what was sent")
		}
	})
}

func TestQemuIO(t *testing.T) {
	eachDevice(t, 64<<20, func(t *testing.T, r *rig) {
		args := []string{"-f", "raw"}
		for _, c := range []string{
			"write -P 0x5a 4k 8k", "read -P 0x5a 4k 8k",
			"write -f -P 1 0 512", "read -P 1 0 512",
			"write -z 8k 64k", "read -P 0 8k 64k", "read -P 0x5a 4k 4k",
			"write -P 7 1M 3M", "write -zu 1M 1M", "read -P 0 1M 1M", "read -P 7 2M 2M",
			"discard 2M 1M", "write -P 9 3000k 5M", "read -P 9 3000k 5M",
			"write -P 3 10M 31M", "read -P 3 10M 31M", "read -P 3 10485761 30M",
			"write -z 0 64M", "read -P 0 0 32M", "flush",
			"aio_write -P 4 0 64k", "aio_write -P 5 64k 64k", "aio_flush", "read -P 4 0 64k", "read -P 5 64k 64k",
		} {
			args = append(args, "-c", c)
		}
		out := run(t, "qemu-io", append(args, r.uri("web-root"))...)
		if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
			t.Error(out)
		}
	})
}

func TestQemuImg(t *testing.T) {
	eachDevice(t, 32<<20, func(t *testing.T, r *rig) {
		from := filepath.Join(t.TempDir(), "from")
		data := make([]byte, 32<<20)
		_, _ = rand.NewChaCha8([32]byte{2}).Read(data[3<<20 : 29<<20]) // never fails
		if err := os.WriteFile(from, data, 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "8", from, r.uri("web-root"))
		run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", from, r.uri("web-root"))
		if out := run(t, "qemu-img", "map", "--output=json", r.uri("web-root")); !strings.Contains(out, `"data": true`) {
			t.Errorf("map: %s", out)
		}
	})
}

func TestFioVerify(t *testing.T) {
	eachDevice(t, 32<<20, func(t *testing.T, r *rig) {
		for _, args := range [][]string{
			{"--bs=4k", "--iodepth=32"},
			{"--bs=512", "--iodepth=16", "--size=2M"},
			{"--bsrange=512-256k", "--iodepth=8", "--fsync=16"},
		} {
			args = append([]string{
				"--name=v", "--ioengine=nbd", "--uri=" + r.uri("web-root"), "--rw=randwrite", "--size=32M",
				"--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--randrepeat=1",
			}, args...)
			run(t, "fio", args...)
		}
	})
}

func TestMap(t *testing.T) {
	dev, path := fileDevice(t, 16<<20, false) // all hole
	if _, err := dev.WriteAt(bytes.Repeat([]byte{1}, 1<<20), 4<<20); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, dev, export.Config{})
	var extents []struct {
		Start, Length int64
		Data, Zero    bool
	}
	if err := json.Unmarshal([]byte(run(t, "qemu-img", "map", "-f", "raw", "--output=json", r.uri("web-root"))), &extents); err != nil {
		t.Fatal(err)
	}
	data := int64(0)
	for _, e := range extents {
		if e.Data {
			data += e.Length
		}
	}
	if data != 1<<20 || len(extents) != 3 {
		t.Errorf("map of %s: %+v", path, extents)
	}
	run(t, "nbdinfo", "--map", r.uri("web-root"))
	run(t, "nbdinfo", "--map", "--totals", r.uri("web-root"))
}

// The way to a kernel block device where the kernel has no nbd driver.
func TestE2ENbdfuse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("loop devices and mounts need root")
	}
	dev, _ := fileDevice(t, 64<<20, false)
	r := newRig(t, dev, export.Config{})
	dir := t.TempDir()
	fuse, mnt := filepath.Join(dir, "fuse"), filepath.Join(dir, "mnt")
	for _, d := range []string{fuse, mnt} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	pid := filepath.Join(dir, "pid")
	cmd := exec.Command(oracle(t, "nbdfuse"), "-P", pid, fuse, r.uri("web-root"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		run(t, "fusermount3", "-u", fuse)
		if err := cmd.Wait(); err != nil {
			t.Errorf("nbdfuse: %v", err)
		}
	}()
	waitFor(t, func() bool { _, err := os.Stat(pid); return err == nil })

	loop := strings.TrimSpace(run(t, "losetup", "-f", "--show", "--direct-io=on", filepath.Join(fuse, "nbd")))
	defer run(t, "losetup", "-d", loop)
	run(t, "mkfs.ext4", "-q", loop)
	run(t, "mount", loop, mnt)
	want := bytes.Repeat([]byte("acknowledged\n"), 100000)
	err := os.WriteFile(filepath.Join(mnt, "f"), want, 0o600)
	run(t, "umount", mnt)
	if err != nil {
		t.Fatal(err)
	}
	run(t, "e2fsck", "-fn", loop)
	run(t, "mount", loop, mnt)
	got, err := os.ReadFile(filepath.Join(mnt, "f"))
	run(t, "fstrim", mnt)
	run(t, "umount", mnt)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file differs: %v", err)
	}
	run(t, "blkdiscard", "-z", loop)
}
