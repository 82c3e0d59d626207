package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A group is a memory cgroup, of version 1 or 2.
type group struct {
	t   *testing.T
	dir string
	v2  bool
}

// newGroup makes a cgroup with a limit in bytes, or skips.
func newGroup(t *testing.T, name string, limit int64) *group {
	t.Helper()
	needRoot(t, "cgroups")
	g := &group{t: t}
	file := ""
	switch root := "/sys/fs/cgroup"; {
	case exists(root + "/memory/memory.limit_in_bytes"):
		g.dir, file = root+"/memory", "memory.limit_in_bytes"
	case strings.Contains(readText(root+"/cgroup.subtree_control"), "memory"):
		g.dir, g.v2, file = root, true, "memory.max"
	default:
		t.Skip("no memory controller of cgroups here")
	}
	g.dir = filepath.Join(g.dir, fmt.Sprintf("pollux-e2e-%d-%s", os.Getpid(), name))
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		t.Skipf("cgroups can't be made here: %v", err)
	}
	t.Cleanup(func() {
		// Its last process may not be gone yet.
		poll(t, "the cgroup is empty", func() bool { return os.Remove(g.dir) == nil })
	})
	if err := os.WriteFile(filepath.Join(g.dir, file), []byte(strconv.FormatInt(limit, 10)), 0o644); err != nil {
		t.Fatal(err)
	}
	return g
}

// wrap starts a program inside the group.
func (g *group) wrap() []string {
	return []string{"sh", "-c", `echo $$ > "$0"/cgroup.procs && exec "$@"`, g.dir}
}

// kills is how many processes the kernel has killed in the group.
func (g *group) kills() int {
	text := readText(g.dir + "/memory.events")
	if !g.v2 {
		text = readText(g.dir + "/memory.oom_control")
	}
	for line := range strings.Lines(text) {
		if n, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return atoi(g.t, n)
		}
	}
	g.t.Errorf("no count of killed processes in %q", text)
	return 0
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// readText is a file's text, or nothing.
func readText(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b)
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// peakKiB is the most memory that polluxd has had resident.
func (n *node) peakKiB() int {
	n.t.Helper()
	for line := range strings.Lines(readText(fmt.Sprintf("/proc/%d/status", n.proc.cmd.Process.Pid))) {
		if s, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			return atoi(n.t, strings.TrimSuffix(strings.TrimSpace(s), " kB"))
		}
	}
	n.t.Fatalf("%s: no VmHWM", n.name)
	return 0
}

// cpu is the processor time that polluxd has used.
func (n *node) cpu() time.Duration {
	n.t.Helper()
	total := time.Duration(0)
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", n.proc.cmd.Process.Pid))
	if err != nil || len(tasks) == 0 {
		n.t.Fatalf("%s: no tasks: %v", n.name, err)
	}
	for _, f := range tasks {
		if fields := strings.Fields(readText(f)); len(fields) > 0 {
			total += time.Duration(atoi(n.t, fields[0])) // ns on a processor
		}
	}
	return total
}

// With 96 MiB for the process and its page cache, buffered writes must be
// written back while polluxd serves them.
func TestE2EMemoryTight(t *testing.T) {
	begin(t, "fio")
	o := options{size: 256 << 20, global: "net { ping-int 10; }", settings: "[resource.r0]\nio = \"buffered\"\n"}
	var groups [2]*group
	for i, name := range []string{"alpha", "bravo"} {
		groups[i] = newGroup(t, name, 96<<20)
		o.wrap[i] = groups[i].wrap()
	}
	p := newPair(t, o)
	r := run(t, "fio", "--name=load", "--ioengine=nbd", "--uri="+p.a.uri("r0"), "--rw=randwrite", "--bsrange=4k-1m", "--iodepth=64",
		"--size=250m", "--io_size=500m", "--time_based=0", "--verify=crc32c", "--verify_backlog=256", "--aux-path="+t.TempDir(), "--randseed=1")
	if r.code != 0 {
		t.Fatalf("fio: %v", r)
	}
	p.inSync()
	for i, n := range []*node{p.a, p.b} {
		if k := groups[i].kills(); k != 0 {
			t.Errorf("%s: the kernel has killed %d processes", n.name, k)
		}
		const bound = 48<<10 + 32 // KiB: 48 MiB and 32 KiB for each begun GiB
		if kib := n.peakKiB(); kib > bound {
			t.Errorf("%s: %d KiB resident, the bound is %d", n.name, kib, bound)
		} else {
			t.Logf("%s: %d KiB resident at most", n.name, kib)
		}
	}
	p.a.must("secondary", "r0")
	p.equalDisks("disk.img", 256<<20-48<<10)
}

// A connected resource without work uses no processor time worth the name.
func TestE2EIdle(t *testing.T) {
	begin(t)
	p := newPair(t, options{})
	// What the resync has left to do ends first.
	const window, most = 8 * time.Second, 20 * time.Millisecond
	time.Sleep(2 * time.Second)
	a, b := p.a.cpu(), p.b.cpu()
	time.Sleep(window)
	for _, x := range []struct {
		n    *node
		used time.Duration
	}{{p.a, p.a.cpu() - a}, {p.b, p.b.cpu() - b}} {
		if x.used > most {
			t.Errorf("%s used %v of processor time in %v", x.n.name, x.used, window)
		}
		t.Logf("%s used %v in %v", x.n.name, x.used, window)
	}
}
