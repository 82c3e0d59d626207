package bench

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/pollux-project/pollux/bench/result"
)

// workload returns one with its name, such as "randwrite-4k-qd32-buffered" or
// "randwrite-4k-qd32x4-buffered" over 4 connections. depth counts all
// connections together.
func workload(op, pattern string, blockBytes, depth, connections int, class string) result.Workload {
	w := result.Workload{Op: op, Pattern: pattern, BlockBytes: blockBytes, Depth: depth, Connections: connections, Class: class}
	w.Name = nameOf(w)
	return w
}

// mixed is workload with so many per cent of reads.
func mixed(readPercent int, pattern string, blockBytes, depth, connections int, class string) result.Workload {
	w := workload(result.OpMixed, pattern, blockBytes, depth, connections, class)
	w.ReadPercent = readPercent
	w.Name = nameOf(w)
	return w
}

// nameOf is the short key of a workload; workloads that differ have different
// names.
func nameOf(w result.Workload) string {
	pattern := map[string]string{result.PatternRandom: "rand", result.PatternSequential: "seq"}[w.Pattern]
	op := w.Op
	if w.Op == result.OpMixed {
		op = fmt.Sprintf("mixed%d", w.ReadPercent)
	}
	over := ""
	if w.Connections > 1 {
		over = fmt.Sprintf("x%d", w.Connections)
	}
	return fmt.Sprintf("%s%s-%s-qd%d%s-%s", pattern, op, blockName(w.BlockBytes), w.Depth, over, w.Class)
}

// blockName is a size as fio and people write it: 4k, 1m, 512.
func blockName(bytes int) string {
	switch {
	case bytes >= mib && bytes%mib == 0:
		return fmt.Sprintf("%dm", bytes/mib)
	case bytes >= 1024 && bytes%1024 == 0:
		return fmt.Sprintf("%dk", bytes/1024)
	}
	return fmt.Sprint(bytes)
}

// ParseBytes takes a size as people write it: 4096, 4k, 1M, 2MiB.
func ParseBytes(text string) (int, error) {
	number, unit := text, 1
	lower := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(text), "b"), "i")
	for suffix, bytes := range map[string]int{"k": 1 << 10, "m": 1 << 20} {
		if rest, ok := strings.CutSuffix(lower, suffix); ok {
			number, unit = rest, bytes
		}
	}
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || n > math.MaxInt32/unit {
		return 0, fmt.Errorf("%q is no size: write 4096, 4k or 1m", text)
	}
	return n * unit, nil
}

// NewWorkload returns a workload with its name; what is wrong with it, Validate
// of Config says. Several connections share the depth.
func NewWorkload(op, pattern string, blockBytes, depth, connections int, class string, readPercent int) result.Workload {
	if op == result.OpMixed {
		return mixed(readPercent, pattern, blockBytes, depth, connections, class)
	}
	return workload(op, pattern, blockBytes, depth, connections, class)
}
