package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/pollux-project/pollux/bench"
	"github.com/pollux-project/pollux/bench/report"
	"github.com/pollux-project/pollux/bench/result"
)

// revisionsCommand measures two builds beside each other and compares them.
func revisionsCommand(ctx context.Context, args []string) error {
	progress := report.NewProgress(os.Stderr)
	defer progress.Close()
	cfg := bench.Config{Progress: progress}
	var base, out string
	f := flag.NewFlagSet("pollux-bench revisions", flag.ContinueOnError)
	f.StringVar(&base, "base", "", "`directory` of the older polluxd and polluxadm")
	f.StringVar(&cfg.Bin, "bin", "bin", "`directory` of the newer ones")
	f.StringVar(&cfg.Dir, "dir", "", "put the images below this `directory` (default: the system's for temporary files)")
	f.IntVar(&cfg.Rounds, "rounds", 0, "rounds over all workloads (default 5)")
	f.Float64Var(&cfg.Seconds, "seconds", 0, "length of one sample (default 1.2)")
	f.IntVar(&cfg.SizeMiB, "size", 0, "size of each volume, `MiB` (default 256)")
	f.StringVar(&out, "out", "", "leave both results, base.json and head.json, in this `directory`")
	f.BoolVar(&cfg.Isolated, "in-namespace", false, "for the program's own use: it has its network namespace")
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		os.Exit(2) // it has been said
	}
	if base == "" || f.NArg() > 0 {
		return usageError{fmt.Errorf("revisions needs -base DIR, and nothing else: `make bench-compare BASE=rev` builds both")}
	}
	if !cfg.Isolated {
		err := bench.Isolate(append([]string{"revisions", "-in-namespace"}, args...))
		fmt.Fprintf(os.Stderr, "pollux-bench: %v: going on without\n", err)
	}
	was, is, err := bench.Revisions(ctx, cfg, base)
	progress.Close()
	if err != nil {
		return err
	}
	if out != "" {
		if err := errors.Join(os.MkdirAll(out, 0o755), was.Write(filepath.Join(out, "base.json")), is.Write(filepath.Join(out, "head.json"))); err != nil {
			return err
		}
	}
	c, err := result.Compare(was, is)
	if err != nil {
		return err
	}
	return report.WriteComparison(os.Stdout, c, "base "+was.Commit, "head "+is.Commit, report.Options{Color: report.WantsColor(os.Stdout)})
}
