package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/pollux-project/pollux/cmd/internal/demo/storage"
	"github.com/pollux-project/pollux/protocol/adm"
)

// How long things may take: generous, for emulated guests on a busy machine.
// The whole story takes a minute and a half on two idle cores.
const (
	wholeLimit = 170 * time.Second // the promise is three minutes
	bootLimit  = 60 * time.Second
	writeLimit = 60 * time.Second
	syncLimit  = "90s" // of polluxadm wait-sync
	cleanLimit = 20 * time.Second
)

// How much the guest writes in each act, in records; then, before the crash,
// up to crashSpread more, so that nobody can know the moment.
const (
	recordsPerAct = 200
	crashSpread   = 3 * time.Second
)

// Config says what to play with.
type Config struct {
	Bin         string // directory of polluxd and polluxadm
	Guest       string // directory of vmlinuz and initramfs.cpio (scripts/demo/build-guest)
	WorkDir     string // everything is put below it; "" = the system's directory for temporary files
	VolumeBytes int64  // size of each node's disk; 0 = 256 MiB
	Keep        bool   // leave the logs and disks even after a success
	Sabotage    bool   // lose one acknowledged record on the second node: the demo must fail
	Out         io.Writer
}

const defaultVolumeBytes = 256 << 20

// ErrFailed says that the story did not end well; the reasons were printed.
var ErrFailed = errors.New("the demo failed")

// demo is the state of one performance.
type demo struct {
	cfg         Config
	rep         *report
	dir         string
	alpha, beta *node
	gamma       *node // the witness
	killed      time.Time
	highest     uint64   // the highest record acknowledged before the crash
	faults      []string // what went wrong without ending the story
	figures     figures
}

// figures go into the table.
type figures struct {
	acked, lost               int
	journal                   string
	notice, boot, outage      time.Duration // of the failover, each from the kill on
	resyncKiB, volumeKiB      uint64
	initialSync, resync, back time.Duration
}

// Run plays the story and prints it. The error is ErrFailed if a record was
// lost or anything else was not as it must be. It leaves nothing running, and
// after a failure the logs, in a directory that it names.
func Run(ctx context.Context, cfg Config) (err error) {
	if cfg.VolumeBytes == 0 {
		cfg.VolumeBytes = defaultVolumeBytes
	}
	d := &demo{cfg: cfg, rep: newReport(cfg.Out)}
	if err := d.prepare(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, wholeLimit)
	defer cancel()
	err = d.play(ctx)
	if clean := d.cleanUp(); clean != nil {
		err = errors.Join(err, clean)
	}
	if err == nil && len(d.faults) > 0 {
		err = ErrFailed
	}
	if err != nil || cfg.Keep {
		d.rep.endLive()
		fmt.Fprintf(cfg.Out, "  logs and disks are in %s\n", d.dir)
		return err
	}
	return os.RemoveAll(d.dir)
}

// prepare makes the directories. Paths get short names: unix sockets need that.
func (d *demo) prepare(ctx context.Context) (err error) {
	for _, path := range []*string{&d.cfg.Bin, &d.cfg.Guest} {
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	for _, file := range []string{
		filepath.Join(d.cfg.Bin, "polluxd"), filepath.Join(d.cfg.Bin, "polluxha"), filepath.Join(d.cfg.Bin, "polluxadm"),
		filepath.Join(d.cfg.Guest, "vmlinuz"), filepath.Join(d.cfg.Guest, "initramfs.cpio"),
	} {
		if _, err := os.Stat(file); err != nil {
			return fmt.Errorf("%w; 'make demo' makes it", err)
		}
	}
	if d.dir, err = os.MkdirTemp(d.cfg.WorkDir, "pollux-demo-"); err != nil {
		return err
	}
	network, err := freeNetwork()
	if err != nil {
		return err
	}
	for i, n := range []**node{&d.alpha, &d.beta, &d.gamma} {
		name := []string{"alpha", "beta", "gamma"}[i]
		if *n, err = newNode(name, filepath.Join(d.dir, name), d.cfg.Bin, fmt.Sprint(network, i+1)); err != nil {
			return err
		}
	}
	d.gamma.witness = true
	d.figures.volumeKiB = uint64(d.cfg.VolumeBytes >> 10)
	return configure(ctx, [2]*node{d.alpha, d.beta}, d.gamma, d.cfg.Guest, d.cfg.VolumeBytes)
}

// play is the story, one chapter after the other.
func (d *demo) play(ctx context.Context) error {
	for _, chapter := range []func(context.Context) error{
		d.startNodes,
		d.syncFirst,
		d.formCluster,
		d.bootOnAlpha,
		d.killAlpha,
		d.sabotage,
		d.failOver,
		d.alphaReturns,
		d.switchBack,
		d.endWell,
		d.judge,
	} {
		if err := chapter(ctx); err != nil {
			d.rep.endLive()
			return err
		}
	}
	return nil
}

// fault notes something that must not be; the story goes on, the verdict is spoken.
func (d *demo) fault(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	d.faults = append(d.faults, text)
	d.rep.detail("WRONG: %s", text)
}

func (d *demo) startNodes(ctx context.Context) error {
	fmt.Fprintf(d.cfg.Out, "  A VM survives the death of its node. About a minute; nothing is installed, and nothing stays.\n\n")
	d.rep.chapter("two nodes, alpha and beta, a disk of %d MiB on each, and gamma, which only has a vote", d.cfg.VolumeBytes>>20)
	for _, n := range []*node{d.alpha, d.beta} {
		if _, err := n.adm(ctx, "create-md", "--force", resourceName); err != nil {
			return err
		}
	}
	for _, n := range []*node{d.alpha, d.beta, d.gamma} {
		if err := n.start(ctx); err != nil {
			return err
		}
	}
	for _, n := range []*node{d.alpha, d.beta} {
		if _, err := n.adm(ctx, "wait-connect", "--timeout", "30s", resourceName); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) syncFirst(ctx context.Context) error {
	d.rep.chapter("alpha's disk, with an empty ext4, is copied to beta once")
	began := time.Now()
	if _, err := d.alpha.adm(ctx, "primary", "--force", "--confirm="+resourceName, resourceName); err != nil {
		return err
	}
	if err := d.waitSync(ctx, d.alpha); err != nil {
		return err
	}
	d.figures.initialSync = time.Since(began)
	_, err := d.alpha.adm(ctx, "secondary", resourceName)
	return err
}

// waitSync shows polluxadm's own progress bar.
func (d *demo) waitSync(ctx context.Context, n *node) error {
	args := []string{"wait-sync", "--timeout", syncLimit, resourceName}
	if !d.rep.terminal {
		return n.admLines(ctx, func(line string) { d.rep.detail("%s", line) }, args...)
	}
	cmd := n.admCommand(ctx, args...)
	cmd.Stdout, cmd.Stderr = d.cfg.Out, d.cfg.Out
	return n.admError(cmd.Run(), args, "")
}

func (d *demo) bootOnAlpha(ctx context.Context) error {
	d.rep.chapter("the VM boots on alpha and writes numbered records, each with fsync")
	if err := d.startVM(ctx, d.alpha); err != nil {
		return err
	}
	return d.letWrite(ctx, d.alpha, recordsPerAct)
}

// startVM boots the VM on n and checks what it says about its disk.
func (d *demo) startVM(ctx context.Context, n *node) error {
	if err := n.console.newRun(); err != nil {
		return err
	}
	if err := d.order(ctx, n, adm.HARequest{Cmd: adm.HAVMStart, VM: vmName}); err != nil {
		return err
	}
	_, err := d.checkBoot(ctx, n)
	return err
}

// checkBoot waits for the guest's findings and notes those that are not good.
func (d *demo) checkBoot(ctx context.Context, n *node) (health, error) {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	h, err := n.console.booted(ctx)
	if err != nil {
		return h, err
	}
	d.rep.detail("guest on %s: journal %s, e2fsck %s, %d records found", n.name, h.journal, h.fsck, h.found)
	for _, f := range h.faults(d.highest) {
		d.fault("on %s %s", n.name, f)
	}
	return h, nil
}

func (d *demo) letWrite(ctx context.Context, n *node, count int) error {
	ctx, cancel := context.WithTimeout(ctx, writeLimit)
	defer cancel()
	return n.console.waitAcks(ctx, count, func(done int) {
		d.rep.progress("%d records acknowledged", done)
	})
}

// killAlpha is the power failure. What the console log holds then is what a
// client of the VM has been promised.
func (d *demo) killAlpha(ctx context.Context) error {
	moment := time.NewTimer(rand.N(crashSpread))
	defer moment.Stop()
	select {
	case <-moment.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := d.beta.console.newRun(); err != nil {
		return err
	}
	d.killed = time.Now()
	if err := d.alpha.die(ctx); err != nil {
		return err
	}
	acks, err := d.alpha.console.acks()
	if err != nil {
		return err
	}
	for _, a := range acks {
		d.highest = max(d.highest, a.Number)
	}
	d.rep.chapter("kill -9 of everything on alpha: polluxd, polluxha with its member of etcd, the VM; after %d acknowledged records", len(acks))
	return nil
}

func (d *demo) sabotage(context.Context) error {
	if !d.cfg.Sabotage {
		return nil
	}
	acks, err := d.alpha.console.acks()
	if err != nil {
		return err
	}
	victim := acks[rand.IntN(len(acks))]
	offset, err := storage.DropRecord(d.beta.image(), victim)
	if err != nil {
		return fmt.Errorf("sabotage: %w", err)
	}
	d.rep.chapter("SABOTAGE: record %d is dropped from beta's disk (512 bytes at %d)", victim.Number, offset)
	return nil
}

// failOver only watches: beta does it by itself.
func (d *demo) failOver(ctx context.Context) error {
	d.rep.chapter("beta takes over by itself, once alpha's lease has ended and the arbiter agrees")
	taken := func(vm adm.HAVM) bool {
		d.rep.progress("%.0f s since the kill: %s", time.Since(d.killed).Seconds(), orElse(vm.Why, "alpha is silent, and counts as alive until its lease ends"))
		return vm.Node == d.beta.name
	}
	if err := d.waitVM(ctx, d.beta, taken); err != nil {
		return err
	}
	d.figures.notice = time.Since(d.killed)
	h, err := d.checkBoot(ctx, d.beta)
	if err != nil {
		return err
	}
	d.figures.boot = time.Since(d.killed)
	d.figures.journal = h.journal
	if err := d.letWrite(ctx, d.beta, 1); err != nil {
		return err
	}
	d.figures.outage = time.Since(d.killed)
	return d.letWrite(ctx, d.beta, recordsPerAct)
}

// alphaReturns measures what has to be copied: what beta knows to be different
// before, or the amount that the resync says it began with, if that is more
// (alpha adds what it was writing when it died).
func (d *demo) alphaReturns(ctx context.Context) error {
	d.rep.chapter("alpha comes back; only the difference is copied, while the VM writes on")
	s, err := d.beta.status(ctx)
	if err != nil {
		return err
	}
	d.figures.resyncKiB = s.outOfSyncKiB()
	began := time.Now()
	if err := d.alpha.start(ctx); err != nil {
		return err
	}
	watching, stop := context.WithCancel(ctx)
	watched := make(chan uint64, 1)
	go func() { watched <- watchResync(watching, d.beta) }()
	err = d.waitSync(ctx, d.beta)
	stop()
	d.figures.resyncKiB = max(d.figures.resyncKiB, <-watched)
	if err != nil {
		return err
	}
	d.figures.resync = time.Since(began)
	d.rep.detail("resynced %d KiB of %d KiB", d.figures.resyncKiB, d.figures.volumeKiB)
	if d.figures.resyncKiB > d.figures.volumeKiB/2 {
		d.fault("the resync copied %d KiB: more than the difference", d.figures.resyncKiB)
	}
	return nil
}

// watchResync returns the largest amount that a resync began with until ctx ends.
func watchResync(ctx context.Context, n *node) (kib uint64) {
	tick := time.NewTicker(statusPoll)
	defer tick.Stop()
	for {
		if s, err := n.status(ctx); err == nil { // a missed look is made up by the next one
			kib = max(kib, s.resyncKiB())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return kib
		}
	}
}

func (d *demo) switchBack(ctx context.Context) error {
	if err := d.waitCluster(ctx); err != nil {
		return err
	}
	// Both copies have to count again: the arbiter's record says so.
	if err := d.waitVM(ctx, d.beta, bothCount); err != nil {
		return err
	}
	d.rep.chapter("planned move back: the VM is shut down on beta and started on alpha")
	if err := d.alpha.console.newRun(); err != nil {
		return err
	}
	began := time.Now()
	if err := d.order(ctx, d.beta, adm.HARequest{Cmd: adm.HAVMMove, VM: vmName, Node: d.alpha.name}); err != nil {
		return err
	}
	if err := d.checkHalt(d.beta); err != nil {
		return err
	}
	acks, err := d.beta.console.acks()
	if err != nil {
		return err
	}
	for _, a := range acks {
		d.highest = max(d.highest, a.Number)
	}
	if _, err := d.checkBoot(ctx, d.alpha); err != nil {
		return err
	}
	d.figures.back = time.Since(began)
	return d.letWrite(ctx, d.alpha, recordsPerAct)
}

func bothCount(vm adm.HAVM) bool {
	return !slices.ContainsFunc(vm.Resources, func(r adm.HAResource) bool { return len(r.InSync) != 2 })
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// stopVM shuts the VM down and checks that it let go of its disk in order.
func (d *demo) stopVM(ctx context.Context, n *node) error {
	if err := d.order(ctx, n, adm.HARequest{Cmd: adm.HAVMStop, VM: vmName}); err != nil {
		return err
	}
	return d.checkHalt(n)
}

// checkHalt looks at how the guest that ran on n has ended.
func (d *demo) checkHalt(n *node) error {
	text, err := n.console.run()
	if err != nil {
		return err
	}
	if halt, _ := line(text, "HALT"); halt != "unmounted" {
		d.fault("the guest on %s did not shut down in order: %q", n.name, tail(text))
	}
	return nil
}

func (d *demo) endWell(ctx context.Context) error {
	d.rep.chapter("the end: the VM is shut down, all nodes are stopped")
	if err := d.stopVM(ctx, d.alpha); err != nil {
		return err
	}
	for _, n := range []*node{d.alpha, d.beta} {
		s, err := n.status(ctx)
		if err != nil {
			return err
		}
		if !s.inSync() {
			d.fault("at the end %s isn't in sync", n.name)
		}
	}
	return errors.Join(d.alpha.stop(), d.beta.stop(), d.gamma.stop())
}

// cleanUp ends whatever still runs, and only that. It works after Ctrl-C too.
func (d *demo) cleanUp() error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanLimit)
	defer cancel()
	var errs []error
	for _, n := range []*node{d.alpha, d.beta, d.gamma} {
		if n != nil {
			errs = append(errs, n.die(ctx))
		}
	}
	return errors.Join(errs...)
}
