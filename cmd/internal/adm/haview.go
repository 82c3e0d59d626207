package adm

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pollux-project/pollux/protocol/adm"
)

// haColour is how a level of polluxha's is painted.
func haColour(level string) level {
	switch level {
	case adm.HALevelWarning:
		return degraded
	case adm.HALevelCritical:
		return atRisk
	}
	return protected
}

// A grid is a table whose columns are as wide as their contents; the last one is
// as long as it likes.
type grid struct {
	rows  [][]string
	paint []func(string) string // of a whole row; nil leaves it alone
}

func (g *grid) add(paint func(string) string, cells ...string) {
	g.rows, g.paint = append(g.rows, cells), append(g.paint, paint)
}

func (g *grid) write(w io.Writer) {
	var widths []int
	for _, row := range g.rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	for r, row := range g.rows {
		var b strings.Builder
		for i, c := range row {
			b.WriteString(c)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c)+2))
			}
		}
		line := strings.TrimRight(b.String(), " ")
		if g.paint[r] != nil {
			line = g.paint[r](line)
		}
		fmt.Fprintln(w, line)
	}
}

// writeCluster prints cluster status: the arbiter, one line a node, one sentence.
func writeCluster(w io.Writer, c adm.HACluster, p palette) {
	fmt.Fprintf(w, "%s  seen from %s\n", p.bold("cluster "+orElse(c.Name, "-")), c.Node)
	fmt.Fprintf(w, "arbiter %s\n\n", arbiterLine(c.Arbiter))
	g := &grid{}
	g.add(p.bold, "NODE", "STATE", "TERM", "VOTES", "IN-SYNC", "LEASE", "LINKS", "VMS")
	for _, n := range c.Nodes {
		var paint func(string) string
		switch {
		case n.State == adm.NodeError || !n.Online:
			paint = func(s string) string { return p.level(atRisk, s) }
		case n.Standby || !n.SameConfig || n.State == adm.NodeCandidate:
			paint = func(s string) string { return p.level(degraded, s) }
		}
		inSync, term := "-", "-"
		if n.Kind != adm.NodeWitness {
			term = fmt.Sprint(n.Term)
			inSync = fmt.Sprintf("%d of %d", n.InSync, n.Copies)
		}
		g.add(paint, n.Name, nodeState(n), term, n.Votes, inSync, leaseWord(n), linkWord(n), orElse(strings.Join(n.VMs, " "), "-"))
	}
	g.write(w)
	for _, n := range c.Nodes {
		if n.Why != "" {
			fmt.Fprintf(w, "  %s: %s\n", n.Name, n.Why)
		}
	}
	fmt.Fprintf(w, "\n%s\n", p.level(haColour(c.Level), c.Verdict))
	if c.Advice != "" {
		fmt.Fprintf(w, "  hint: %s\n", c.Advice)
	}
}

func arbiterLine(a adm.HAArbiter) string {
	state := "answers"
	switch {
	case a.Kind == "":
		return "none"
	case a.Kind == "manual":
		state = "nobody decides by itself"
	case !a.Reachable && a.SinceMS < 0:
		state = "NOT REACHABLE, never was"
	case !a.Reachable:
		state = "NOT REACHABLE for " + millis(a.SinceMS)
	}
	s := a.Kind + ": " + state
	if a.TTLMS > 0 && a.Kind != "manual" {
		s += ", a lease lasts " + millis(a.TTLMS)
	}
	if a.SelfTest != nil {
		s += ", fence agents tested " + a.SelfTest.Format("2006-01-02 15:04")
	} else if a.Kind == "fence" {
		s += ", fence agents NOT TESTED"
	}
	if a.Detail != "" {
		s += " (" + a.Detail + ")"
	}
	return s
}

func nodeState(n adm.HANode) string {
	s := n.State
	if n.Standby {
		s += ", standby"
	}
	if !n.Online {
		s += ", silent"
		if n.SilentMS > 0 {
			s += " for " + millis(n.SilentMS)
		}
	}
	return s
}

func leaseWord(n adm.HANode) string {
	if n.Lease == "alive" && n.LeaseMS > 0 {
		return "alive, " + millis(n.LeaseMS)
	}
	return orElse(n.Lease, "-")
}

func linkWord(n adm.HANode) string {
	if len(n.Links) == 0 {
		return "-"
	}
	up := 0
	for _, l := range n.Links {
		if l.Up {
			up++
		}
	}
	return fmt.Sprintf("%d of %d", up, len(n.Links))
}

// millis is a time as people say it: 350ms, 4.2s, 3 minutes.
func millis(ms int64) string {
	d := time.Duration(ms) * time.Millisecond
	switch {
	case d < time.Second:
		return d.String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	}
	return roundAge(d)
}

// writeNodes prints node list: where there is room.
func writeNodes(w io.Writer, c adm.HACluster, p palette) {
	g := &grid{}
	g.add(p.bold, "NODE", "KIND", "STATE", "VMS", "FREE MEMORY", "VERSION")
	for _, n := range c.Nodes {
		var paint func(string) string
		if !n.Online {
			paint = func(s string) string { return p.level(atRisk, s) }
		}
		memory := "-"
		if n.MemoryBytes > 0 {
			memory = fmt.Sprintf("%.1f of %.1f GiB", float64(n.FreeBytes)/(1<<30), float64(n.MemoryBytes)/(1<<30))
		}
		g.add(paint, n.Name, n.Kind, nodeState(n), orElse(strings.Join(n.VMs, " "), "-"), memory, orElse(n.Version, "-"))
	}
	g.write(w)
	for _, n := range c.Nodes {
		if n.Why != "" {
			fmt.Fprintf(w, "  %s: %s\n", n.Name, n.Why)
		}
	}
}

// writeVMs prints vm list: one line a machine, and below it what is wrong.
func writeVMs(w io.Writer, vms []adm.HAVM, p palette) {
	if len(vms) == 0 {
		fmt.Fprintln(w, "no virtual machine is described")
		return
	}
	g := &grid{}
	g.add(p.bold, "VM", "STATE", "NODE", "TARGET", "PROTECTION")
	var notes []string
	for _, v := range vms {
		var paint func(string) string
		if v.Level == adm.HALevelWarning || v.Level == adm.HALevelCritical {
			paint = func(s string) string { return p.level(haColour(v.Level), s) }
		}
		target := v.Target
		if !v.Enabled {
			target += ", disabled"
		}
		g.add(paint, v.Name, v.State, orElse(v.Node, "-"), target, orElse(v.Protection, "-"))
		if v.Why != "" {
			notes = append(notes, fmt.Sprintf("  %s: %s", v.Name, strings.TrimPrefix(v.Why, v.Name+": "))) // its resource often has its name
		}
		if v.Advice != "" {
			notes = append(notes, "  hint: "+v.Advice)
		}
	}
	g.write(w)
	if len(notes) > 0 {
		fmt.Fprintln(w)
	}
	for _, n := range notes {
		fmt.Fprintln(w, n)
	}
}

// writeVM prints vm status: everything that is known of one machine.
func writeVM(w io.Writer, v adm.HAVM, p palette, now time.Time) {
	state := v.State
	if v.Node != "" {
		state += " on " + v.Node
	}
	if v.Since != nil {
		state += " for " + roundAge(now.Sub(*v.Since))
	}
	fmt.Fprintf(w, "%s  %s\n", p.bold(v.Name), p.level(haColour(v.Level), state))
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "    %s %s\n", p.dim(fmt.Sprintf("%-11s", name)), strings.TrimRight(fmt.Sprintf(format, args...), " "))
	}
	if v.Why != "" {
		row("why", "%s", v.Why)
	}
	if v.Advice != "" {
		row("hint", "%s", v.Advice)
	}
	target := v.Target
	if !v.Enabled {
		target += ", disabled: polluxha leaves it as it is"
	}
	row("target", "%s", target)
	row("protection", "%s", orElse(v.Protection, "-"))
	row("nodes", "%s", strings.Join(v.Nodes, ", "))
	row("runs by", "%s%s", v.Hypervisor, prefixed(", incarnation ", v.Incarnation))
	if len(v.IPs) > 0 {
		row("addresses", "%s", strings.Join(v.IPs, " "))
	}
	if v.Monitor != "" {
		row("monitor", "%s, %d restarts", v.Monitor, v.Restarts)
	}
	if !v.SameConfig {
		row("file", "%s DIFFERS between its nodes: no automatic failover", v.File)
	} else {
		row("file", "%s", v.File)
	}
	for _, r := range v.Resources {
		row("resource", "%s", haResourceLine(r))
		if r.Frozen != "" {
			row("", "frozen: %s", r.Frozen)
		}
	}
}

func haResourceLine(r adm.HAResource) string {
	record := "nothing recorded yet"
	if r.Term > 0 {
		record = fmt.Sprintf("term %d of %s, in sync: %s", r.Term, orElse(r.Owner, "nobody"), strings.Join(r.InSync, " "))
		if r.Released {
			record += ", released"
		}
	}
	local := ""
	if r.Role != "" {
		local = fmt.Sprintf("; here %s, %s, disk %s, peer's %s", r.Role, r.Connection, r.Disk, r.PeerDisk)
		if r.LocalTerm != r.Term {
			local += fmt.Sprintf(", term %d", r.LocalTerm)
		}
		if r.Sole {
			local += ", sole writer"
		}
	}
	return r.Name + "  " + record + local + prefixed("; may lose ", r.MaxLoss)
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

// haEventLine is one event for people.
func haEventLine(e adm.HAEvent, p palette) string {
	subject := e.VM
	for _, s := range []string{e.Resource, e.Peer} {
		if subject == "" {
			subject = s
		}
	}
	if subject != "" {
		subject += ": "
	}
	text := e.Text // most begin with the subject already
	for subject != "" && strings.HasPrefix(strings.TrimPrefix(text, "vm "), subject) {
		text = strings.TrimPrefix(strings.TrimPrefix(text, "vm "), subject)
	}
	if e.Kind == adm.HAEventAlarm && e.Level == adm.HALevelOK {
		text = "over: " + text
	}
	line := fmt.Sprintf("%s  %-8s  %-8s  %s%s", e.Time.Format("2006-01-02 15:04:05.000"), e.Node, e.Kind, subject, text)
	if e.Level == adm.HALevelWarning || e.Level == adm.HALevelCritical {
		return p.level(haColour(e.Level), line)
	}
	return line
}

// writeDrill prints a client's view of the outage, as a time line.
func writeDrill(w io.Writer, d adm.HADrillResult, p palette) {
	g := &grid{}
	g.add(p.bold, "AFTER", "NODE", "WHAT")
	for _, m := range d.Marks {
		g.add(nil, fmt.Sprintf("%.2f s", float64(m.AtMS)/1000), orElse(m.Node, "-"), m.Text)
	}
	g.write(w)
	fmt.Fprintf(w, "\nprobe: %s\n", orElse(d.Probe, "-"))
	if d.OutageMS < 0 {
		fmt.Fprintln(w, p.level(atRisk, fmt.Sprintf("%s did not come back", d.VM)))
		return
	}
	waited := "its clients waited %.1f s"
	if strings.HasPrefix(d.Probe, "the VM's process") {
		waited = "it was switched off for %.1f s; for its clients the boot comes on top"
	}
	fmt.Fprintln(w, p.level(protected, fmt.Sprintf("%s moved from %s to %s; "+waited, d.VM, d.From, d.To, float64(d.OutageMS)/1000)))
}
