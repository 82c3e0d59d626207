package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/protocol/adm"
)

// randomFile makes a file of random bytes and returns its path and contents.
func randomFile(t *testing.T, size int, seed byte) (path string, data []byte) {
	t.Helper()
	data = make([]byte, size)
	rand.NewChaCha8([32]byte{seed}).Read(data) //nolint:errcheck // never fails
	path = filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, data
}

// Three volumes, with internal, indexed and flexible metadata, O_DIRECT.
func TestE2EVolumes(t *testing.T) {
	begin(t, "nbdcopy")
	const volumes = `
volume 0 { device minor 0; disk $DIR/v0.img; meta-disk internal; }
volume 1 { device minor 1; disk $DIR/v1.img; meta-disk $DIR/meta.img[1]; }
volume 2 { device minor 2; disk $DIR/v2.img; flexible-meta-disk $DIR/flex.img; }
volume 3 { device minor 3; disk $DIR/v3.img; meta-disk $DIR/meta.img[0]; }`
	sizes := []int{16 << 20, 8 << 20, 12 << 20, 4 << 20}
	p := configured(t, options{global: quick, volumes: volumes, settings: "[resource.r0]\nio = \"direct\"\n"})
	for _, n := range []*node{p.a, p.b} {
		for v, size := range sizes {
			n.disk(fmt.Sprintf("v%d.img", v), int64(size))
		}
		n.disk("meta.img", 2*128<<20) // one slot of indexed metadata is 128 MiB
		n.disk("flex.img", 1<<20)
	}
	p.up()
	paths, contents := make([]string, len(sizes)), make([][]byte, len(sizes))
	for v := range sizes {
		size := p.a.status().Volumes[v].SizeBytes
		if external := v != 0; external && size != uint64(sizes[v]) {
			t.Errorf("volume %d offers %d of %d bytes", v, size, sizes[v])
		}
		paths[v], contents[v] = randomFile(t, int(size), byte(v+1))
		mustRun(t, "nbdcopy", "--flush", paths[v], p.a.uri(fmt.Sprintf("r0/%d", v)))
	}
	if r := run(t, "nbdinfo", p.a.uri("r0")); r.code == 0 {
		t.Errorf("r0 without a volume is no export of a resource with several: %v", r)
	}
	// One volume loses its disk, the others stay.
	p.a.must("detach", "r0/1")
	p.a.wait("volume 1 is diskless", func(a adm.Resource) bool { return a.Volumes[1].Disk == "Diskless" && a.Volumes[0].Disk == "UpToDate" })
	p.a.must("attach", "r0/1")
	p.inSync()
	// Over a kill of both, and on the other node.
	p.a.kill()
	p.b.kill()
	p.b.start()
	p.a.start()
	p.a.wait("Primary again", func(a adm.Resource) bool { return a.Role == "Primary" })
	p.inSync()
	p.a.must("secondary", "r0")
	p.b.must("primary", "r0")
	for v := range sizes {
		if got := readExport(t, p.b.uri(fmt.Sprintf("r0/%d", v))); !bytes.Equal(got, contents[v]) {
			t.Errorf("volume %d on bravo is not what was written on alpha", v)
		}
	}
	if out := p.b.must("dstate", "r0"); strings.Count(out, "UpToDate/UpToDate\n") != len(sizes) {
		t.Errorf("dstate: %q", out)
	}
	for v := 1; v < len(sizes); v++ {
		p.equalDisks(fmt.Sprintf("v%d.img", v), int64(sizes[v]))
	}
	p.equalDisks("v0.img", int64(len(contents[0])))
}

// loopDevice makes a block device of a file.
func loopDevice(t *testing.T, file string) string {
	t.Helper()
	needRoot(t, "loop devices")
	dev := strings.TrimSpace(mustRun(t, "losetup", "--find", "--show", file))
	t.Cleanup(func() { run(t, "losetup", "--detach", dev) }) // lazy if polluxd has it open
	return dev
}

// Block devices below, block devices above: a file system is mounted on the
// one node, and after a switch on the other.
func TestE2EMountedFailover(t *testing.T) {
	begin(t, "mkfs.ext4", "nbdfuse", "losetup")
	needRoot(t, "mount")
	p := configured(t, options{settings: "attach-device = \"loop\"\n", size: 48 << 20, volumes: "device minor 0; disk /x; meta-disk internal;"})
	// The key has to stand before the tables; and minors of our own, since both
	// nodes share one /dev.
	minor := 5000 + rand.IntN(1<<20)
	devs := [2]string{}
	for i, n := range []*node{p.a, p.b} {
		n.disk("disk.img", 48<<20)
		lower := loopDevice(t, n.path("disk.img"))
		devs[i] = fmt.Sprintf("/dev/drbd%d", minor+i)
		n.write("r0.res", fmt.Sprintf("global { disable-ip-verification; }\nresource r0 {\n%s\nvolume 0 { device minor %d; disk %s; meta-disk internal; }\n"+
			"on alpha { address %s; }\non bravo { address %s; }\n}\n", quick, minor+i, lower, p.a.addr, p.b.addr))
	}
	p.up()
	a := p.a.wait("a block device", func(a adm.Resource) bool { return a.Volumes[0].BlockDevice != "" || a.Volumes[0].AttachProblem != "" })
	if a.Volumes[0].AttachProblem != "" {
		t.Fatalf("no block device: %s", a.Volumes[0].AttachProblem)
	}
	if exists(devs[1]) {
		t.Errorf("%s exists on a Secondary", devs[1])
	}
	mount := [2]string{p.a.path("mnt"), p.b.path("mnt")}
	for _, m := range mount {
		if err := os.Mkdir(m, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { run(t, "umount", "-l", m) })
	}
	mustRun(t, "mkfs.ext4", "-q", devs[0])
	mustRun(t, "mount", devs[0], mount[0])
	data, _ := randomFile(t, 8<<20, 9)
	mustRun(t, "cp", data, mount[0]+"/data")
	p.a.refused(11, []string{"r0", "(-12)", "umount"}, "secondary", "r0")
	if got := mustRun(t, "cat", mount[0]+"/data"); len(got) != 8<<20 {
		t.Errorf("after a refused demotion %d bytes are readable", len(got))
	}
	mustRun(t, "umount", mount[0])
	p.a.must("secondary", "r0")
	if exists(devs[0]) {
		t.Errorf("%s still exists", devs[0])
	}
	p.b.must("primary", "r0")
	p.b.wait("a block device", func(b adm.Resource) bool { return b.Volumes[0].BlockDevice != "" })
	mustRun(t, "mount", devs[1], mount[1])
	mustRun(t, "cmp", data, mount[1]+"/data")
	if out := p.b.must("status", "r0"); !strings.Contains(out, devs[1]) {
		t.Errorf("status does not show the device: %s", out)
	}
	// polluxd dies under the mounted file system, and comes back.
	mustRun(t, "sync", "-f", mount[1])
	p.b.kill()
	mustRun(t, "umount", "-l", mount[1])
	p.b.start()
	p.b.wait("Primary again with a device", func(b adm.Resource) bool {
		return b.Role == "Primary" && b.Volumes[0].BlockDevice != "" && exists(devs[1])
	})
	mustRun(t, "mount", devs[1], mount[1])
	mustRun(t, "cmp", data, mount[1]+"/data")
	mustRun(t, "umount", mount[1])
	p.inSync()
	p.b.must("down", "r0")
	if exists(devs[1]) {
		t.Errorf("%s still exists after down", devs[1])
	}
	p.equalDisks("disk.img", 48<<20-40<<10)
}
