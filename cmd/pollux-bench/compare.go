package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/pollux-project/pollux/bench/report"
	"github.com/pollux-project/pollux/bench/result"
)

// compareCommand tells a change from noise.
func compareCommand(_ context.Context, args []string) error {
	f := flags("compare", "A.json B.json [-fail-above 5%] [-json]")
	above := f.String("fail-above", "", "end with status 1 if something became worse by more than this `percentage` and the interval shows it")
	asJSON := f.Bool("json", false, "print the comparison as JSON")
	names, err := parse(f, args, 2)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	limit, err := percentage(*above)
	if err != nil {
		return usageError{err}
	}
	var runs []*result.Run
	for _, name := range names {
		run, err := result.Read(name)
		if err != nil {
			return usageError{err}
		}
		runs = append(runs, run)
	}
	c, err := result.Compare(runs[0], runs[1])
	if err != nil {
		return usageError{fmt.Errorf("%s and %s: %w", names[0], names[1], err)}
	}
	if *asJSON {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", " ")
		err = e.Encode(c)
	} else {
		err = report.WriteComparison(os.Stdout, c, names[0], names[1], report.Options{Color: report.WantsColor(os.Stdout)})
	}
	if err != nil || *above == "" {
		return err
	}
	if worse := c.Regressions(limit); len(worse) > 0 {
		return fmt.Errorf("worse by more than %s:\n  %s", *above, strings.Join(worse, "\n  "))
	}
	return nil
}

// percentage reads "5%", "5" or "" as a part of one.
func percentage(text string) (float64, error) {
	if text == "" {
		return 0, nil
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(text, "%")), 64)
	if err != nil || !(v >= 0) || v > 1000 {
		return 0, fmt.Errorf("-fail-above %q: a percentage such as 5%% is needed", text)
	}
	return v / 100, nil
}
