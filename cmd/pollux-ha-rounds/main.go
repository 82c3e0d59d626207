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

func run() int {
	var cfg hatestbed.Config
	var arbiter string
	flag.StringVar(&cfg.Bin, "bin", "bin", "`directory` of the programs")
	flag.StringVar(&cfg.Guest, "guest", "build/guest", "`directory` that scripts/demo/build-guest has filled")
	flag.StringVar(&cfg.Dir, "dir", "", "put disks and logs below this `directory` instead of the system's for temporary files; keep its path short")
	flag.IntVar(&cfg.Rounds, "rounds", 40, "how many")
	flag.BoolVar(&cfg.Short, "short", false, "one round of each of the six most telling kinds")
	flag.Uint64Var(&cfg.Seed, "seed", rand.Uint64N(1_000_000), "mixes the faults; default: random")
	flag.StringVar(&arbiter, "arbiter", "", "etcd or witness only; default: half of the rounds each")
	flag.StringVar(&cfg.Only, "only", "", "only faults whose name contains this `text`")
	control := flag.Bool("control", false, "take the check of terms from polluxd: the rounds must find that out")
	source := flag.String("source", ".", "`directory` of the source, for -control")
	keep := flag.Bool("keep", false, "leave disks and logs after a success")
	flag.Parse()
	cfg.Arbiter, cfg.Out = hatestbed.Arbiter(arbiter), os.Stdout
	if flag.NArg() > 0 || cfg.Rounds < 1 || arbiter != "" && cfg.Arbiter != hatestbed.ArbiterEtcd && cfg.Arbiter != hatestbed.ArbiterWitness {
		fmt.Fprintln(os.Stderr, "pollux-ha-rounds: bad arguments")
		flag.Usage()
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	code, err := play(ctx, cfg, *control, *source, *keep)
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
// is wrong.
func play(ctx context.Context, cfg hatestbed.Config, control bool, source string, keep bool) (code int, err error) {
	for _, path := range []*string{&cfg.Bin, &cfg.Guest, &source} {
		if *path, err = filepath.Abs(*path); err != nil {
			return 0, err
		}
	}
	if cfg.Dir, err = os.MkdirTemp(cfg.Dir, "pollux-ha-"); err != nil {
		return 0, err
	}
	defer func() {
		if err != nil || code != 0 || keep {
			fmt.Fprintln(cfg.Out, "logs and disks are in", cfg.Dir)
			return
		}
		err = os.RemoveAll(cfg.Dir)
	}()
	if control {
		blind := filepath.Join(cfg.Dir, "bin")
		if err := hatestbed.BuildBlind(ctx, source, cfg.Bin, blind); err != nil {
			return 0, err
		}
		cfg.Bin, cfg.Control = blind, true
		fmt.Fprintln(cfg.Out, "CONTROL: polluxd without the check of terms")
	}
	rep, err := hatestbed.Run(ctx, cfg)
	good := false
	if len(rep.Rounds) > 0 {
		rep.Table(cfg.Out)
		good = rep.Verdict(cfg.Out)
	}
	if control {
		return judgeControl(cfg, rep, err)
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

// judgeControl wants a loss or two writers. Rounds that broke down for another
// reason prove nothing.
func judgeControl(cfg hatestbed.Config, rep *hatestbed.Report, err error) (int, error) {
	if rep.SawHarm() {
		fmt.Fprintln(cfg.Out, "CONTROL PASSED: without the check of terms records are lost or two guests write, and the rounds see it")
		return 0, nil
	}
	if err != nil {
		return 0, errors.Join(errors.New("control: the rounds broke down before any harm was seen"), err)
	}
	fmt.Fprintln(cfg.Out, "CONTROL FAILED: the check of terms was taken out, and the rounds have seen nothing: they are blind")
	return exitFailed, nil
}
