package conf

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// A ParseError points at the token that conf could not accept. It is returned
// for the syntax, for a value, and for a contradiction between statements, of
// resource files and of the TOML files alike.
type ParseError struct {
	File      string
	Line, Col int // 1-based; Col counts bytes
	Msg       string
}

// Error gives "FILE:LINE:COL: text".
func (e *ParseError) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Col, e.Msg)
}

// An ErrorList is every error of one run, in the order of the files and
// lines. It is never empty when returned as an error.
type ErrorList []*ParseError

// Error gives one line per error.
func (l ErrorList) Error() string {
	lines := make([]string, len(l))
	for i, e := range l {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As reach each ParseError.
func (l ErrorList) Unwrap() []error {
	errs := make([]error, len(l))
	for i, e := range l {
		errs[i] = e
	}
	return errs
}

// A Warning is something that was read and accepted but probably is not what
// its writer meant, or that Pollux does not act on.
type Warning struct {
	Pos Pos
	Msg string
}

// String gives "FILE:LINE:COL: warning: text".
func (w Warning) String() string { return fmt.Sprintf("%s: warning: %s", w.Pos, w.Msg) }

// ErrUnknownResource is returned for a resource that no file defines for this
// host. Resolve and Dump wrap it with the name.
var ErrUnknownResource = errors.New("not defined in your config (for this host)")

// Pos is a place in a file. The zero Pos stands for "nowhere": a statement
// that was not written.
type Pos struct {
	File      string
	Line, Col int // 1-based, in bytes
}

// String gives FILE:LINE:COL.
func (p Pos) String() string { return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Col) }

// IsSet reports whether the statement was written at all.
func (p Pos) IsSet() bool { return p.Line > 0 }

func (p Pos) line() string { return fmt.Sprintf("%s:%d", p.File, p.Line) }

func errorAt(p Pos, format string, args ...any) *ParseError {
	return &ParseError{File: p.File, Line: p.Line, Col: p.Col, Msg: fmt.Sprintf(format, args...)}
}

// maxErrors bounds what a hostile or generated file can make us report. Our
// own choice: more than a screen helps nobody.
const maxErrors = 100

// report is where all checks put what they find.
type report struct {
	errs     ErrorList
	warnings []Warning
}

func (r *report) errorf(p Pos, format string, args ...any) {
	if len(r.errs) < maxErrors {
		r.errs = append(r.errs, errorAt(p, format, args...))
	}
}

func (r *report) warnf(p Pos, format string, args ...any) {
	if len(r.warnings) < maxErrors {
		r.warnings = append(r.warnings, Warning{Pos: p, Msg: fmt.Sprintf(format, args...)})
	}
}

// err returns the list sorted by line within each file, files in the order in
// which they first had an error, or nil.
func (r *report) err() error {
	if len(r.errs) == 0 {
		return nil
	}
	order := map[string]int{}
	for _, e := range r.errs {
		if _, ok := order[e.File]; !ok {
			order[e.File] = len(order)
		}
	}
	slices.SortStableFunc(r.errs, func(a, b *ParseError) int {
		return cmp.Or(cmp.Compare(order[a.File], order[b.File]), cmp.Compare(a.Line, b.Line))
	})
	return r.errs
}
