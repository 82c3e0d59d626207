package ha

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/protocol/adm"
)

// keptVM says why a VM's description is an older one than its file. Zero: it is not.
type keptVM struct {
	since   time.Time
	why     string // what is wrong with the file
	removed bool   // there is no file any more: kept while the VM is here
}

// sentence is what status says of it.
func (k keptVM) sentence() string {
	at := k.since.UTC().Format("2006-01-02 15:04:05 MST")
	switch {
	case k.since.IsZero():
		return ""
	case k.removed:
		return fmt.Sprintf("its file is gone since %s: what it said stays in force until the VM is stopped", at)
	}
	return fmt.Sprintf("its file is wrong since %s: %s; the old one stays in force", at, k.why)
}

// partialError: a reload was carried out but for some VM files.
type partialError struct{ text string }

func (e *partialError) Error() string { return e.text }

func isPartial(err error) bool {
	var p *partialError
	return errors.As(err, &p)
}

// leftOut is a partialError about the VM files that are not in force; nil: all are.
func (c *configuration) leftOut() error {
	var list []string
	files := maps.Clone(c.broken)
	for _, v := range c.vms {
		if k, ok := c.kept[v.Name]; ok {
			delete(files, v.File)
			list = append(list, "vm "+v.Name+": "+k.sentence())
		}
	}
	for _, f := range sortedKeys(files) {
		list = append(list, fmt.Sprintf("%s is left out: %v", f, files[f]))
	}
	if len(list) == 0 {
		return nil
	}
	return &partialError{strings.Join(list, "; ")}
}

// keep has the descriptions of old stay in force whose files are wrong now, and of
// the VMs that are here also those whose files are gone: what runs must stay in
// somebody's hands. It fails if that can't be, since a VM that is here would be left alone.
func (c *configuration) keep(old *configuration, here func(v *conf.VM) bool, now time.Time) error {
	for _, v := range old.vms {
		k, wrong := c.wrongWith(v)
		if !wrong || !old.usable(v) || k.removed && !here(v) {
			continue
		}
		if !c.usable(v) {
			if here(v) {
				return fmt.Errorf("vm %s is here, and its resources can't be used as they are configured now: %s", v.Name, orElse(c.problemOf(v), k.why))
			}
			continue
		}
		if n := c.vm(v.Name); n != nil && n.Hash() == v.Hash() {
			continue // the file says what it said; what is wrong stands elsewhere
		}
		k.since = now
		if before, ok := old.kept[v.Name]; ok && before.removed == k.removed {
			k.since = before.since
		}
		c.kept[v.Name] = k
		c.vms = append(slices.DeleteFunc(c.vms, func(n *conf.VM) bool { return n.Name == v.Name }), v)
		delete(c.problems, v.Name)
		if p := c.problemOf(v); p != "" {
			c.problems[v.Name] = p
		}
	}
	slices.SortFunc(c.vms, func(a, b *conf.VM) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

// wrongWith says what is wrong with the file that v was read from.
func (c *configuration) wrongWith(v *conf.VM) (keptVM, bool) {
	if n := c.vm(v.Name); n != nil {
		p := c.problems[n.Name]
		if p != "" && !strings.Contains(p, n.File) {
			p = n.File + ": " + p
		}
		return keptVM{why: p}, p != ""
	}
	if err := c.broken[v.File]; err != nil {
		return keptVM{why: err.Error()}, true
	}
	return keptVM{removed: true}, true
}

// takeOver has c take the place of the configuration, with what is kept of that. anew
// reports that this needs another member, which the caller has to see to.
func (m *manager) takeOver(c *configuration) (anew bool, err error) {
	old := m.conf
	if err := c.keep(old, m.isHere, m.wall()); err != nil {
		return false, err
	}
	if beginsAnew(old.cluster, c.cluster) {
		if len(c.kept) > 0 { // a new member knows only what the files say
			return true, fmt.Errorf("the arbiter can't be changed now: %s", c.leftOut().Error())
		}
		_, err := c.coreOrLess(m.wall(), true)
		return true, err
	}
	if err := m.reconfigure(c); err != nil {
		return false, err
	}
	for _, name := range sortedKeys(c.kept) {
		if k := c.kept[name]; k != old.kept[name] {
			m.events.add(adm.HAEvent{Level: adm.HALevelWarning, Kind: adm.HAEventConfig, VM: name, Text: "vm " + name + ": " + k.sentence()})
		}
	}
	return false, nil
}

// isHere reports whether anything of a VM is on this node, as far as that is known.
func (m *manager) isHere(v *conf.VM) bool {
	if seen, ok := m.seen[v.Name]; ok && seen.Phase != ha.PhaseStopped {
		return true
	}
	for _, r := range resourcesOf(v) {
		if m.stores[r].Role == ha.Primary {
			return true
		}
	}
	s := m.core.Snapshot()
	return slices.ContainsFunc(s.Services, func(x ha.ServiceStatus) bool { return x.Name == v.Name && x.Node == s.Self })
}

// forgetRemoved drops the VMs whose files are gone once they are stopped.
func (m *manager) forgetRemoved() {
	for _, name := range sortedKeys(m.conf.kept) {
		v := m.conf.vm(name)
		if !m.conf.kept[name].removed || m.isHere(v) {
			continue
		}
		c := *m.conf // status may still read the old one
		c.vms = slices.DeleteFunc(slices.Clone(c.vms), func(x *conf.VM) bool { return x == v })
		c.kept, c.problems = maps.Clone(c.kept), maps.Clone(c.problems)
		delete(c.kept, name)
		delete(c.problems, name)
		if err := m.reconfigure(&c); err != nil {
			m.log.Error().Str("vm", name).Err(err).Msg("its file is gone, and it can't be taken out")
			continue
		}
		m.events.add(adm.HAEvent{Level: adm.HALevelInfo, Kind: adm.HAEventConfig, VM: name, Text: "vm " + name + ": it is stopped, and its file is gone: nobody looks after it here any more"})
	}
}
