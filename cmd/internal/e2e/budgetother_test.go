package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"testing"

	"github.com/pollux-project/pollux/cmd/internal/daemon"
	"github.com/pollux-project/pollux/protocol/adm"
)

// runInside starts the daemons of a pair inside the test, makes alpha Primary,
// and waits until both are in sync. They end with the test.
func (p *pair) runInside() {
	p.t.Helper()
	for _, n := range []*node{p.a, p.b} {
		n.must("create-md", "r0")
		ctx, stop := context.WithCancel(context.Background())
		ready, ended := make(chan struct{}), make(chan error, 1)
		go func() {
			ended <- daemon.Run(ctx, daemon.Options{Settings: n.path("pollux.toml"), Ready: func() { close(ready) }})
		}()
		p.t.Cleanup(func() {
			stop()
			if err := <-ended; err != nil {
				p.t.Errorf("%s: %v", n.name, err)
			}
		})
		select {
		case <-ready:
		case err := <-ended:
			ended <- err
			p.t.Fatalf("%s: the daemon ended: %v", n.name, err)
		}
	}
	p.wait("connected", func(a, b adm.Resource) bool { return a.Connection == "Connected" && b.Connection == "Connected" })
	p.a.must("primary", "--force", "r0")
	p.inSync()
}

// allocsPerWrite counts the heap allocations of both nodes and of the client,
// which makes none: everything from the NBD socket to the other node's disk and back.
func allocsPerWrite(t *testing.T, p *pair, depth int) map[string]float64 {
	t.Helper()
	c, err := newBurstClient(p.a.path("nbd"), depth)
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	write := func(n int) {
		if err := c.write(n); err != nil {
			t.Fatal(err)
		}
	}
	write(16384) // tables, rings and pools reach their size
	const writes = 16384
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	write(writes)
	runtime.ReadMemStats(&after)
	return map[string]float64{fmt.Sprintf("allocations/qd%d", depth): float64(after.Mallocs-before.Mallocs) / writes}
}

var collected = regexp.MustCompile(`Collected : (\d+)`)

// instructionsPerWrite counts those of one write through both nodes' cores, from
// the request to the acknowledgement of its epoch: valgrind runs the
// core's benchmark for two numbers of writes, and the difference counts. It has
// no clock in it, no socket and no goroutine; the runtime takes the code that
// runs on any processor of the architecture.
func instructionsPerWrite(t *testing.T) map[string]float64 {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Logf("instructions: left out: the budget is one for amd64, this is %s", runtime.GOARCH)
		return nil
	}
	if _, err := exec.LookPath("valgrind"); err != nil && os.Getenv("CI") != "true" {
		t.Log("instructions: left out: valgrind is not installed (scripts/bootstrap test would install it)")
		return nil
	}
	binary := filepath.Join(t.TempDir(), "core.test")
	mustRun(t, "go", "test", "-c", "-o", binary, "../../../replication")
	const writes = 4096
	count := func(n int) float64 {
		cmd := exec.Command("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", binary,
			"-test.run=^$", "-test.bench=^BenchmarkWrite$", fmt.Sprintf("-test.benchtime=%dx", n))
		cmd.Dir = "../../../replication"
		cmd.Env = append(os.Environ(), "GOGC=off", "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1,cpu.all=off")
		out, err := cmd.CombinedOutput()
		found := collected.FindSubmatch(out)
		if err != nil || found == nil {
			t.Fatalf("valgrind: %v\n%s", err, out)
		}
		sum, err := strconv.ParseFloat(string(found[1]), 64)
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	return map[string]float64{"instructions/core": (count(2*writes) - count(writes)) / writes}
}
