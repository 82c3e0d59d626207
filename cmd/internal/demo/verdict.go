package demo

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pollux-project/pollux/cmd/internal/demo/records"
	"github.com/pollux-project/pollux/cmd/internal/demo/storage"
)

// judge compares the client's log with the second node's disk.
func (d *demo) judge(ctx context.Context) error {
	d.rep.chapter("the verdict: the VM's log of acknowledgements against beta's own disk")
	first, err := d.alpha.console.acks()
	if err != nil {
		return err
	}
	second, err := d.beta.console.acks()
	if err != nil {
		return err
	}
	acks := slices.Concat(first, second)
	found, damaged, err := storage.ReadRecords(ctx, d.beta.image(), "/records", filepath.Join(d.dir, "records"))
	if err != nil {
		return err
	}
	lost := records.Judge(acks, found, damaged)
	for i, l := range lost {
		if i == 10 {
			d.rep.detail("… and %d more", len(lost)-i)
			break
		}
		d.rep.detail("LOST: record %d: %s", l.Ack.Number, l.Why)
	}
	if len(lost) > 0 {
		d.faults = append(d.faults, fmt.Sprintf("%d of %d acknowledged records lost", len(lost), len(acks)))
	}
	if err := storage.CheckFilesystem(ctx, d.beta.image()); err != nil {
		d.fault("beta's filesystem: %v", err)
	}
	if at, err := storage.SameContent(d.alpha.image(), d.beta.image(), d.cfg.VolumeBytes-metadataBytes); err != nil {
		return err
	} else if at >= 0 {
		d.fault("the two disks differ, first at byte %d", at)
	}
	d.figures.acked, d.figures.lost = len(acks), len(lost)
	d.summary()
	return nil
}

func (d *demo) summary() {
	f := d.figures
	seconds := func(t time.Duration) string { return fmt.Sprintf("%.2f s", t.Seconds()) }
	d.rep.table([]row{
		{"records acknowledged", fmt.Sprint(f.acked)},
		{"records lost", fmt.Sprint(f.lost)},
		{"journal after the crash", f.journal},
		{"initial sync", fmt.Sprintf("%d KiB in %s", f.volumeKiB, seconds(f.initialSync))},
		{"failover: to the decision", seconds(f.notice)},
		{"failover: to the guest's journal", seconds(f.boot)},
		{"failover: to the first new record", seconds(f.outage)},
		{"resync of the first node", fmt.Sprintf("%d KiB in %s", f.resyncKiB, seconds(f.resync))},
		{"planned move back", seconds(f.back)},
	})
	d.rep.outage("what a client of the VM saw of alpha's death:", []phase{
		{"until alpha's lease had ended", f.notice}, {"until the VM had booted on beta", f.boot - f.notice}, {"until its first new record", f.outage - f.boot},
	})
	if len(d.faults) == 0 {
		d.rep.verdict(true, "every acknowledged record is on the second node")
		fmt.Fprintln(d.cfg.Out, "  Next: docs/failover.md sets it up on real hosts; make ha tries every kind of failure.")
		return
	}
	d.rep.verdict(false, strings.Join(d.faults, "; "))
}
