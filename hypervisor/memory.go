package hypervisor

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// HostMemory returns this machine's memory, and what of it new programs can
// have without swapping, both in bytes. Source: MemTotal and MemAvailable of
// /proc/meminfo.
func HostMemory() (total, available int64, err error) { return hostMemory("/proc/meminfo") }

func hostMemory(path string) (total, available int64, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, fmt.Errorf("look at this machine's memory: %w", err)
	}
	total, available = -1, -1
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "kB" {
			continue
		}
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil || n < 0 || n > 1<<52 {
			continue
		}
		switch f[0] {
		case "MemTotal:":
			total = n << 10
		case "MemAvailable:":
			available = n << 10
		}
	}
	if total < 0 || available < 0 {
		return 0, 0, fmt.Errorf("look at this machine's memory: %s has no MemTotal or no MemAvailable", path)
	}
	return total, available, nil
}
