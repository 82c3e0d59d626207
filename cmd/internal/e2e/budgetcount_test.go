package e2e

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// countedBytes is the part of the volume that counted writes go to: four
// activity log extents, all of them warm after the first round.
const countedBytes = 16 << 20

// A burstClient is an NBD client whose work does not depend on timing: it sends
// depth writes in one call and sends nothing before all of them are answered.
type burstClient struct {
	conn    net.Conn
	out, in []byte
	depth   int
	block   int // of the next write
}

// newBurstClient opens r0 on a unix socket, for depth writes of 4 KiB at a time.
func newBurstClient(socket string, depth int) (*burstClient, error) {
	conn, err := openNBD(socket, "r0")
	if err != nil {
		return nil, err
	}
	c := &burstClient{conn: conn, depth: depth, out: make([]byte, depth*(28+writerBlock)), in: make([]byte, 16*depth)}
	// One call must take a whole burst: otherwise the server may begin with a part of it.
	if err := conn.(*net.UnixConn).SetWriteBuffer(4 * len(c.out)); err != nil {
		return nil, err
	}
	return c, nil
}

// write sends n writes, a multiple of depth, and waits for their replies. It
// allocates nothing.
func (c *burstClient) write(n int) error {
	for range n / c.depth {
		for i := range c.depth {
			request(c.out[i*(28+writerBlock):][:28+writerBlock], uint64(i), c.block)
			c.block = (c.block + 7) % (countedBytes / writerBlock) // not sequential, and each block in turn
		}
		if _, err := c.conn.Write(c.out); err != nil {
			return err
		}
		if _, err := io.ReadFull(c.conn, c.in); err != nil {
			return err
		}
		for b := c.in; len(b) > 0; b = b[16:] {
			if e := binary.BigEndian.Uint32(b[4:]); e != 0 {
				return fmt.Errorf("write refused with NBD error %d", e)
			}
		}
	}
	return nil
}

// The groups of system calls: what moves data, what makes it durable, what
// waits and wakes, and the rest. clockCalls are left out: the runtime makes them
// by the clock, and the tracer is slow.
var (
	dataCalls  = strings.Fields("read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 sendto sendmsg recvfrom recvmsg io_submit")
	syncCalls  = strings.Fields("fsync fdatasync sync_file_range")
	sleepCalls = strings.Fields("futex epoll_wait epoll_pwait epoll_ctl io_getevents ppoll")
	clockCalls = strings.Fields("nanosleep clock_nanosleep sched_yield madvise mmap munmap timer_settime restart_syscall rt_sigreturn tgkill getpid")
)

func groupOf(call string) string {
	switch {
	case slices.Contains(dataCalls, call):
		return "data"
	case slices.Contains(syncCalls, call):
		return "sync"
	case slices.Contains(sleepCalls, call):
		return "sleep"
	case slices.Contains(clockCalls, call):
		return ""
	}
	return "other"
}

// countSyscalls traces polluxd of a node while work runs, and returns its calls
// by group.
func (n *node) countSyscalls(work func()) map[string]int {
	n.t.Helper()
	table := n.path("strace")
	cmd := exec.Command("strace", "-f", "-c", "-o", table, "-p", strconv.Itoa(n.proc.cmd.Process.Pid))
	said, err := cmd.StderrPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	lines := bufio.NewReader(said)
	first, err := lines.ReadString('\n') // "Process N attached with M threads"
	if err != nil || !strings.Contains(first, "attached") {
		cmd.Process.Kill() //nolint:errcheck // it has most likely ended
		cmd.Wait()         //nolint:errcheck // likewise
		n.t.Fatalf("strace of %s: %q, %v: it needs ptrace (root, or kernel.yama.ptrace_scope 0)", n.name, strings.TrimSpace(first), err)
	}
	work()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		n.t.Fatal(err)
	}
	io.Copy(io.Discard, lines) //nolint:errcheck // it only says that it detaches
	cmd.Wait()                 //nolint:errcheck // ends by the signal
	return sumSyscalls(n.t, readText(table))
}

// sumSyscalls reads the table of strace -c: time, seconds, usecs/call, calls,
// errors or nothing, name.
func sumSyscalls(t *testing.T, table string) map[string]int {
	t.Helper()
	sum := map[string]int{"data": 0, "sync": 0, "sleep": 0, "other": 0}
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) < 5 || fields[0] == "%" || strings.HasPrefix(fields[0], "-") || fields[len(fields)-1] == "total" {
			continue
		}
		if group := groupOf(fields[len(fields)-1]); group != "" {
			sum[group] += atoi(t, fields[3])
		}
	}
	if sum["data"] == 0 {
		t.Fatalf("strace has counted nothing:\n%s", table)
	}
	return sum
}

// syscallsPerWrite counts the calls of both nodes for writes at a depth, per write.
func syscallsPerWrite(t *testing.T, p *pair, depth, writes int) map[string]float64 {
	t.Helper()
	c, err := newBurstClient(p.a.path("nbd"), depth)
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	work := func(n int) func() {
		return func() {
			if err := c.write(n); err != nil {
				t.Fatal(err)
			}
		}
	}
	work(countedBytes / writerBlock)() // extents, pools and pages are warm
	per := map[string]float64{}
	var near map[string]int
	far := p.b.countSyscalls(func() { near = p.a.countSyscalls(work(writes)) })
	for node, sum := range map[string]map[string]int{"near": near, "far": far} {
		for group, calls := range sum {
			per[fmt.Sprintf("syscalls/qd%d/%s/%s", depth, node, group)] = float64(calls) / float64(writes)
		}
	}
	return per
}
