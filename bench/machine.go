package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/bench/result"
)

// newRun is an empty result that knows the machine and the settings.
func newRun(ctx context.Context, cfg Config) *result.Run {
	r := &result.Run{
		Format: result.Format, Started: time.Now().UTC().Truncate(time.Second), Command: os.Args,
		Machine: result.Machine{CPUModel: cpuModel(), CPUs: runtime.NumCPU(), LoadBefore: loadAverage(), Filesystem: filesystem(cfg.Dir)},
		Settings: result.Settings{
			Rounds: cfg.Rounds, Seconds: cfg.Seconds, WarmupSeconds: cfg.Warmup, SizeBytes: int64(cfg.SizeMiB) * mib, Isolated: cfg.Isolated,
			DelayMicros: cfg.DelayMicros, BandwidthMbit: cfg.BandwidthMbit,
		},
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		r.Machine.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		r.Machine.MemoryBytes = int64(info.Totalram) * int64(info.Unit)
	}
	for _, program := range []string{filepath.Join(cfg.Bin, "polluxd"), "qemu-storage-daemon", "nbdkit", "fio"} {
		// A missing version is no reason to stop: everything else can be measured.
		if out, err := run(ctx, program, "--version"); err == nil {
			first, _, _ := strings.Cut(out, "\n")
			r.Machine.Versions = append(r.Machine.Versions, first)
		}
	}
	// polluxd's version ends with the commit that it was built from.
	if len(r.Machine.Versions) > 0 {
		_, r.Commit, _ = strings.Cut(r.Machine.Versions[0], "+")
	}
	return r
}

// loadAverage is the machine's over one minute; 0 if it can't be read.
func loadAverage() (load float64) {
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		fmt.Sscan(string(b), &load) //nolint:errcheck // decoration
	}
	return load
}

// cpuModel is what /proc/cpuinfo calls the first CPU.
func cpuModel() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if key, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// filesystem is the type and the source of what dir is on, as /proc/mounts has
// them; "" if that can't be told. An empty dir is that of temporary files.
func filesystem(dir string) string {
	if dir == "" {
		dir = os.TempDir()
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return ""
	}
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return ""
	}
	longest, found := -1, ""
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		below := dir == f[1] || strings.HasPrefix(dir, strings.TrimSuffix(f[1], "/")+"/")
		if below && len(f[1]) >= longest {
			longest, found = len(f[1]), f[2]+" on "+f[0]
		}
	}
	return found
}
