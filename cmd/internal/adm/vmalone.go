package adm

import (
	"fmt"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor"
	"github.com/pollux-project/pollux/protocol/adm"
)

// Without a cluster polluxadm itself runs machines, and nobody stays to look after
// what else a description may ask for. Half of it would be worse than a refusal.
func runsAlone(v *conf.VM) error {
	what := ""
	switch {
	case v.IsUnits():
		what = "systemd units"
	case len(v.IPs) > 0:
		what = "floating addresses"
	default:
		return nil
	}
	return &adm.Error{
		Exit: adm.ExitRefused, Text: fmt.Sprintf("vm %s: its file has %s, which only polluxha handles, and this node is in no cluster", v.Name, what),
		Advice: "polluxadm cluster init, or cluster join TOKEN",
	}
}

// managedElsewhere refuses to promote, outside a cluster, what only a manager may.
func (m *machine) managedElsewhere() error {
	d, err := m.a.settings()
	if err != nil {
		return err
	}
	for _, name := range m.resources() {
		switch d.Resource[name].Manager {
		case conf.ManagerInternal:
			return &adm.Error{
				Exit: adm.ExitRefused,
				Text: fmt.Sprintf("vm %s: polluxha alone promotes resource %s (manager = \"internal\"), and this node is in no cluster: nothing was started", m.vm.Name, name),
				Advice: fmt.Sprintf("polluxadm cluster init NAME --link IP:PORT, or cluster join TOKEN; or, to run it by hand: take manager out of [resource.%s] in %s on both nodes, then polluxadm down %s, up %s",
					name, m.a.settingsPath(), name, name),
			}
		case conf.ManagerPacemaker:
			return &adm.Error{
				Exit:   adm.ExitRefused,
				Text:   fmt.Sprintf("vm %s: Pacemaker promotes resource %s (manager = \"pacemaker\"): nothing was started", m.vm.Name, name),
				Advice: "start it with Pacemaker (pcs, crm)",
			}
		}
	}
	return nil
}

// localDisks makes the disks that are not replicated ready for a start.
func localDisks(v *conf.VM) error {
	for _, d := range v.LocalDisks {
		local := hypervisor.LocalDisk{Path: d.Path, SizeBytes: int64(d.Size), Swap: d.Format == "swap"} //nolint:gosec // conf bounds it
		if err := hypervisor.PrepareLocalDisk(local); err != nil {
			return fmt.Errorf("vm %s: %w", v.Name, err)
		}
	}
	return nil
}
