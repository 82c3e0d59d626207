package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/pollux-project/pollux/bench/result"
)

// guestsExperiment compares Pollux with what only a kernel has: DRBD itself
// and md RAID-1 over nbd. They run in two QEMU guests with Pollux in the same
// ones, on the same disks, link and system calls. Emulated guests say nothing
// about a real machine's latencies, so there is no bar.
var guestsExperiment = experiment{
	name: "guests", what: "Pollux beside the kernel's DRBD and md RAID-1, in two QEMU guests (ten minutes)",
	run: func(ctx context.Context, s *session) error { return s.guests(ctx) },
}

// What the guests do: fewer rounds and longer samples than on the machine
// itself, as a pair takes 5 s to change and an emulated CPU is slow.
const (
	guestRounds  = 2
	guestSeconds = 3
)

// guestPairs are the script's pairs, in the order in which they are shown.
var guestPairs = []struct {
	pair   string // as scripts/lab/speed calls it
	target result.Target
}{
	{"ppn", result.Target{Name: "guest-pollux", Kind: result.KindPollux, Protocol: "C", Detail: "Pollux in both guests, fio on polluxd's socket, as QEMU uses it"}},
	{"pp", result.Target{Name: "guest-pollux-nbd", Kind: result.KindPollux, Protocol: "C", Detail: "Pollux in both guests, fio on the block device of the kernel's nbd driver"}},
	{"kk", result.Target{Name: "guest-drbd", Kind: result.KindKernel, Protocol: "C", Detail: "the kernel's DRBD 8.4 in both guests; it answers a flush without waiting for the peer's disk"}},
	{"md", result.Target{Name: "guest-md", Kind: result.KindKernel, Detail: "md RAID-1 over the local disk and, by the kernel's nbd driver, the other guest's (qemu-nbd, O_DIRECT): internal bitmap, remote leg write-mostly, no write-behind"}},
	{"raw", result.Target{Name: "guest-raw", Kind: result.KindFile, Detail: "the disk of one guest alone"}},
}

// guestWorkloads are those of the script; names of their own keep the figures
// of emulated machines out of the real one's plots.
var guestWorkloads = map[string]result.Workload{
	"randwrite-4k-qd1":  guestWorkload(result.OpWrite, result.PatternRandom, 4096, 1, result.ClassDirect),
	"randwrite-4k-qd32": guestWorkload(result.OpWrite, result.PatternRandom, 4096, 32, result.ClassDirect),
	"flush-4k-qd1":      guestWorkload(result.OpWrite, result.PatternRandom, 4096, 1, result.ClassFlush),
	"write-64k-qd4":     guestWorkload(result.OpWrite, result.PatternSequential, 64<<10, 4, result.ClassDirect),
	"write-1m-qd2":      guestWorkload(result.OpWrite, result.PatternSequential, mib, 2, result.ClassDirect),
	"randread-4k-qd1":   guestWorkload(result.OpRead, result.PatternRandom, 4096, 1, result.ClassDirect),
}

// guestResyncs are the script's workloads that copy the whole disk.
var guestResyncs = map[string]string{"resync-a-to-b": "from the Primary", "resync-b-to-a": "to the Primary"}

func guestWorkload(op, pattern string, blockBytes, depth int, class string) result.Workload {
	w := workload(op, pattern, blockBytes, depth, 1, class)
	w.Name = "guest-" + w.Name
	return w
}

// guestTools are the programs that the guests are made and run with, and
// Debian's packages of them.
var guestTools = []struct{ program, pkg string }{
	{"qemu-system-x86_64", "qemu-system-x86"},
	{"python3", "python3"},
	{"cpio", "cpio"},
	{"depmod", "kmod"},
	{"busybox", "busybox-static"},
	{"ssh", "openssh-client"},
	{"dropbear", "dropbear-bin"},
	{"drbdadm", "drbd-utils"},
	{"mdadm", "mdadm"},
	{"nbd-client", "nbd-client"},
	{"qemu-nbd", "qemu-utils"},
	{"nbdkit", "nbdkit"},
	{"fio", "fio"},
	{"go", ""}, // no package: make says where it is from
}

// missingForGuests says why the guests can't run here; "" if they can. script
// is what runs them, look is exec.LookPath but for tests.
func missingForGuests(script string, look func(string) (string, error)) string {
	if _, err := os.Stat(script); err != nil {
		return fmt.Sprintf("%s isn't there: run `make bench-guests` in a checkout of Pollux", script)
	}
	var programs, packages []string
	for _, t := range guestTools {
		_, err := look(t.program)
		for _, dir := range []string{"/usr/sbin/", "/sbin/"} { // not in everyone's PATH
			if err != nil {
				_, err = look(dir + t.program)
			}
		}
		if err == nil {
			continue
		}
		programs = append(programs, t.program)
		if t.pkg != "" {
			packages = append(packages, t.pkg)
		}
	}
	if len(programs) == 0 {
		return ""
	}
	if len(packages) == 0 {
		return fmt.Sprintf("not installed: %s: `make bench-guests` says where to get it", strings.Join(programs, ", "))
	}
	return fmt.Sprintf("not installed: %s: run `make bench-guests`, or apt-get install %s", strings.Join(programs, ", "), strings.Join(packages, " "))
}

// skipGuests names all pairs that have no sample, with the reason.
func (s *session) skipGuests(reason string) {
	have := map[string]bool{}
	for _, sample := range s.out.Samples {
		have[sample.Target] = true
	}
	for _, p := range guestPairs {
		if !have[p.target.Name] {
			t := p.target
			t.Skipped = reason
			s.out.AddTarget(t)
		}
	}
	s.say("guests: skipped: %s", reason)
}

func (s *session) guests(ctx context.Context) error {
	bin, err := filepath.Abs(s.cfg.Bin)
	if err != nil {
		return err
	}
	script := filepath.Join(filepath.Dir(bin), "scripts", "lab", "speed")
	if reason := missingForGuests(script, exec.LookPath); reason != "" {
		s.skipGuests(reason)
		return nil
	}
	return s.runGuests(ctx, script)
}

// runGuests has the script measure and takes over what it prints.
func (s *session) runGuests(ctx context.Context, script string) error {
	var pairs []string
	for _, p := range guestPairs {
		pairs = append(pairs, p.pair)
	}
	cmd := exec.CommandContext(ctx, script, "--peers", "--samples", "--pairs", strings.Join(pairs, ","),
		fmt.Sprintf("--rounds=%d", min(s.cfg.Rounds, guestRounds)), fmt.Sprintf("--seconds=%d", guestSeconds))
	var said bytes.Buffer
	cmd.Stderr = io.MultiWriter(&said, s.lab.log)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	// Told to end, the script ends the guests and removes their disks.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	lines, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := s.readGuests(lines)
	waitErr := cmd.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	if waitErr != nil {
		reason := lastLine(said.String())
		s.skipGuests(fmt.Sprintf("%s: %v: %s", filepath.Base(script), waitErr, reason))
		s.note("the guests ended early: %s", reason)
	}
	return readErr
}

// lastLine is what a program said at last, without blank lines.
func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// A guestLine is one measurement, as `speed --samples` prints it, or the end.
type guestLine struct {
	Round    int             `json:"round"`
	Pair     string          `json:"pair"`
	Workload string          `json:"workload"`
	Rate     float64         `json:"rate"` // of a resync, MiB/s
	Fio      json.RawMessage `json:"fio"`  // its output, json+; absent for a resync
	A        guestCounts     `json:"a"`
	B        guestCounts     `json:"b"`

	End     bool      `json:"end"`
	Trusted bool      `json:"trusted"` // the clocks of both guests went right
	Clocks  []float64 `json:"clocks"`  // their seconds, by ours
}

// guestCounts are what a guest counted meanwhile.
type guestCounts struct {
	CPUSeconds float64 `json:"guest_cpu"` // of the whole guest
	Switches   float64 `json:"ctxt"`
	Sent       float64 `json:"tx_packets"`
	Flushes    float64 `json:"disk_flushes"`
}

// readGuests takes over one measurement after the other.
func (s *session) readGuests(from io.Reader) error {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, 16*mib)
	var errs []error
	for lines.Scan() {
		var l guestLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			errs = append(errs, fmt.Errorf("guests: a line of speed --samples: %w", err))
		} else if err := s.takeGuest(l); err != nil {
			errs = append(errs, fmt.Errorf("guests: %s of %s: %w", l.Workload, l.Pair, err))
		}
	}
	errs = append(errs, lines.Err())
	// What a broken line is followed by must not block its writer.
	_, err := io.Copy(io.Discard, from)
	return errors.Join(append(errs, err)...)
}

func (s *session) takeGuest(l guestLine) error {
	if l.End {
		s.note("guest-* are emulated machines with one CPU each: they compare with each other only. Their CPU time is that of both guests, fio included; a flush workload's latency is that of its writes alone.")
		if !l.Trusted {
			s.note("guest-*: not to be trusted: this machine was too busy for the clocks of the guests (their seconds by ours: %.3f)", l.Clocks)
		}
		return nil
	}
	for _, p := range guestPairs {
		if p.pair != l.Pair {
			continue
		}
		s.out.AddTarget(p.target)
		if direction, ok := guestResyncs[l.Workload]; ok {
			s.measure(result.Measure{Name: "guests: resync of a whole disk", Target: p.target.Name, Round: l.Round, Value: l.Rate, Unit: "MiB/s", Detail: direction})
			return nil
		}
		return s.takeGuestSample(l, p.target.Name)
	}
	return fmt.Errorf("no pair %q is known", l.Pair)
}

// takeGuestSample adds what fio said, and what an operation of 4 KiB costs
// both nodes in things that don't depend on how busy this machine is.
func (s *session) takeGuestSample(l guestLine, target string) error {
	w, ok := guestWorkloads[l.Workload]
	if !ok {
		return fmt.Errorf("no workload %q is known", l.Workload)
	}
	sample, err := parseFio(string(l.Fio))
	if err != nil {
		return err
	}
	s.out.AddWorkload(w)
	sample.Round, sample.Workload, sample.Target, sample.Client = l.Round, w.Name, target, result.ClientGuestFio
	ops := float64(sample.Ops)
	sample.CPUMicros = (l.A.CPUSeconds + l.B.CPUSeconds) * 1e6 / ops
	sample.Latency.Compact()
	s.out.Samples = append(s.out.Samples, sample)
	s.say("round %d  %-32s %-16s %8.0f IOPS  p50 %7.0f  p99 %7.0f us", l.Round, w.Name, target, sample.IOPS(), sample.Latency.PMicros(0.5), sample.Latency.PMicros(0.99))
	if w.BlockBytes != 4096 {
		return nil
	}
	for _, m := range []result.Measure{
		{Name: "guests: context switches of both nodes", Value: (l.A.Switches + l.B.Switches) / ops},
		{Name: "guests: packets between them", Value: (l.A.Sent + l.B.Sent) / ops},
		{Name: "guests: flushes of both disks", Value: (l.A.Flushes + l.B.Flushes) / ops},
	} {
		m.Target, m.Round, m.Unit, m.Detail = target, l.Round, "per operation", strings.TrimPrefix(w.Name, "guest-")
		s.out.Measures = append(s.out.Measures, m)
	}
	return nil
}
