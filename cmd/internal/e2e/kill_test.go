package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// The load writes here only, so that "the difference" is a small part of the disk.
const (
	loadBytes   = 8 << 20
	extentBytes = 4 << 20 // of the activity log
)

// quick makes the nodes find each other again soon.
const quick = "net { connect-int 3; ping-int 3; timeout 20; }"

// load is a fio that writes blocks with checksums for a while.
type load struct {
	t    *testing.T
	uri  string
	dir  string
	cmd  *exec.Cmd
	out  strings.Builder
	done chan struct{}
	err  error // of the process, when done is closed
}

// fioArgs are those of the writer and of the reader that verifies later.
func (l *load) fioArgs(extra ...string) []string {
	return append([]string{
		"--name=load", "--ioengine=nbd", "--uri=" + l.uri, "--bs=4k", "--iodepth=16", fmt.Sprintf("--size=%d", loadBytes),
		"--rw=randwrite", "--randseed=4711", "--verify=crc32c", "--aux-path=" + l.dir, "--group_reporting",
	}, extra...)
}

// startLoad starts fio on an NBD address. It writes the area that many times at
// a rate that lasts about the given time.
func startLoad(t *testing.T, uri string, passes int, lasts time.Duration) *load {
	t.Helper()
	l := &load{t: t, uri: uri, dir: t.TempDir(), done: make(chan struct{})}
	iops := int(float64(passes*loadBytes/4096) / lasts.Seconds())
	l.cmd = exec.Command("fio", l.fioArgs("--do_verify=0", fmt.Sprintf("--loops=%d", passes), fmt.Sprintf("--rate_iops=%d", iops))...)
	l.cmd.Stdout, l.cmd.Stderr = &l.out, &l.out
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		l.err = l.cmd.Wait()
		close(l.done)
	}()
	t.Cleanup(func() { l.cmd.Process.Kill() }) //nolint:errcheck // it may have ended
	return l
}

// over reports whether the writer has ended.
func (l *load) over() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// end waits for the writer; every write must have been acknowledged.
func (l *load) end() {
	l.t.Helper()
	select {
	case <-l.done:
		if l.err != nil {
			l.t.Fatalf("fio saw an error: %v\n%s", l.err, l.out.String())
		}
	case <-time.After(3 * waitLimit):
		l.t.Fatalf("fio does not end\n%s", l.out.String())
	}
}

// verify reads everything back, from whatever address, and checks it.
func (l *load) verify(uri string) {
	l.t.Helper()
	l.uri = uri
	r := run(l.t, append([]string{"fio"}, l.fioArgs("--verify_only=1", "--do_verify=1", "--verify_fatal=1")...)...)
	if r.code != 0 {
		l.t.Fatalf("fio verify: %v", r)
	}
}

// written waits until the load has begun to write on alpha.
func (p *pair) written() {
	p.t.Helper()
	p.a.wait("the load writes", func(a adm.Resource) bool { return a.Volumes[0].WrittenBytes > 0 })
}

// A moment at random, short enough that the load is still running.
func randomMoment() time.Duration { return time.Duration(100+rand.IntN(700)) * time.Millisecond }

func TestE2EKillSecondary(t *testing.T) {
	begin(t, "fio")
	p := newPair(t, options{size: 64 << 20, global: quick})
	l := startLoad(t, p.a.uri("r0"), 2, 8*time.Second)
	p.written()
	for range 2 {
		time.Sleep(randomMoment())
		p.b.kill()
		time.Sleep(randomMoment())
		p.b.start()
		p.wait("connected again", func(a, _ adm.Resource) bool { return a.Connection == "Connected" })
	}
	time.Sleep(randomMoment() / 4)
	p.b.kill()
	l.end()
	missing := p.a.status().Volumes[0].OutOfSyncBytes
	if missing == 0 || missing > loadBytes {
		t.Errorf("%d bytes are out of sync after writes to %d bytes", missing, loadBytes)
	}
	p.b.start()
	p.inSync()
	// Bravo adds what it had resynced shortly before and not recorded yet.
	if got := p.b.status().Volumes[0].ReceivedBytes; got < missing || got > loadBytes+64<<10 {
		t.Errorf("%d bytes were resynced, %d were out of sync", got, missing)
	}
	l.verify(p.a.uri("r0"))
	p.a.must("secondary", "r0")
	p.b.must("primary", "r0")
	l.verify(p.b.uri("r0"))
	p.equalDisks("disk.img", usable64)
}

// usable64 is what a disk of 64 MiB offers: the rest is metadata (drbd84-protocol,
// section 9: superblock 4 KiB, activity log 32 KiB, bitmap 4 KiB).
const usable64 = 64<<20 - 40<<10

// proxy puts qemu's NBD client, which reconnects and repeats as that of a VM
// does, between a client and a node.
func proxy(t *testing.T, n *node) (uri string) {
	t.Helper()
	return proxyOf(t, n, "r0")
}

// proxyOf is proxy for an export of that name.
func proxyOf(t *testing.T, n *node, export string) (uri string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "nbd")
	cmd := exec.Command("qemu-storage-daemon",
		"--blockdev", "driver=nbd,node-name=pollux,server.type=unix,server.path="+n.path("nbd")+",export="+export+",reconnect-delay=60,open-timeout=10",
		"--nbd-server", "addr.type=unix,addr.path="+socket,
		"--export", "type=nbd,id=e,node-name=pollux,name=r0,writable=on")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill() //nolint:errcheck // it may have ended
		cmd.Wait()         //nolint:errcheck // killed
		os.RemoveAll(dir)
		if t.Failed() && out.Len() > 0 {
			t.Logf("qemu-storage-daemon: %s", out.String())
		}
	})
	poll(t, "qemu-storage-daemon serves", func() bool { _, err := os.Stat(socket); return err == nil })
	return "nbd+unix:///r0?socket=" + socket
}

// A former Primary goes on after a restart of its daemon in the same boot, and
// the clients do not notice more than a pause.
func TestE2EKillPrimary(t *testing.T) {
	begin(t, "fio", "qemu-storage-daemon")
	p := newPair(t, options{size: 64 << 20, global: quick})
	through := proxy(t, p.a)
	l := startLoad(t, through, 4, 4*time.Second)
	for i := range 3 {
		before := p.b.status().Volumes[0].ReceivedBytes
		p.a.wait("the load writes, or is over", func(a adm.Resource) bool { return a.Volumes[0].WrittenBytes > 0 || l.over() })
		if l.over() { // a slow machine took its time for the restarts
			if i == 0 {
				t.Fatal("the load ended before the first restart")
			}
			break
		}
		time.Sleep(randomMoment())
		p.a.kill()
		p.b.wait("the peer is lost", func(b adm.Resource) bool { return b.Connection != "Connected" })
		p.a.start()
		p.a.wait("Primary again", func(a adm.Resource) bool { return a.Role == "Primary" && a.WaitsToResume == "" })
		p.wait("resynced", func(a, b adm.Resource) bool { return healthy(a) && healthy(b) })
		// All that the load can write, and the extents that it has made hot.
		if got := p.b.status().Volumes[0].ReceivedBytes - before; got > 4*loadBytes+3*extentBytes {
			t.Errorf("%d bytes went to the peer", got)
		}
	}
	l.end()
	p.inSync()
	l.verify(through)
	if !strings.Contains(readText(p.a.path("log")), "activity log applied after a crash") {
		t.Error("no restart has found anything in the activity log")
	}
	p.equalDisks("disk.img", usable64)
}

// Both daemons at once, with writes under way.
func TestE2EKillBoth(t *testing.T) {
	begin(t, "fio", "qemu-storage-daemon")
	p := newPair(t, options{size: 64 << 20, global: quick})
	through := proxy(t, p.a)
	l := startLoad(t, through, 4, 3*time.Second)
	p.written()
	time.Sleep(randomMoment())
	p.a.kill()
	p.b.kill()
	p.a.start()
	if st := p.a.status(); st.Role == "Primary" || st.WaitsToResume == "" {
		t.Errorf("a former Primary, not the only writer, goes on without its peer: %+v", st)
	}
	if r := run(t, "qemu-io", "-f", "raw", "-c", "read 0 4k", p.a.uri("r0")); r.code == 0 || !strings.Contains(r.err, "goes on as soon as bravo is connected") {
		t.Errorf("a frozen export does not say why it refuses: %v", r)
	}
	if out := p.a.adm("status", "r0"); !strings.Contains(out.out, "was Primary before polluxd was restarted") {
		t.Errorf("status does not say why the resource is stopped: %v", out)
	}
	p.b.start()
	p.a.wait("Primary again", func(a adm.Resource) bool { return a.Role == "Primary" })
	l.end()
	p.inSync()
	l.verify(through)
	p.equalDisks("disk.img", usable64)
}

// After a reboot a former Primary is Secondary and waits for its peer.
func TestE2EReboot(t *testing.T) {
	begin(t, "qemu-io")
	p := newPair(t, options{global: quick})
	mustRun(t, "qemu-io", "-f", "raw", "-c", "write -P 7 0 64k", p.a.uri("r0"))
	p.a.kill()
	p.a.otherBoot("state/r0.role")
	p.a.start()
	p.inSync()
	if st := p.a.status(); st.Role != "Secondary" || st.WaitsToResume != "" {
		t.Errorf("after a reboot: %+v", st)
	}
	// The other node may take over, and has the data.
	p.b.must("primary", "r0")
	mustRun(t, "qemu-io", "-f", "raw", "-r", "-c", "read -P 7 0 64k", p.b.uri("r0"))
}

// otherBoot has a record of the state directory, which names the boot that it is
// of, be of another one.
func (n *node) otherBoot(file string) {
	n.t.Helper()
	record := n.path(file)
	b, err := os.ReadFile(record)
	if err != nil {
		n.t.Fatalf("nothing is remembered: %v", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		n.t.Fatal(err)
	}
	id := strings.TrimSpace(string(boot))
	if !strings.Contains(string(b), id) {
		n.t.Fatalf("%s does not name the boot %s: %s", record, id, b)
	}
	other := strings.ReplaceAll(string(b), id, "11111111-2222-3333-4444-555555555555")
	if err := os.WriteFile(record, []byte(other), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// The Primary dies for good; the survivor has every acknowledged block, and
// when the first node is back it gets the difference only.
func TestE2EFailover(t *testing.T) {
	begin(t)
	p := newPair(t, options{size: 64 << 20, global: quick})
	w := startWriter(t, p.a, loadBytes)
	time.Sleep(randomMoment())
	p.a.kill()
	w.end()
	p.b.wait("the peer is lost", func(b adm.Resource) bool { return b.Connection != "Connected" })
	p.b.must("primary", "r0")
	w.check(p.b)
	again := startWriter(t, p.b, loadBytes)
	time.Sleep(200 * time.Millisecond)
	again.stop()
	p.a.start()
	p.inSync()
	if st := p.a.status(); st.Role != "Secondary" {
		t.Errorf("the first node came back as %s", st.Role)
	}
	if got := p.a.status().Volumes[0].ReceivedBytes; got > loadBytes+extentBytes {
		t.Errorf("%d bytes were resynced after writes to %d bytes", got, loadBytes)
	}
	again.check(p.b)
	p.equalDisks("disk.img", usable64)
}
