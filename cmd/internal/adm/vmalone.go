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
