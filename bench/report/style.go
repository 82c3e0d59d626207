package report

import (
	_ "embed"
	"fmt"

	"github.com/pollux-project/pollux/bench/result"
)

// plotCSS is the style sheet of the plots: in the page once, in single SVG
// files each.
//
//go:embed plot.css
var plotCSS string

// A style is how a target looks in every plot of a run.
type style struct {
	class  string // its colour and dashes, see plot.css
	marker int    // its shape
}

// colours is how many each kind of target has in plot.css.
var colours = map[string]int{result.KindPollux: 4, result.KindPair: 4, result.KindCopy: 3, result.KindKernel: 3, result.KindFile: 2}

// styles gives each target of a run its look: the kind decides the colour, the
// place among its kind the shade, the dashes and the marker.
func styles(run *result.Run) map[string]style {
	all := map[string]style{}
	next := map[string]int{}
	for _, t := range run.Targets {
		kind := t.Kind
		if colours[kind] == 0 {
			kind = result.KindFile
		}
		all[t.Name] = style{class: fmt.Sprintf("%s%d", kind, next[kind]%colours[kind]+1), marker: next[kind]}
		next[kind]++
	}
	return all
}

// styleOf is the look of a target, that of a file for one that the run does
// not describe.
func styleOf(all map[string]style, target string) style {
	if s, ok := all[target]; ok {
		return s
	}
	return style{class: "file1"}
}
