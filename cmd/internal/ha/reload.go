package ha

import (
	"errors"
	"fmt"
	"slices"
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

// takeOver has c take the place of the configuration, with what is kept of that. anew
// reports that this needs another member, which the caller has to see to.
func (m *manager) takeOver(c *configuration) (anew bool, err error) {
	old := m.conf
	if err := c.choose(old, m.isHere, m.wall()); err != nil {
		return false, err
	}
	if beginsAnew(old.cluster, c.cluster) {
		if len(c.kept) > 0 { // first things first
			return true, fmt.Errorf("the arbiter can't be changed now: %s", c.leftOut().Error())
		}
		_, err := c.core(m.wall())
		return true, err
	}
	if err := m.reconfigure(c); err != nil {
		return false, err
	}
	m.tellLeft(old)
	return false, nil
}

// tellLeft tells of the files that are not in force, where that is news.
func (m *manager) tellLeft(old *configuration) {
	c := m.conf
	for _, name := range sortedKeys(c.kept) {
		if k := c.kept[name]; k != old.kept[name] {
			m.events.add(adm.HAEvent{Level: adm.HALevelWarning, Kind: adm.HAEventConfig, VM: name, Text: "vm " + name + ": " + k.sentence()})
		}
	}
	for _, f := range c.left {
		if _, kept := c.kept[f.name]; !kept && !slices.Contains(old.left, f) {
			m.events.add(adm.HAEvent{Level: adm.HALevelWarning, Kind: adm.HAEventConfig, VM: f.name, Text: f.sentence()})
		}
	}
	for _, name := range sortedKeys(c.problems) {
		if p := c.problems[name]; p != old.problems[name] {
			m.events.add(adm.HAEvent{Level: adm.HALevelWarning, Kind: adm.HAEventConfig, VM: name, Text: "vm " + name + ": " + p})
		}
	}
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

// forgetRemoved drops the VMs whose files are gone once they are stopped. What they
// stood in the way of is taken up.
func (m *manager) forgetRemoved() {
	var gone []string
	for _, name := range sortedKeys(m.conf.kept) {
		if v := m.conf.vm(name); m.conf.kept[name].removed && m.isKnown(v) && !m.isHere(v) {
			gone = append(gone, name)
		}
	}
	if len(gone) == 0 {
		return
	}
	c, old := *m.conf, m.conf // status may still read the old one
	err := c.choose(old, m.isHere, m.wall())
	if err == nil {
		err = m.reconfigure(&c)
	}
	if err != nil {
		m.log.Error().Strs("vms", gone).Err(err).Msg("their files are gone, and they can't be taken out")
		return
	}
	for _, name := range gone {
		m.events.add(adm.HAEvent{Level: adm.HALevelInfo, Kind: adm.HAEventConfig, VM: name, Text: "vm " + name + ": it is stopped, and its file is gone: nobody looks after it here any more"})
	}
	m.tellLeft(old)
}

// isKnown reports whether it was looked whether a VM is here, since the start.
func (m *manager) isKnown(v *conf.VM) bool {
	if _, ok := m.seen[v.Name]; !ok && m.services[v.Name] != nil {
		return false
	}
	for _, r := range resourcesOf(v) {
		if _, ok := m.stores[r]; !ok {
			return false
		}
	}
	return true
}
