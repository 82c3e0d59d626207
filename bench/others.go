package bench

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/bench/result"
)

// The bounds beyond which others' work is said to have disturbed (our own). A
// sample is loaded when others, or the host that a virtual machine shares, took
// more than loadedCPUs; a run when more than loadedShare of its samples were.
const (
	loadedCPUs  = 0.20
	loadedShare = 0.10
)

// others measures the CPU time of everybody else while a sample is taken: what
// the machine was busy, less this program, its servers and its children.
type others struct {
	lab          *lab
	busy, ours   time.Duration
	at           time.Time
	took, theirs time.Duration
	err          error
}

func watchOthers(l *lab) *others { return &others{lab: l} }

func (o *others) begin() {
	o.at = time.Now()
	o.busy, o.ours, o.err = o.read()
}

func (o *others) end() {
	busy, ours, err := o.read()
	o.took, o.err = time.Since(o.at), errors.Join(o.err, err)
	o.theirs = (busy - o.busy) - (ours - o.ours)
}

// cpus is how many CPUs others kept busy; 0 if it can't be told.
func (o *others) cpus() float64 {
	if o.err != nil || o.took <= 0 || o.theirs <= 0 {
		return 0
	}
	return o.theirs.Seconds() / o.took.Seconds()
}

func (o *others) read() (busy, ours time.Duration, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	if busy, err = busyTime(string(b)); err != nil {
		return 0, 0, err
	}
	ticks, err := cpuTicks(o.lab.running)
	if err != nil {
		return 0, 0, err
	}
	ours = time.Duration(ticks) * tick
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		used, err := cpuTime(who)
		if err != nil {
			return 0, 0, err
		}
		ours += used
	}
	return busy, ours, nil
}

// cpuTime is what this program, or its children that have ended, have used.
func cpuTime(who int) (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(who, &u); err != nil {
		return 0, err
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

// busyTime is what all CPUs spent for processes and what the host took from
// them. Interrupts are left out: they are nobody's, and mostly the benchmark's.
func busyTime(stat string) (time.Duration, error) {
	line, _, _ := strings.Cut(stat, "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	sum := int64(0)
	for _, i := range []int{1, 2, 3, 8} { // user, nice, system, steal
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		sum += n
	}
	return time.Duration(sum) * tick, nil
}

// judgeLoad says whether the machine was at something else.
func (s *session) judgeLoad() {
	if text := loadedText(s.out, runtime.NumCPU()); text != "" {
		s.note("%s", text)
	}
}

// loadedText is the note about a loaded machine, "" if it was not.
func loadedText(run *result.Run, cpus int) string {
	loaded, worst := 0, 0.0
	for _, x := range run.Samples {
		if worst = max(worst, x.OthersCPUs); x.OthersCPUs > loadedCPUs {
			loaded++
		}
	}
	text := ""
	switch n := len(run.Samples); {
	case n > 0 && float64(loaded) > loadedShare*float64(n):
		text = fmt.Sprintf("during %d of %d samples others used more than %.1f of its %d CPUs (at most %.1f)", loaded, n, loadedCPUs, cpus, worst)
	case worst == 0 && run.Machine.LoadBefore > float64(cpus)/2:
		text = fmt.Sprintf("its load average was %.1f before the first figure", run.Machine.LoadBefore)
	default:
		return ""
	}
	return "the machine was loaded: " + text + ". Ratios suffer less than figures, but repeat the run on a quiet machine"
}
