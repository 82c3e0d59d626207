package daemon

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/pollux-project/pollux/protocol/adm"
)

// reload reads all configuration files and then makes the daemon agree with
// them: new resources come up, removed ones go down, changed ones are
// adjusted. If any file is wrong nothing changes. What can't be changed while
// running (sockets, state directory, node name) needs a restart and says so.
func (d *Daemon) reload() error {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	l, err := d.reread()
	if err != nil {
		return err
	}
	added, removed, changed := d.switchTo(l)
	var failed []string
	for _, r := range removed {
		r.admin.Lock()
		if err := r.down(); err != nil {
			// It is in use: it stays as it is until somebody takes it down.
			d.keep(r)
			failed = append(failed, fmt.Sprintf("%s is no longer configured but can't be taken down: %s", r.name, oneLine(err)))
		}
		r.admin.Unlock()
		d.hub.changed(r.name)
	}
	for _, r := range slices.Concat(added, changed) {
		r.admin.Lock()
		if err := r.adjust(); err != nil {
			failed = append(failed, fmt.Sprintf("%s: %s", r.name, oneLine(err)))
		}
		r.admin.Unlock()
		d.hub.changed(r.name)
	}
	d.log.Info().Int("added", len(added)).Int("removed", len(removed)).Int("changed", len(changed)).Msg("configuration reloaded")
	if len(failed) > 0 {
		return &adm.Error{
			Exit: adm.ExitRefused, Text: "the new configuration is in force, but: " + strings.Join(failed, "; "),
			Advice: "polluxadm status shows how things stand",
		}
	}
	return nil
}

// reread reads the files again. Its error is complete for the user and
// means that nothing has changed.
func (d *Daemon) reread() (*loadedConfig, error) {
	old := d.currentSettings()
	l, err := load(old.File, old.File != "")
	if err != nil {
		return nil, &adm.Error{
			Exit: adm.ExitRefused, Text: err.Error(),
			Advice: "polluxd goes on with the old configuration; correct the file and repeat the command",
		}
	}
	s := l.settings
	for _, c := range []struct {
		key      string
		old, now any
	}{
		{"node-name", old.NodeName, s.NodeName},
		{"control-socket", old.ControlSocket, s.ControlSocket},
		{"state-dir", old.StateDir, s.StateDir},
		{"nbd", old.NBD, s.NBD},
		{"log", old.Log, s.Log},
		{"metrics", old.Metrics, s.Metrics},
		{"attach-device", old.AttachDevice, s.AttachDevice},
	} {
		if !reflect.DeepEqual(c.old, c.now) {
			return nil, &adm.Error{
				Exit: adm.ExitRefused, Text: fmt.Sprintf("%s: %s can't be changed while polluxd runs", s.File, c.key),
				Advice: "restart polluxd (VMs and mounted devices wait for it), or undo the change",
			}
		}
	}
	for _, w := range l.warnings {
		d.log.Warn().Msg(w)
	}
	return l, nil
}

// switchTo puts a configuration in force and tells what is different.
func (d *Daemon) switchTo(l *loadedConfig) (added, removed, changed []*resource) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.settings, d.files = l.settings, l.files
	seen := map[string]bool{}
	for _, spec := range l.specs {
		seen[spec.Name] = true
		r := d.resources[spec.Name]
		if r == nil {
			r = newResource(d, spec)
			d.resources[spec.Name] = r
			added = append(added, r)
			continue
		}
		r.mu.Lock()
		if !reflect.DeepEqual(r.spec, spec) {
			r.spec = spec
			if r.eng != nil {
				changed = append(changed, r)
			}
		}
		r.mu.Unlock()
	}
	for name, r := range d.resources {
		if !seen[name] {
			delete(d.resources, name)
			removed = append(removed, r)
		}
	}
	return added, removed, changed
}

func (d *Daemon) keep(r *resource) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.resources[r.name] = r
}

// reloadResource takes over the configuration of one resource, for up and
// adjust. The files are checked as a whole; the other resources stay as they
// are until they are adjusted themselves.
func (d *Daemon) reloadResource(name string) error {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	l, err := d.reread()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(l.specs, func(s resourceSpec) bool { return s.Name == name })
	if i < 0 {
		d.dropIfDown(name) // it may still be up from before; else it is unknown
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files = l.files
	r := d.resources[name]
	if r == nil {
		d.resources[name] = newResource(d, l.specs[i])
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spec = l.specs[i]
	return nil
}

// forget drops a resource that is down and that the files no longer define for
// this node. One that is defined, or up, stays.
func (d *Daemon) forget(name string) error {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	l, err := d.reread()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(l.specs, func(s resourceSpec) bool { return s.Name == name }) {
		d.dropIfDown(name)
	}
	return nil
}

// dropIfDown drops a resource unless it is up: it would come up again by
// its old configuration.
func (d *Daemon) dropIfDown(name string) {
	r := d.resource(name)
	if r == nil {
		return
	}
	r.admin.Lock()
	defer r.admin.Unlock()
	r.mu.Lock()
	isUp := r.eng != nil
	r.closed = r.closed || !isUp // whoever has waited for it must not bring it up
	r.mu.Unlock()
	if isUp {
		return
	}
	d.mu.Lock()
	delete(d.resources, name)
	d.mu.Unlock()
	d.hub.changed(name)
}
