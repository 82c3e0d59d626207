package adm

import (
	"context"
	"fmt"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/pollux-project/pollux/protocol/adm"
)

// Waiting asks the daemon whenever it tells of a change, and this often, and
// reports progress on something that is no terminal that often. Our own.
const (
	pollInterval = 200 * time.Millisecond
	lineInterval = 5 * time.Second
)

func (a *app) waitConnectCommand() *cobra.Command {
	var timeout time.Duration
	cmd := a.resourceCommand("wait-connect", groupScripts, "wait until the peer is connected",
		"Ends with status 0 when the peer is connected, with 5 when the time is over. Without --timeout the wfc-timeout of\n"+
			"the resource's startup section counts; 0 waits for ever.",
		func(ctx context.Context, t target) error {
			limit := timeout
			if limit == 0 {
				limit = a.startupTimeout(t.Resource)
			}
			return a.waitConnect(ctx, t, limit)
		})
	cmd.Flags().DurationVarP(&timeout, "timeout", "t", 0, "give up after this time, for example 30s")
	return cmd
}

func (a *app) waitConnect(ctx context.Context, t target, limit time.Duration) error {
	if a.dryRun {
		fmt.Fprintf(a.Out, "polluxd: wait-connect %s\n", t)
		return nil
	}
	return a.waitFor(ctx, t, limit, func(r adm.Resource) (bool, error) {
		if r.SplitBrain != "" {
			return false, &adm.Error{
				Exit: adm.ExitRefused, Text: fmt.Sprintf("%s: will not connect: split brain: %s", r.Name, splitBrainFact(r.SplitBrain)),
				Advice: judge(r, a.now()).Advice,
			}
		}
		return isConnected(r), nil
	})
}

func (a *app) waitSyncCommand() *cobra.Command {
	var timeout time.Duration
	cmd := a.resourceCommand("wait-sync", groupScripts, "wait until both nodes hold the same data",
		"Shows the progress: a bar on a terminal, a line every few seconds elsewhere. Ends with status 0 when all volumes are\n"+
			"UpToDate on both nodes, with 5 when the time is over, and at once if both are Inconsistent: somebody has to say which\n"+
			"data counts (primary --force).",
		func(ctx context.Context, t target) error { return a.waitSync(ctx, t, timeout) })
	cmd.Flags().DurationVarP(&timeout, "timeout", "t", 0, "give up after this time, for example 10m; default: never")
	return cmd
}

func (a *app) waitSync(ctx context.Context, t target, limit time.Duration) error {
	if a.dryRun {
		fmt.Fprintf(a.Out, "polluxd: wait-sync %s\n", t)
		return nil
	}
	p := a.newProgress(t.Resource)
	defer p.end()
	err := a.waitFor(ctx, t, limit, func(r adm.Resource) (bool, error) {
		p.show(r, t)
		if r.SplitBrain != "" {
			return false, &adm.Error{
				Exit: adm.ExitRefused, Text: fmt.Sprintf("%s: will not be synchronised: split brain: %s", r.Name, splitBrainFact(r.SplitBrain)),
				Advice: judge(r, a.now()).Advice,
			}
		}
		if v, ok := nobodysData(r, t); ok {
			return false, &adm.Error{
				Exit: adm.ExitLowerState, Text: fmt.Sprintf("%s: will not be synchronised: volume %d is Inconsistent on both nodes, so neither has data that the other could get", r.Name, v),
				Advice: fmt.Sprintf("on the node whose disk is to be kept, once: polluxadm primary --force %s; then wait-sync", confirmed(r)),
			}
		}
		return inSync(r, t), nil
	})
	if err == nil {
		p.done()
	}
	return err
}

// nobodysData finds a volume of which no node has data to copy: fresh metadata on both,
// or both lost.
func nobodysData(r adm.Resource, t target) (volume int, ok bool) {
	for _, v := range r.Volumes {
		if (t.Volume == nil || *t.Volume == v.Volume) && r.Connection == "Connected" && v.Disk == "Inconsistent" && v.PeerDisk == "Inconsistent" && v.Resync == nil {
			return v.Volume, true
		}
	}
	return 0, false
}

func inSync(r adm.Resource, t target) bool {
	for _, v := range r.Volumes {
		if (t.Volume == nil || *t.Volume == v.Volume) && (v.Disk != "UpToDate" || v.PeerDisk != "UpToDate" || v.Resync != nil) {
			return false
		}
	}
	return isConnected(r)
}

// waitFor asks for the resource's status until done says so. Running out of
// time is exit status 5; a resource that isn't up never gets there.
func (a *app) waitFor(ctx context.Context, t target, limit time.Duration, done func(adm.Resource) (bool, error)) error {
	cl, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.close()
	var over <-chan time.Time
	if limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		over = timer.C
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	changed, forget := a.changes(ctx, t.Resource)
	defer forget()
	for {
		r, err := cl.resource(ctx, t.Resource)
		if err != nil {
			return err
		}
		if r.State != adm.StateUp {
			v := judge(r, a.now())
			return &adm.Error{Exit: adm.ExitRefused, Text: fmt.Sprintf("%s: %s", r.Name, v), Advice: v.Advice}
		}
		if ok, err := done(r); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-over:
			v := judge(r, a.now())
			return &adm.Error{Exit: adm.ExitLowerState, Text: fmt.Sprintf("%s: not reached within %v: %s", t, limit, v), Advice: v.Advice}
		}
	}
}

// changes has something to receive whenever the daemon tells that the resource
// has changed, until forget is called. Where it can't be had, nothing comes.
func (a *app) changes(ctx context.Context, resource string) (changed <-chan struct{}, forget func()) {
	c := make(chan struct{}, 1)
	cl, err := a.dial(ctx)
	if err != nil {
		return c, func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		if err := cl.call(ctx, adm.Request{Cmd: adm.CmdEvents, Resource: resource}, nil); err != nil {
			return
		}
		for {
			if _, err := cl.event(ctx); err != nil {
				return
			}
			select {
			case c <- struct{}{}:
			default:
			}
		}
	}()
	return c, func() { cancel(); <-over; cl.close() }
}

// A progress shows how far a resync is: on a terminal a bar with rate and
// time left, elsewhere a line now and then.
type progress struct {
	a     *app
	name  string
	bar   *progressbar.ProgressBar
	total uint64
	next  time.Time
	seen  bool
}

func (a *app) newProgress(name string) *progress { return &progress{a: a, name: name} }

// show displays the state of t's volumes that are being synchronised.
func (p *progress) show(r adm.Resource, t target) {
	var s adm.Resync
	for _, v := range r.Volumes {
		if v.Resync != nil && (t.Volume == nil || *t.Volume == v.Volume) {
			s.TotalBytes += v.Resync.TotalBytes
			s.LeftBytes += v.Resync.LeftBytes
			s.RateBytesPerSec += v.Resync.RateBytesPerSec
			s.ETASeconds = max(s.ETASeconds, v.Resync.ETASeconds)
			s.Paused = s.Paused || v.Resync.Paused
		}
	}
	if s.TotalBytes == 0 || s.LeftBytes > s.TotalBytes {
		return
	}
	p.seen = true
	if isTerminal(p.a.Out) {
		p.showBar(s)
		return
	}
	if now := p.a.now(); !now.Before(p.next) {
		p.next = now.Add(lineInterval)
		fmt.Fprintf(p.a.Out, "%s: %s\n", p.name, progressLine(s))
	}
}

func (p *progress) showBar(s adm.Resync) {
	if p.bar == nil || p.total != s.TotalBytes {
		p.total = s.TotalBytes
		p.bar = progressbar.NewOptions64(int64(s.TotalBytes), progressbar.OptionSetWriter(p.a.Out),
			progressbar.OptionSetDescription(p.name), progressbar.OptionShowBytes(true), progressbar.OptionUseIECUnits(true),
			progressbar.OptionFullWidth(), progressbar.OptionSetPredictTime(true), progressbar.OptionThrottle(pollInterval/2))
	}
	_ = p.bar.Set64(int64(s.TotalBytes - s.LeftBytes)) // it only draws
}

func (p *progress) done() {
	if p.bar != nil {
		_ = p.bar.Set64(int64(p.total)) // it only draws
	} else if p.seen {
		fmt.Fprintf(p.a.Out, "%s: in sync\n", p.name)
	}
}

// end leaves the bar's line.
func (p *progress) end() {
	if p.bar != nil {
		fmt.Fprintln(p.a.Out)
	}
}
