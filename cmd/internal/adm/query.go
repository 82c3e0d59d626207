package adm

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/pollux-project/pollux/protocol/adm"
	"github.com/pollux-project/pollux/replication/meta"
)

// unconfigured is what DRBD 8.4 says of a device without disk and net.
const unconfigured = "Unconfigured"

// queryCommands print one value per volume, in the words of DRBD 8.4.
func (a *app) queryCommands() []*cobra.Command {
	query := func(name, short, long string, value func(adm.Resource, adm.Volume) string, offline string) *cobra.Command {
		return a.resourceCommand(name, groupScripts, short, long, func(ctx context.Context, t target) error {
			return a.query(ctx, name, t, value, offline)
		})
	}
	return []*cobra.Command{
		query("role", "print the roles, LOCAL/PEER", "One line per volume: Primary/Secondary, or Unconfigured if the resource isn't up.",
			func(r adm.Resource, _ adm.Volume) string { return r.Role + "/" + r.PeerRole }, ""),
		query("cstate", "print the connection state", "One line per volume, such as Connected, WFConnection, StandAlone, SyncSource, SyncTarget.",
			func(r adm.Resource, v adm.Volume) string { return orElse(v.Replication, r.Connection) }, ""),
		query("dstate", "print the disk states, LOCAL/PEER", "One line per volume: UpToDate/UpToDate. If the resource is down, what the metadata says of the disk.",
			func(_ adm.Resource, v adm.Volume) string { return v.Disk + "/" + v.PeerDisk }, "dstate"),
		query("get-gi", "print the data generation UUIDs and flags", "CURRENT:BITMAP:HISTORY1:HISTORY2 and seven flags: consistent, was up to date, was primary, was connected,\n"+
			"full sync pending, peer outdated, crashed primary.",
			func(_ adm.Resource, v adm.Volume) string { return meta.GetGI(superblockOf(v)) }, "get-gi"),
		query("show-gi", "the same, explained", "",
			func(_ adm.Resource, v adm.Volume) string { return showGI(v) }, "show-gi"),
	}
}

// query asks the daemon for a value of each of t's volumes. If the daemon
// doesn't have the disk and there is an offline command, the metadata on the
// disk is asked.
func (a *app) query(ctx context.Context, name string, t target, value func(adm.Resource, adm.Volume) string, offline string) error {
	if a.dryRun {
		fmt.Fprintf(a.Out, "polluxd: %s %s\n", name, t)
		return nil
	}
	r, err := a.resourceStatus(ctx, t.Resource)
	var refused *adm.Error
	switch {
	case errors.Is(err, errNoDaemon) && offline != "", errors.As(err, &refused) && refused.Number == 158:
		r = adm.Resource{Name: t.Resource, State: adm.StateDown}
	case err != nil:
		return err
	}
	vols, err := a.volumes(t)
	if err != nil {
		return err
	}
	var errs []error
	for _, v := range vols {
		st, attached := findVolume(r, v.Number)
		switch {
		// A detached disk of a resource that is up is Diskless, as drbdadm says,
		// but its UUIDs can only be read from its metadata.
		case attached && (offline == "" || offline == "dstate" || st.Disk != "Diskless" || v.Disk == ""):
			fmt.Fprintln(a.Out, value(r, st))
		case offline != "" && v.Disk != "":
			errs = append(errs, a.runMeta(v, offline))
		default:
			fmt.Fprintln(a.Out, unconfigured)
		}
	}
	return a.worst(errs)
}

// findVolume returns the status of a volume of a resource that is up.
func findVolume(r adm.Resource, number int) (v adm.Volume, ok bool) {
	if r.State != adm.StateUp {
		return v, false
	}
	for _, v := range r.Volumes {
		if v.Volume == number {
			return v, true
		}
	}
	return v, false
}

// superblockOf is what the superblock of an attached disk holds of interest.
func superblockOf(v adm.Volume) meta.Superblock {
	sb := meta.Superblock{Flags: meta.Flags(v.Flags) | meta.MDFALClean}
	for i, to := range []*uint64{&sb.UUIDs.Current, &sb.UUIDs.Bitmap, &sb.UUIDs.History[0], &sb.UUIDs.History[1]} {
		u, err := strconv.ParseUint(v.UUIDs[i], 16, 64)
		if err != nil {
			u = 0 // the daemon sends 16 digits; an unknown UUID is 0
		}
		*to = u
	}
	return sb
}

func showGI(v adm.Volume) string {
	sb := superblockOf(v)
	text := meta.ShowGI(sb)
	const noSize = "zero size device -- never seen peer yet?\n" // the daemon knows the size better
	if len(text) > len(noSize) && text[len(text)-len(noSize):] == noSize {
		text = text[:len(text)-len(noSize)]
	}
	return text[:len(text)-1]
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
