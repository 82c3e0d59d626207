package e2e

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/protocol/adm"
)

// smallFS mounts a file system with room for so many bytes on a node's directory.
func smallFS(t *testing.T, n *node, room string) {
	t.Helper()
	needRoot(t, "mount")
	mustRun(t, "mount", "-t", "tmpfs", "-o", "size="+room, "e2e", n.dir)
	n.t.Cleanup(func() { run(t, "umount", "-l", n.dir) })
}

// qemuIO runs qemu-io commands on an export and returns how it ended.
func qemuIO(t *testing.T, uri string, commands ...string) result {
	t.Helper()
	args := []string{"qemu-io", "-f", "raw", "-t", "none", "-d", "unmap"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	return run(t, append(args, uri)...)
}

func mustIO(t *testing.T, uri string, commands ...string) {
	t.Helper()
	if r := qemuIO(t, uri, commands...); r.code != 0 || strings.Contains(r.out+r.err, "failed") {
		t.Fatalf("qemu-io %q: %v", commands, r)
	}
}

// saysWhy checks that status and log name a failed disk and the reason.
func saysWhy(t *testing.T, n *node, reason string) {
	t.Helper()
	r := n.adm("status", "r0")
	for _, w := range []string{reason, "polluxadm attach r0"} {
		if !strings.Contains(r.out, w) {
			t.Errorf("%s: status lacks %q: %v", n.name, w, r)
		}
	}
	if !strings.Contains(n.log(), reason) {
		t.Errorf("%s: the log lacks %q", n.name, reason)
	}
}

// The backing file of the Primary lies on a file system that fills up.
func TestE2EDiskFull(t *testing.T) {
	begin(t, "qemu-io")
	needRoot(t, "mount")
	p := configured(t, options{global: quick + " disk { on-io-error detach; }"})
	// What configured wrote goes to the small file system.
	res, toml := p.resource(p.a, quick+" disk { on-io-error detach; }"), settings(p.a.name)
	smallFS(t, p.a, "12m")
	p.a.write("pollux.toml", toml)
	p.a.write("r0.res", res)
	p.a.disk("disk.img", 32<<20)
	p.up()
	mustIO(t, p.a.uri("r0"), "write -P 1 0 20M", "flush", "read -P 1 0 20M")
	a := p.a.wait("the disk is given up", func(a adm.Resource) bool { return a.Volumes[0].Disk == "Diskless" })
	if a.Role != "Primary" || a.Connection != "Connected" || a.Volumes[0].PeerDisk != "UpToDate" {
		t.Errorf("alpha: %+v", a)
	}
	saysWhy(t, p.a, "no space left on device")
	// A diskless Primary works on.
	mustIO(t, p.a.uri("r0"), "write -P 2 20M 4M", "flush", "read -P 2 20M 4M", "read -P 1 0 20M")
	p.b.wait("the survivor knows", func(b adm.Resource) bool { return b.Volumes[0].PeerDisk == "Diskless" })

	// With room again the disk is attached and gets the difference.
	mustRun(t, "mount", "-o", "remount,size=64m", p.a.dir)
	p.a.must("attach", "r0")
	p.inSync()
	p.a.must("secondary", "r0")
	p.equalDisks("disk.img", usable32)
}

const usable32 = 32<<20 - 40<<10 // like usable64

// up makes metadata on both nodes, starts them, and makes alpha Primary.
func (p *pair) up() {
	p.t.Helper()
	for _, n := range []*node{p.a, p.b} {
		n.must("create-md", "r0")
		n.start()
	}
	p.wait("connected", func(a, b adm.Resource) bool { return a.Connection == "Connected" && b.Connection == "Connected" })
	p.a.must("primary", "--force", "r0")
	p.inSync()
}

// badDisk replaces a node's disk.img by one that answers with EIO as long as a
// file called "bad" exists beside it.
func badDisk(t *testing.T, n *node) (bad string) {
	t.Helper()
	needRoot(t, "nbdfuse")
	bad = n.path("bad")
	n.disk("real.img", 32<<20)
	if err := os.Remove(n.path("disk.img")); err != nil {
		t.Fatal(err)
	}
	n.write("disk.img", "")
	fuse := exec.Command("nbdfuse", n.path("disk.img"), "--command", "nbdkit", "-s", "--exit-with-parent", "--filter=error", "file", n.path("real.img"),
		"error=EIO", "error-rate=100%", "error-file="+bad)
	var out strings.Builder
	fuse.Stdout, fuse.Stderr = &out, &out
	if err := fuse.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { fuse.Wait(); close(ended) }() //nolint:errcheck // it is killed or unmounted
	// Cleanups run last first: polluxd, which has the file open, ends later than
	// this would wait; so the file system goes lazily.
	t.Cleanup(func() {
		run(t, "umount", "-l", n.path("disk.img"))
		fuse.Process.Kill() //nolint:errcheck // it may have ended
		<-ended
		if t.Failed() && out.Len() > 0 {
			t.Logf("nbdfuse: %s", out.String())
		}
	})
	poll(t, "nbdfuse serves", func() bool {
		fi, err := os.Stat(n.path("disk.img"))
		return err == nil && fi.Size() == 32<<20
	})
	return bad
}

func TestE2EDiskErrors(t *testing.T) {
	for _, tt := range []struct {
		name    string
		primary bool // the bad disk is the Primary's
		command string
	}{
		{"write on the Primary", true, "write -P 3 4M 64k"},
		{"read on the Primary", true, "read -P 9 1M 64k"},
		{"write on the Secondary", false, "write -P 3 4M 64k"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			begin(t, "qemu-io", "nbdfuse", "nbdkit")
			p := configured(t, options{global: quick + " disk { on-io-error detach; }"})
			sick := p.b
			if tt.primary {
				sick = p.a
			}
			bad := badDisk(t, sick)
			p.up()
			mustIO(t, p.a.uri("r0"), "write -P 9 1M 64k", "flush")
			if err := os.WriteFile(bad, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			mustRun(t, "dd", "status=none", "if="+sick.path("disk.img"), "iflag=nocache", "count=0") // reads shall go to the disk
			mustIO(t, p.a.uri("r0"), tt.command)
			sick.wait("the disk is given up", func(r adm.Resource) bool { return r.Volumes[0].Disk == "Diskless" })
			saysWhy(t, sick, "input/output error")
			mustIO(t, p.a.uri("r0"), "write -P 4 8M 1M", "flush", "read -P 4 8M 1M", "read -P 9 1M 64k")
			if err := os.Remove(bad); err != nil {
				t.Fatal(err)
			}
			sick.must("attach", "r0")
			p.inSync()
			p.a.stop()
			p.b.stop()
			equalFiles(t, p.other(sick).path("disk.img"), sick.path("real.img"), usable32)
		})
	}
}

func (p *pair) other(n *node) *node {
	if n == p.a {
		return p.b
	}
	return p.a
}

// Without a peer there is nothing to hide an error with: the client sees it.
func TestE2EDiskErrorAlone(t *testing.T) {
	begin(t, "qemu-io", "nbdfuse", "nbdkit")
	p := configured(t, options{global: quick + " disk { on-io-error detach; }"})
	bad := badDisk(t, p.a)
	p.up()
	mustIO(t, p.a.uri("r0"), "write -P 9 1M 64k", "flush")
	p.b.stop()
	p.a.wait("alone", func(a adm.Resource) bool { return a.Connection != "Connected" })
	if err := os.WriteFile(bad, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := qemuIO(t, p.a.uri("r0"), "write -P 3 4M 64k")
	if !strings.Contains(r.out+r.err, "Input/output error") {
		t.Errorf("the client does not see the error: %v", r)
	}
	saysWhy(t, p.a, "input/output error")
	if err := os.Remove(bad); err != nil {
		t.Fatal(err)
	}
	p.a.must("attach", "r0")
	p.b.start()
	p.inSync()
	mustIO(t, p.a.uri("r0"), "read -P 9 1M 64k", "write -P 5 4M 64k")
}
