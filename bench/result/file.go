package result

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
)

// maxFileBytes bounds what Read takes: runs of hours have some MiB.
const maxFileBytes = 1 << 30

// A FormatError is a file that holds no run of this package's format.
type FormatError struct {
	File string // its name
	Got  string // value of its "format"; "" = it has none
}

func (e *FormatError) Error() string {
	if e.Got == "" {
		return fmt.Sprintf("%s: not a result of pollux-bench: it names no format, %q was expected", e.File, Format)
	}
	return fmt.Sprintf("%s: format %q is not known: this pollux-bench reads %q; use the version that wrote the file, or measure again", e.File, e.Got, Format)
}

// Read returns the run in the file of this name. The error names the file; it
// is a *FormatError if the file is JSON, but of another kind.
func Read(name string) (*Run, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return Decode(f, name)
}

// Decode is Read from a stream; name stands for it in errors.
func Decode(from io.Reader, name string) (*Run, error) {
	data, err := io.ReadAll(io.LimitReader(from, maxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("%s: larger than %d MiB: not a result of pollux-bench", name, maxFileBytes>>20)
	}
	var head struct {
		Format string `json:"format"`
	}
	var wrongType *json.UnmarshalTypeError
	if err := json.Unmarshal(data, &head); errors.As(err, &wrongType) {
		return nil, &FormatError{File: name}
	} else if err != nil {
		return nil, fmt.Errorf("%s: not a result of pollux-bench: not JSON: %w", name, err)
	}
	if head.Format != Format {
		return nil, &FormatError{File: name, Got: head.Format}
	}
	run := new(Run)
	if err := json.Unmarshal(data, run); err != nil {
		return nil, fmt.Errorf("%s: damaged: %w", name, err)
	}
	if err := run.Validate(); err != nil {
		return nil, fmt.Errorf("%s: damaged: %w", name, err)
	}
	return run, nil
}

// Validate reports what makes a run meaningless: samples of workloads or
// targets that it doesn't name, names that occur twice, negative figures.
func (r *Run) Validate() error {
	if r.Format != Format {
		return fmt.Errorf("format %q, %q expected", r.Format, Format)
	}
	workloads, targets := map[string]bool{}, map[string]bool{}
	for _, w := range r.Workloads {
		if w.Name == "" || workloads[w.Name] {
			return fmt.Errorf("workload %q: a name must be there, and once", w.Name)
		}
		workloads[w.Name] = true
	}
	for _, t := range r.Targets {
		if t.Name == "" || targets[t.Name] {
			return fmt.Errorf("target %q: a name must be there, and once", t.Name)
		}
		targets[t.Name] = true
	}
	for i, s := range r.Samples {
		switch {
		case !workloads[s.Workload]:
			return fmt.Errorf("sample %d: workload %q is not described", i, s.Workload)
		case !targets[s.Target]:
			return fmt.Errorf("sample %d: target %q is not described", i, s.Target)
		case s.Ops < 0 || s.Bytes < 0 || s.Errors < 0 || !(s.Seconds >= 0) || s.Round < 0 || !(s.CPUMicros >= 0):
			return fmt.Errorf("sample %d (%s on %s): a figure is negative", i, s.Workload, s.Target)
		}
	}
	for _, m := range r.Measures {
		if math.IsNaN(m.Value) || math.IsInf(m.Value, 0) {
			return fmt.Errorf("measure %q of %s: %v is no figure", m.Name, m.Target, m.Value)
		}
	}
	return r.validateTimelines()
}

func (r *Run) validateTimelines() error {
	for _, t := range r.Timelines {
		if !(t.BucketSeconds > 0) {
			return fmt.Errorf("timeline %q on %s: a bucket of %v s", t.Name, t.Target, t.BucketSeconds)
		}
		for i, p := range t.Points {
			if p.T < 0 || p.IOPS < 0 || p.P50Micros < 0 || p.P99Micros < 0 || p.MaxMicros < 0 || math.IsNaN(p.T) {
				return fmt.Errorf("timeline %q on %s: point %d: a figure is negative", t.Name, t.Target, i)
			}
		}
	}
	return nil
}

// Encode writes the run as JSON. Histograms are left compact.
func (r *Run) Encode(to io.Writer) error {
	for i := range r.Samples {
		r.Samples[i].Latency.Compact()
	}
	e := json.NewEncoder(to)
	e.SetIndent("", " ")
	return e.Encode(r)
}

// Write makes or replaces the file of this name: it is there whole or not at
// all. The directory is made if need be.
func (r *Run) Write(name string) (err error) {
	if err := r.Validate(); err != nil {
		return fmt.Errorf("%s: not written: %w", name, err)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".run-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: not written: %w", name, err), os.Remove(f.Name()))
		}
	}()
	if err := errors.Join(r.Encode(f), f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// Append takes over what other measured, for experiments that run in processes
// or guests of their own. Its rounds keep their numbers: samples of one round
// number count as taken beside one another only if both come from the same
// run, so other must not have samples of a pair of workload and target that r
// has already.
func (r *Run) Append(other *Run) error {
	type key struct{ workload, target, client string }
	have := map[key]bool{}
	for _, s := range r.Samples {
		have[key{s.Workload, s.Target, s.Client}] = true
	}
	for _, s := range other.Samples {
		if have[key{s.Workload, s.Target, s.Client}] {
			return fmt.Errorf("append results: %s on %s was measured in both runs: they are compared, not joined", s.Workload, s.Target)
		}
	}
	for _, w := range other.Workloads {
		r.AddWorkload(w)
	}
	for _, t := range other.Targets {
		r.AddTarget(t)
	}
	for _, b := range other.Bars {
		r.AddBar(b)
	}
	r.Samples = append(r.Samples, other.Samples...)
	r.Timelines = append(r.Timelines, other.Timelines...)
	r.Measures = append(r.Measures, other.Measures...)
	r.Notes = append(r.Notes, other.Notes...)
	return nil
}
