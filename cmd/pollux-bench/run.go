package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/pollux-project/pollux/bench"
	"github.com/pollux-project/pollux/bench/report"
)

// runCommand measures.
func runCommand(ctx context.Context, args []string) error {
	progress := report.NewProgress(os.Stderr)
	defer progress.Close()
	cfg := bench.Config{Progress: progress}
	var only, file, out string
	var plain, list bool
	f := flag.NewFlagSet("pollux-bench run", flag.ContinueOnError)
	f.StringVar(&cfg.Bin, "bin", "bin", "`directory` of polluxd and polluxadm")
	f.StringVar(&cfg.Dir, "dir", "", "put the images below this `directory`, on the disk to be measured; keep its path short (default: the system's for temporary files)")
	f.IntVar(&cfg.Rounds, "rounds", 0, "rounds over all targets (default 5)")
	f.Float64Var(&cfg.Seconds, "seconds", 0, "length of one sample (default 1.2)")
	f.Float64Var(&cfg.Warmup, "warmup", 0, "`seconds` before each sample that don't count (default 0.25)")
	f.IntVar(&cfg.SizeMiB, "size", 0, "size of each volume, `MiB` (default 256)")
	f.IntVar(&cfg.SyncMiB, "sync-size", 0, "size of the volume that is resynced, `MiB` (default 1024)")
	f.StringVar(&only, "only", "", "only the experiments whose name matches this `pattern`, see -list")
	f.BoolVar(&cfg.Guests, "guests", false, "beside the kernel's DRBD and md RAID-1 in QEMU guests as well, ten minutes more; alone: make bench-guests")
	f.BoolVar(&cfg.Quick, "quick", false, "only what bars are about, in 3 short rounds: about 3 minutes")
	f.BoolVar(&list, "list", false, "list the experiments and end")
	f.StringVar(&file, "json", "", "write everything that was measured to this `file`")
	f.StringVar(&out, "out", "", "leave the result as JSON and as a page, named by the time, in this `directory`")
	f.BoolVar(&plain, "no-namespace", false, "use the machine's own loopback; fewer fair rivals")
	f.BoolVar(&cfg.Isolated, "in-namespace", false, "for the program's own use: it has its network namespace")
	own := ownFlags(f, &cfg)
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		os.Exit(2) // it has been said
	}
	if list {
		bench.List(os.Stdout)
		return nil
	}
	if f.NArg() > 0 {
		return usageError{fmt.Errorf("unexpected argument %q", f.Arg(0))}
	}
	if only != "" {
		var err error
		if cfg.Only, err = regexp.Compile(only); err != nil {
			return usageError{fmt.Errorf("-only: %w", err)}
		}
	}
	if err := own(); err != nil {
		return usageError{err}
	}
	if err := cfg.Validate(); err != nil {
		return usageError{err}
	}
	if cfg.Target == "" && !plain && !cfg.Isolated {
		err := bench.Isolate(append([]string{"run", "-in-namespace"}, args...))
		fmt.Fprintf(os.Stderr, "pollux-bench: %v: going on without, see -no-namespace\n", err)
	}
	run, err := bench.Run(ctx, cfg)
	progress.Close()
	if run == nil {
		return err
	}
	run.Command = append([]string{filepath.Base(os.Args[0]), "run"}, slices.DeleteFunc(args, func(a string) bool { return a == "-in-namespace" })...)
	err = errors.Join(err, report.WriteTable(os.Stdout, run, report.Options{Color: report.WantsColor(os.Stdout)}))
	if file != "" {
		err = errors.Join(err, run.Write(file))
	}
	if out != "" {
		err = errors.Join(err, save(out, run))
	}
	return err
}
