// Command pollux-bench measures Pollux beside qemu's network RAID-1 and nbdcopy
// on this machine, and shows which demands on speed and memory are met. "make
// bench" runs it. The exit status is 0 when everything was measured, whatever
// the numbers say.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"syscall"

	"github.com/pollux-project/pollux/bench"
)

func main() {
	cfg := bench.Config{Progress: os.Stderr}
	var only, result string
	var plain bool
	flag.StringVar(&cfg.Bin, "bin", "bin", "`directory` of polluxd and polluxadm")
	flag.StringVar(&cfg.Dir, "dir", "", "put the images below this `directory`, on the disk to be measured; keep its path short (default: the system's for temporary files)")
	flag.IntVar(&cfg.Rounds, "rounds", 5, "rounds over all cases")
	flag.IntVar(&cfg.Seconds, "seconds", 3, "length of one run")
	flag.IntVar(&cfg.SizeMiB, "size", 256, "size of each volume, `MiB`")
	flag.IntVar(&cfg.SyncMiB, "sync-size", 1024, "size of the volume that is resynced, `MiB`")
	flag.StringVar(&only, "only", "", "only cases that match this `pattern`, such as 'buffered QD1 ' or resync")
	flag.StringVar(&result, "json", "", "write everything that was measured to this `file` as well")
	flag.BoolVar(&plain, "no-namespace", false, "use the machine's own loopback; fewer fair rivals")
	flag.BoolVar(&cfg.Isolated, "in-namespace", false, "for the program's own use: it has its network namespace")
	flag.Parse()
	if err := check(&cfg, only); err != nil {
		fmt.Fprintf(os.Stderr, "pollux-bench: %v\n", err)
		flag.Usage()
		os.Exit(2)
	}
	if !plain && !cfg.Isolated {
		err := bench.Isolate(append([]string{"-in-namespace"}, os.Args[1:]...))
		fmt.Fprintf(os.Stderr, "pollux-bench: %v: going on without, see -no-namespace\n", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := measure(ctx, cfg, result)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "pollux-bench: %v\n", err)
		os.Exit(1)
	}
}

func check(cfg *bench.Config, only string) (err error) {
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	if only != "" {
		if cfg.Only, err = regexp.Compile(only); err != nil {
			return fmt.Errorf("-only: %w", err)
		}
	}
	return cfg.Validate()
}

func measure(ctx context.Context, cfg bench.Config, result string) error {
	report, err := bench.Run(ctx, cfg)
	if err != nil {
		return err
	}
	if result != "" {
		f, err := os.Create(result)
		if err != nil {
			return err
		}
		if err := errors.Join(report.WriteJSON(f), f.Close()); err != nil {
			return err
		}
	}
	return report.WriteTable(os.Stdout)
}
