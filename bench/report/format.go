package report

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/pollux-project/pollux/bench/result"
)

// significant writes v with three digits that count, 12,345 with all of the
// integer part.
func significant(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100 || a == 0:
		return thousands(v)
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a >= 1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	default:
		return strconv.FormatFloat(v, 'g', 2, 64)
	}
}

// thousands writes v as 12,345.
func thousands(v float64) string {
	digits := strconv.FormatFloat(math.Abs(math.Round(v)), 'f', 0, 64)
	var b strings.Builder
	if v <= -0.5 {
		b.WriteByte('-')
	}
	for i, d := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(d)
	}
	return b.String()
}

// micros writes a latency; "-" for one that is not known.
func micros(us float64) string {
	switch {
	case us <= 0 || math.IsNaN(us):
		return "-"
	case us < 999.5:
		return significant(us) + " µs"
	case us < 999.5e3:
		return significant(us/1e3) + " ms"
	default:
		return significant(us/1e6) + " s"
	}
}

// axisMicros is micros without digits that a round figure does not need.
func axisMicros(us float64) string {
	switch {
	case us == 0:
		return "0"
	case us < 1e3:
		return trimmed(us) + " µs"
	case us < 1e6:
		return trimmed(us/1e3) + " ms"
	default:
		return trimmed(us/1e6) + " s"
	}
}

func trimmed(v float64) string { return strconv.FormatFloat(v, 'g', 4, 64) }

// axisCount writes 20,000 as 20k.
func axisCount(v float64) string {
	switch a := math.Abs(v); {
	case a >= 1e6:
		return trimmed(v/1e6) + "M"
	case a >= 1e3:
		return trimmed(v/1e3) + "k"
	default:
		return trimmed(v)
	}
}

// byteSize writes bytes with a binary unit.
func byteSize(v float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i := 0
	for ; math.Abs(v) >= 1024 && i < len(units)-1; i++ {
		v /= 1024
	}
	if v == math.Trunc(v) && math.Abs(v) < 1024 {
		return strconv.FormatFloat(v, 'f', 0, 64) + " " + units[i]
	}
	return significant(v) + " " + units[i]
}

// quantity writes a Measure's value with its unit.
func quantity(v float64, unit string) string {
	switch unit {
	case "bytes", "B":
		return byteSize(v)
	case "us", "µs":
		return micros(v)
	case "ms":
		return micros(v * 1e3)
	case "s":
		return micros(v * 1e6)
	case "%":
		return significant(v) + " %"
	case "x":
		return ratio(v)
	case "", "ratio":
		return significant(v)
	default:
		return significant(v) + " " + unit
	}
}

// axisQuantity writes round values of a unit.
func axisQuantity(unit string) func(float64) string {
	factor := map[string]float64{"us": 1, "µs": 1, "ms": 1e3, "s": 1e6}[unit]
	return func(v float64) string {
		switch {
		case factor > 0:
			return axisMicros(v * factor)
		case unit == "bytes":
			return byteSize(v)
		case unit == "x":
			return trimmed(v) + "×"
		case unit == "" || unit == "ratio":
			return axisCount(v)
		default:
			return axisCount(v) + " " + unit
		}
	}
}

// ratio writes a factor, such as 1.42×.
func ratio(v float64) string {
	if v >= 10 {
		return strconv.FormatFloat(v, 'f', 1, 64) + "×"
	}
	return strconv.FormatFloat(v, 'f', 2, 64) + "×"
}

// intervalText is a ratio with its 95 % interval, if there were rounds enough.
func intervalText(mid float64, i result.Interval) string {
	if math.IsNaN(mid) {
		return ""
	}
	if !i.Sure() {
		return ratio(mid)
	}
	return fmt.Sprintf("%s (%.2f–%.2f)", ratio(mid), i.Low, i.High)
}

// percent writes a factor as a change: 1.1 is +10.0 %.
func percent(factor float64) string {
	return fmt.Sprintf("%+.1f %%", 100*(factor-1))
}

// workloadTitle names a workload for people, such as "4 KiB random write,
// buffered, QD 32, 4 connections".
func workloadTitle(w *result.Workload) string {
	return fmt.Sprintf("%s, %s", seriesTitle(w), depthTitle(w))
}

func depthTitle(w *result.Workload) string {
	if w.Connections > 1 {
		return fmt.Sprintf("QD %d over %d connections", w.Depth, w.Connections)
	}
	return fmt.Sprintf("QD %d", w.Depth)
}

// seriesTitle is workloadTitle without depth and connections.
func seriesTitle(w *result.Workload) string {
	op := w.Op
	if w.Op == result.OpMixed {
		op = fmt.Sprintf("mixed, %d %% reads", w.ReadPercent)
	}
	title := fmt.Sprintf("%s %s %s", byteSize(float64(w.BlockBytes)), w.Pattern, op)
	switch w.Class {
	case result.ClassDirect:
		return title + ", O_DIRECT"
	case result.ClassFlush:
		return title + ", flush after each"
	case result.ClassFUA:
		return title + ", FUA"
	default:
		return title + ", " + w.Class
	}
}

// throughput reports whether bytes per second say more about a workload than
// operations per second.
func throughput(w *result.Workload) bool { return w.BlockBytes >= 64<<10 }

// speed is a summary's throughput or IOPS, and the unit's name.
func speed(w *result.Workload, iops float64) float64 {
	if throughput(w) {
		return iops * float64(w.BlockBytes) / (1 << 20)
	}
	return iops
}

func speedUnit(w *result.Workload) string {
	if throughput(w) {
		return "MiB/s"
	}
	return "IOPS"
}
