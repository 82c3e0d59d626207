// Command pollux-ha-rounds proves failover with real processes: hosts in network
// namespaces die, lose cables and disks, and stand still, while a client writes to
// a virtual machine. "make ha" runs it. It needs root, and leaves nothing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/pollux-project/pollux/cmd/internal/hatestbed"
)

// Exit codes. The control wants exitFailed of its own rounds, not a breakdown.
const (
	exitFailed = 1 // all rounds were done, and something was lost or wrong
	exitUsage  = 2
	exitBroken = 3 // the rounds could not be done
)

func main() {
	if filepath.Base(os.Args[0]) == hatestbed.FenceProgram {
		os.Exit(hatestbed.FenceAgent(os.Stdin, os.Stdout))
	}
	inside, code, err := hatestbed.Enter()
	if !inside {
		if err != nil {
			fmt.Fprintln(os.Stderr, "pollux-ha-rounds:", err)
			code = exitBroken
		}
		os.Exit(code)
	}
	os.Exit(run())
}

// options are what the command line says besides the rounds' own configuration.
type options struct {
	source string // directory of the source, for the control
	out    string // directory of the results; "": none
	keep   bool
}

func run() int {
	var cfg hatestbed.Config
	var opt options
	var arbiter string
	flag.StringVar(&cfg.Bin, "bin", "bin", "`directory` of the programs")
	flag.StringVar(&cfg.Guest, "guest", "build/guest", "`directory` that scripts/demo/build-guest has filled")
	flag.StringVar(&cfg.Dir, "dir", "", "put disks and logs below this `directory` instead of the system's for temporary files; keep its path short")
	flag.IntVar(&cfg.Rounds, "rounds", 40, "how many with each arbiter; with -speed of each promise")
	short := flag.Bool("short", false, "one round of each of the most telling kinds")
	speed := flag.Bool("speed", false, "only what has a promised speed: takeovers with etcd and after a fence, moves, I/O alone")
	control := flag.Bool("control", false, "take the check of terms from polluxd: the rounds must find that out")
	flag.Uint64Var(&cfg.Seed, "seed", rand.Uint64N(1_000_000), "mixes the faults; default: random")
	flag.StringVar(&arbiter, "arbiter", "", "one of etcd, witness, fence only; default: all that the kind of run has")
	flag.StringVar(&cfg.Only, "only", "", "only faults whose name contains this `text`")
	flag.IntVar(&cfg.Beside, "beside", 2, "so many racks at the same time: they mostly wait")
	flag.StringVar(&opt.out, "out", "", "write results.json and report.html to this `directory`")
	flag.StringVar(&opt.source, "source", ".", "`directory` of the source, for -control")
	flag.BoolVar(&opt.keep, "keep", false, "leave disks and logs after a success")
	flag.Parse()
	cfg.Arbiter, cfg.Out = hatestbed.Arbiter(arbiter), os.Stdout
	kinds := 0
	for kind, wanted := range map[string]bool{hatestbed.Short: *short, hatestbed.Speed: *speed, hatestbed.Control: *control} {
		if wanted {
			cfg.Kind = kind
			kinds++
		}
	}
	err := cfg.Validate()
	if kinds > 1 {
		err = errors.New("only one of -short, -speed and -control is possible")
	} else if flag.NArg() > 0 {
		err = fmt.Errorf("%q: no arguments are taken", flag.Args())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "pollux-ha-rounds:", err)
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	code, err := play(ctx, cfg, opt)
	switch {
	case err == nil:
		return code
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "pollux-ha-rounds: interrupted; nothing is left running")
	default:
		fmt.Fprintln(os.Stderr, "pollux-ha-rounds:", err)
	}
	return exitBroken
}

// play does the rounds in a directory of their own, which it leaves if anything
// is wrong. After a success the logs of rounds that were slower than promised stay.
func play(ctx context.Context, cfg hatestbed.Config, opt options) (code int, err error) {
	for _, path := range []*string{&cfg.Bin, &cfg.Guest, &opt.source} {
		if *path, err = filepath.Abs(*path); err != nil {
			return 0, err
		}
	}
	if cfg.Dir, err = os.MkdirTemp(cfg.Dir, "pollux-ha-"); err != nil {
		return 0, err
	}
	defer func() {
		if err != nil || code != 0 || opt.keep {
			fmt.Fprintln(cfg.Out, "logs and disks are in", cfg.Dir)
			return
		}
		if err = hatestbed.Clear(cfg.Dir); err == nil && cfg.Kind == hatestbed.Control {
			err = os.RemoveAll(cfg.Dir) // what went wrong there is what was wanted
		}
	}()
	if cfg.Kind == hatestbed.Control {
		blind := filepath.Join(cfg.Dir, "bin")
		if err := hatestbed.BuildBlind(ctx, opt.source, cfg.Bin, blind); err != nil {
			return 0, err
		}
		cfg.Bin = blind
		fmt.Fprintln(cfg.Out, "CONTROL: polluxd without the check of terms")
	}
	rep, err := hatestbed.Run(ctx, cfg)
	if cfg.Kind == hatestbed.Control {
		return judgeControl(cfg, rep, err)
	}
	good := false
	if len(rep.Rounds) > 0 {
		rep.Table(cfg.Out)
		good = rep.Verdict(cfg.Out)
		if opt.out != "" {
			err = errors.Join(err, writeResults(cfg, rep, opt.out))
		}
	}
	if err != nil {
		return 0, err
	}
	if !good {
		fmt.Fprintln(cfg.Out, "FAILED")
		return exitFailed, nil
	}
	fmt.Fprintln(cfg.Out, "PASSED: every acknowledged record is on both disks, and the machine ran once")
	return 0, nil
}

func writeResults(cfg hatestbed.Config, rep *hatestbed.Report, dir string) error {
	page, err := rep.Write(dir)
	if err == nil {
		fmt.Fprintln(cfg.Out, "to look at:", page)
	}
	return err
}

// judgeControl wants a loss or two writers of each kind. Rounds that broke down for
// another reason prove nothing.
func judgeControl(cfg hatestbed.Config, rep *hatestbed.Report, err error) (int, error) {
	if rep.ControlVerdict(cfg.Out) {
		fmt.Fprintln(cfg.Out, "CONTROL PASSED: without the check of terms records are lost or two guests write, and the rounds see it")
		return 0, nil
	}
	if err != nil {
		return 0, errors.Join(errors.New("control: some rounds broke down before any harm was seen"), err)
	}
	fmt.Fprintln(cfg.Out, "CONTROL FAILED: the check of terms was taken out, and some rounds have seen nothing: they are blind")
	return exitFailed, nil
}
