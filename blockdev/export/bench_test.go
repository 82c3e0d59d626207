package export_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/pollux-project/pollux/blockdev/export"
)

// BenchmarkAgainstNbdkit runs fio's 4 KiB random writes against this export
// and nbdkit's file plugin in interleaved rounds, and reports the ratio of the
// medians. One iteration is one round of a second each:
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
				kit := startNbdkit(b, file)
				var ours, theirs []float64
				for b.Loop() {
					ours = append(ours, fioIOPS(b, r.uri("web-root"), rw, depth))
					theirs = append(theirs, fioIOPS(b, kit, rw, depth))
				}
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

func startNbdkit(b *testing.B, file string) string {
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
	uri := "nbd+unix:///?socket=" + socket
	waitFor(b, func() bool { return exec.Command("nbdinfo", "--size", uri).Run() == nil })
	return uri
}

func fioIOPS(b *testing.B, uri, rw string, depth int) float64 {
	result := filepath.Join(b.TempDir(), "fio.json")
	run(b, "fio", "--name=b", "--ioengine=nbd", "--uri="+uri, "--rw="+rw, "--bs=4k", fmt.Sprintf("--iodepth=%d", depth),
		"--size=256M", "--time_based", "--runtime=1", "--norandommap", "--output-format=json", "--output="+result)
	out, err := os.ReadFile(result)
	if err != nil {
		b.Fatal(err)
	}
	var f struct {
		Jobs []struct {
			Read, Write struct{ IOPS float64 }
		}
	}
	if err := json.Unmarshal(out, &f); err != nil || len(f.Jobs) != 1 {
		b.Fatalf("fio's result: %v: %s", err, out)
	}
	return f.Jobs[0].Read.IOPS + f.Jobs[0].Write.IOPS
}
