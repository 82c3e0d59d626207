package report

import (
	"html/template"
	"io"
	"time"

	"github.com/pollux-project/pollux/bench/result"
)

// A Sheet is a page in the look of a benchmark's, about something else that was
// measured.
type Sheet struct {
	Title          string
	Started, Ended time.Time
	Lead           []string // lines below the title: where, with what
	Notes          []string // what a reader must know first
	Bars           []result.Bar
	Figures        []Figure
	Tables         []SheetTable
	Command        []string // how to repeat it
}

// A SheetTable is a table with a head; columns after the first are figures.
type SheetTable struct {
	Title, Caption string
	Head           []string
	Rows           [][]string
}

// Write writes it as a page that stands alone.
func (s *Sheet) Write(w io.Writer) error {
	d := pageData{
		CSS:   template.CSS(pageCSS + plotCSS), //nolint:gosec // both are ours, embedded in this package
		Title: s.Title, When: when(&result.Run{Started: s.Started, Ended: s.Ended}), Machine: s.Lead, Notes: s.Notes,
		Tables: s.Tables, Command: shellLine(s.Command),
	}
	d.setBars(s.Bars)
	d.setFigures(s.Figures)
	return page.Execute(w, d)
}
