package report

import (
	"slices"

	"github.com/pollux-project/pollux/bench/result"
)

// A measureGroup is all measures of one name and unit.
type measureGroup struct {
	name, unit string
	rows       []*measureRow // in the order in which they were first measured
}

// A measureRow is one target and detail, over the rounds.
type measureRow struct {
	target, detail, unit string
	values               []float64
}

func (r *measureRow) median() float64 { return result.Median(r.values) }
func (r *measureRow) low() float64    { return slices.Min(r.values) }
func (r *measureRow) high() float64   { return slices.Max(r.values) }

func measureGroups(run *result.Run) (groups []*measureGroup) {
	for _, m := range run.Measures {
		i := slices.IndexFunc(groups, func(g *measureGroup) bool { return g.name == m.Name && g.unit == m.Unit })
		if i < 0 {
			i = len(groups)
			groups = append(groups, &measureGroup{name: m.Name, unit: m.Unit})
		}
		g := groups[i]
		k := slices.IndexFunc(g.rows, func(r *measureRow) bool { return r.target == m.Target && r.detail == m.Detail })
		if k < 0 {
			k = len(g.rows)
			g.rows = append(g.rows, &measureRow{target: m.Target, detail: m.Detail, unit: m.Unit})
		}
		g.rows[k].values = append(g.rows[k].values, m.Value)
	}
	return groups
}

// details are the distinct details of a group, in order.
func (g *measureGroup) details() (all []string) {
	for _, r := range g.rows {
		if !slices.Contains(all, r.detail) {
			all = append(all, r.detail)
		}
	}
	return all
}

// isRange reports that the details are a range over which the measure is shown,
// such as sizes: three or more, each beginning with a number.
func (g *measureGroup) isRange() bool {
	all := g.details()
	if slices.ContainsFunc(all, func(d string) bool { return d == "" || d[0] < '0' || d[0] > '9' }) {
		return false
	}
	return len(all) >= 3
}

// targets are the distinct targets of a group, in order.
func (g *measureGroup) targets() (all []string) {
	for _, r := range g.rows {
		if !slices.Contains(all, r.target) {
			all = append(all, r.target)
		}
	}
	return all
}

// row is that of a target and detail, nil if it was not measured.
func (g *measureGroup) row(target, detail string) *measureRow {
	for _, r := range g.rows {
		if r.target == target && r.detail == detail {
			return r
		}
	}
	return nil
}
