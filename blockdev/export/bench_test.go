package export_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/blockdev/export"
)

// BenchmarkAgainstNbdkit runs fio's 4 KiB random writes against this export
// and nbdkit's file plugin in interleaved rounds, and reports the ratio of the
// medians, and the CPU time per
// request. One iteration is one round of a second each:
//
//	go test -run '^$' -bench AgainstNbdkit -benchtime 5x ./blockdev/export
func BenchmarkAgainstNbdkit(b *testing.B) {
	const size = 256 << 20
	for _, rw := range []string{"randwrite", "randread"} {
		for _, depth := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/qd%d", rw, depth), func(b *testing.B) {
				dev, _ := fileDevice(b, size, false)
				r := newRig(b, dev, export.Config{})
				_, file := fileDevice(b, size, false)
				kit, pid := startNbdkit(b, file)
				var ours, theirs, ourCPU, theirCPU []float64
				for b.Loop() {
					iops, cpu := fio(b, r.uri("web-root"), rw, depth, os.Getpid())
					ours, ourCPU = append(ours, iops), append(ourCPU, cpu)
					iops, cpu = fio(b, kit, rw, depth, pid)
					theirs, theirCPU = append(theirs, iops), append(theirCPU, cpu)
				}
				b.ReportMetric(median(ourCPU), "cpu-us/req")
				b.ReportMetric(median(theirCPU), "nbdkit-cpu-us/req")
				b.ReportMetric(median(ours), "iops")
				b.ReportMetric(median(theirs), "nbdkit-iops")
				b.ReportMetric(median(ours)/median(theirs), "ratio")
			})
		}
	}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// cpuTime is what a process has used so far, in microseconds.
func cpuTime(b *testing.B, pid int) float64 {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // from field 3 on
	user, err1 := strconv.ParseFloat(f[11], 64)
	system, err2 := strconv.ParseFloat(f[12], 64)
	if err1 != nil || err2 != nil {
		b.Fatalf("stat: %s", stat)
	}
	return (user + system) * 1e6 / 100 // USER_HZ
}

func startNbdkit(b *testing.B, file string) (uri string, pid int) {
	socket := filepath.Join(b.TempDir(), "kit")
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, oracle(b, "nbdkit"), "-f", "-U", socket, "file", file)
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // killed: always an error
	})
	uri = "nbd+unix:///?socket=" + socket
	waitFor(b, func() bool { return exec.Command("nbdinfo", "--size", uri).Run() == nil })
	return uri, cmd.Process.Pid
}

// fio runs one round and returns its speed and the server's CPU time per
// request, in microseconds.
func fio(b *testing.B, uri, rw string, depth, server int) (iops, cpu float64) {
	before := cpuTime(b, server)
	result := filepath.Join(b.TempDir(), "fio.json")
	run(b, "fio", "--name=b", "--ioengine=nbd", "--uri="+uri, "--rw="+rw, "--bs=4k", fmt.Sprintf("--iodepth=%d", depth),
		"--size=256M", "--time_based", "--runtime=1", "--norandommap", "--output-format=json", "--output="+result)
	out, err := os.ReadFile(result)
	if err != nil {
		b.Fatal(err)
	}
	var f struct {
		Jobs []struct {
			Read, Write struct {
				IOPS  float64
				Total float64 `json:"total_ios"`
			}
		}
	}
	if err := json.Unmarshal(out, &f); err != nil || len(f.Jobs) != 1 {
		b.Fatalf("fio's result: %v: %s", err, out)
	}
	j := f.Jobs[0]
	return j.Read.IOPS + j.Write.IOPS, (cpuTime(b, server) - before) / (j.Read.Total + j.Write.Total)
}
