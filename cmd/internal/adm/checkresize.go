package adm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/protocol/adm"
	"github.com/pollux-project/pollux/replication/engine"
)

// checkResizeCommand moves internal metadata to the end of disks that were
// enlarged while the resource was down. An attached disk is a matter of resize.
func (a *app) checkResizeCommand() *cobra.Command {
	return a.resourceCommand("check-resize", groupSetup, "move internal metadata to the end of a disk that was enlarged",
		"For a resource that is down; a running one does it with resize. Where the metadata was is remembered since the last up.\n"+
			"Nothing is done, without an error, if it is in its place, or if the disk is attached.",
		func(ctx context.Context, t target) error { return a.checkResize(ctx, t) })
}

func (a *app) checkResize(ctx context.Context, t target) error {
	vols, err := a.volumes(t)
	if err != nil {
		return err
	}
	s, err := a.settings()
	if err != nil {
		return err
	}
	r, err := a.resourceStatus(ctx, t.Resource)
	var refused *adm.Error
	if err != nil && !errors.Is(err, errNoDaemon) && (!errors.As(err, &refused) || refused.Number != 158) {
		return err
	}
	var errs []error
	for _, v := range vols {
		st, up := findVolume(r, v.Number)
		if v.Disk == "" || v.MetaDisk != "" || up && st.Disk != "Diskless" {
			continue
		}
		if a.dryRun {
			fmt.Fprintf(a.Out, "polluxadm check-resize %s/%d\n", t.Resource, v.Number)
			continue
		}
		errs = append(errs, a.checkResizeVolume(s.StateDir, t.Resource, v))
	}
	return a.worst(errs)
}

func (a *app) checkResizeVolume(stateDir, resource string, v conf.Volume) error {
	name := fmt.Sprintf("%s/%d", resource, v.Number)
	record, err := engine.ReadDeviceRecord(stateDir, resource, v.Number)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &adm.Error{Exit: adm.ExitEnvironment, Text: fmt.Sprintf("%s: %v", name, err)}
	}
	if record.Disk != v.Disk {
		record = engine.DeviceRecord{} // of another disk
	}
	dev, err := blockdev.Open(v.Disk, blockdev.Options{Exclusive: true})
	if err != nil {
		return &adm.Error{Exit: adm.ExitEnvironment, Text: fmt.Sprintf("%s: %v", name, err), Advice: "end what uses the disk, then repeat the command"}
	}
	was := record.Bytes
	moved, err := engine.CheckResize(dev, record)
	if moved && err == nil {
		record.Bytes = dev.Size()
		err = record.Write(stateDir, resource, v.Number)
	}
	if cerr := dev.Close(); err == nil {
		err = cerr
	}
	switch {
	case err != nil:
		return &adm.Error{
			Exit: adm.ExitUsage, Text: fmt.Sprintf("%s: check-resize of %s: %v", name, v.Disk, err),
			Advice: "if the disk is new: polluxadm create-md " + resource + "; if it has shrunk, give it its old size back",
		}
	case moved:
		fmt.Fprintf(a.Err, "%s: internal meta data of %s moved from byte %d to %d\n", name, v.Disk, was, record.Bytes)
	}
	return nil
}
