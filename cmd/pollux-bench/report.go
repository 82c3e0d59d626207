package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/pollux-project/pollux/bench/report"
	"github.com/pollux-project/pollux/bench/result"
)

// parse reads the flags of a subcommand that takes names of runs; flags may
// stand behind them.
func parse(f *flag.FlagSet, args []string, runs int) (names []string, err error) {
	f.SetOutput(io.Discard)
	for {
		if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
			f.SetOutput(os.Stdout)
			f.Usage()
			return nil, flag.ErrHelp
		} else if err != nil {
			return nil, usageError{fmt.Errorf("%w: see pollux-bench %s -help", err, f.Name())}
		}
		if f.NArg() == 0 {
			break
		}
		names = append(names, f.Arg(0))
		args = f.Args()[1:]
	}
	if len(names) != runs {
		return nil, usageError{fmt.Errorf("%s takes %d results of `pollux-bench run -json`, %d are named", f.Name(), runs, len(names))}
	}
	return names, nil
}

func flags(name, usage string) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.Usage = func() {
		fmt.Fprintf(f.Output(), "Usage: pollux-bench %s %s\n", name, usage)
		f.PrintDefaults()
	}
	return f
}

// reportCommand shows a result.
func reportCommand(_ context.Context, args []string) error {
	f := flags("report", "RUN.json [-o report.html]")
	out := f.String("o", "", "write the page to this `file` (default: the result's name with .html)")
	svg := f.String("svg", "", "write each plot to a file of its own in this `directory` instead")
	markdown := f.Bool("markdown", false, "print the tables in Markdown instead")
	table := f.Bool("table", false, "print the table for terminals instead")
	names, err := parse(f, args, 1)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	run, err := result.Read(names[0])
	if err != nil {
		return usageError{err}
	}
	switch {
	case *svg != "":
		files, err := report.WriteSVGs(*svg, run)
		if err != nil {
			return err
		}
		fmt.Println(strings.Join(files, "\n"))
		return nil
	case *markdown:
		return report.WriteMarkdown(os.Stdout, run)
	case *table:
		return report.WriteTable(os.Stdout, run, report.Options{Color: report.WantsColor(os.Stdout)})
	}
	if *out == "" {
		*out = strings.TrimSuffix(names[0], ".json") + ".html"
	}
	if err := writePage(*out, run); err != nil {
		return err
	}
	fmt.Println(*out)
	return nil
}

func writePage(name string, run *result.Run) error {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(file)
	return errors.Join(report.WriteHTML(w, run), w.Flush(), file.Close())
}

// save leaves a run as JSON and as a page in dir, named by the time of its
// start, and prints the paths.
func save(dir string, run *result.Run) error {
	base := filepath.Join(dir, run.Started.Local().Format("20060102-150405"))
	if err := run.Write(base + ".json"); err != nil {
		return err
	}
	if err := writePage(base+".html", run); err != nil {
		return err
	}
	fmt.Printf("\nResult: %s\nReport: %s\n", base+".json", base+".html")
	return nil
}
