package adm

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pollux-project/pollux/protocol/adm"
)

func (a *app) eventsCommand() *cobra.Command {
	var now, statistics, timestamps, cluster, asJSON, follow bool
	cmd := &cobra.Command{
		Use: "events [RESOURCE | all]", GroupID: groupScripts, Short: "print every change, one line each",
		Long: "The form is that of \"drbdsetup events2\" of DRBD 9: first what exists, then a line \"exists -\", then each change.",
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeResources,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cluster {
				return a.clusterEvents(cmd.Context(), adm.HAArgs{Follow: follow}, asJSON)
			}
			if asJSON || follow {
				return usageError("events: --json and --follow belong to --cluster")
			}
			only := ""
			if len(args) == 1 && args[0] != "all" {
				only = args[0]
			}
			w := &eventWriter{w: a.Out, statistics: statistics, known: map[string][]object{}}
			if timestamps {
				w.stamp = func() string { return a.now().Format("2006-01-02T15:04:05.000000-07:00 ") }
			}
			return a.events(cmd.Context(), only, now, w)
		},
	}
	cmd.Flags().BoolVar(&now, "now", false, "print what exists and end")
	cmd.Flags().BoolVar(&statistics, "statistics", false, "with counters")
	cmd.Flags().BoolVar(&timestamps, "timestamps", false, "each line begins with the time")
	cmd.Flags().BoolVar(&cluster, "cluster", false, "instead: what polluxha saw, decided and did")
	cmd.Flags().BoolVar(&follow, "follow", false, "with --cluster: go on with new ones")
	cmd.Flags().BoolVar(&asJSON, "json", false, "with --cluster: one JSON object a line")
	return cmd
}

func (a *app) events(ctx context.Context, only string, now bool, w *eventWriter) error {
	cl, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.close()
	if err := cl.call(ctx, adm.Request{Cmd: adm.CmdEvents, Resource: only}, nil); err != nil {
		return err
	}
	for {
		ev, err := cl.event(ctx)
		if ctx.Err() != nil {
			return nil // interrupted: that is how it ends
		}
		if err != nil {
			return err
		}
		if err := w.event(ev); err != nil {
			return err
		}
		if now && ev.Kind == adm.EventReady {
			return nil
		}
	}
}

// An object is one line's worth of state: what it is, its identity, and its
// properties in order.
type object struct {
	kind  string
	id    string // "name:r0 volume:0"
	props []property
}

type property struct{ key, value string }

// An eventWriter turns whole states into events2 lines: it remembers what it
// has printed and prints what differs.
type eventWriter struct {
	w          io.Writer
	stamp      func() string // nil: none
	statistics bool
	ready      bool                // the initial dump is over
	known      map[string][]object // by resource
}

func (w *eventWriter) event(ev adm.Event) error {
	var b strings.Builder
	switch ev.Kind {
	case adm.EventReady:
		w.ready = true
		w.line(&b, "exists -")
	case adm.EventGone:
		w.update(&b, ev.Name, nil)
	case adm.EventStatus:
		w.update(&b, ev.Resource.Name, objectsOf(*ev.Resource, w.statistics))
	default: // of a newer daemon
		return nil
	}
	_, err := io.WriteString(w.w, b.String())
	return err
}

func (w *eventWriter) line(b *strings.Builder, s string) {
	if w.stamp != nil {
		b.WriteString(w.stamp())
	}
	b.WriteString(s)
	b.WriteByte('\n')
}

// update prints how a resource's objects became now.
func (w *eventWriter) update(b *strings.Builder, name string, now []object) {
	before := w.known[name]
	for i := len(before) - 1; i >= 0; i-- { // what belongs to an object goes before it
		if find(now, before[i]) == nil {
			w.line(b, fmt.Sprintf("destroy %s %s", before[i].kind, before[i].id))
		}
	}
	for _, o := range now {
		old := find(before, o)
		switch {
		case old == nil && w.ready:
			w.line(b, "create "+o.text(o.props))
		case old == nil:
			w.line(b, "exists "+o.text(o.props))
		default:
			if changed := o.changedSince(*old); len(changed) > 0 {
				w.line(b, "change "+o.text(changed))
			}
		}
	}
	if now == nil {
		delete(w.known, name)
		return
	}
	w.known[name] = now
}

func find(in []object, o object) *object {
	for i := range in {
		if in[i].kind == o.kind && in[i].id == o.id {
			return &in[i]
		}
	}
	return nil
}

func (o object) text(props []property) string {
	var b strings.Builder
	b.WriteString(o.kind + " " + o.id)
	for _, p := range props {
		b.WriteString(" " + p.key + ":" + p.value)
	}
	return b.String()
}

// diskGroup are the properties that come together when one of them changes.
var diskGroup = map[string]bool{"backing_dev": true, "disk": true, "client": true, "open": true, "quorum": true}

func (o object) changedSince(old object) []property {
	before := map[string]string{}
	for _, p := range old.props {
		before[p.key] = p.value
	}
	group := false
	for _, p := range o.props {
		if v, ok := before[p.key]; diskGroup[p.key] && (!ok || v != p.value) {
			group = true
		}
	}
	var changed []property
	for _, p := range o.props {
		if v, ok := before[p.key]; !ok || v != p.value || (group && diskGroup[p.key]) {
			changed = append(changed, p)
		}
	}
	return changed
}

// objectsOf takes a resource apart as events2 does; a resource that isn't up
// has none.
func objectsOf(r adm.Resource, statistics bool) []object {
	if r.State != adm.StateUp {
		return nil
	}
	_, peerID := nodeIDs(r)
	name := "name:" + r.Name
	peer := fmt.Sprintf("%s peer-node-id:%d conn-name:%s", name, peerID, r.Peer)
	mayPromote, score := promotion(r)
	objs := []object{
		{"resource", name, []property{
			{"role", roleWord(r.Role)},
			{"suspended", suspendedWord(r.Suspended)},
			{"force-io-failures", "no"},
			{"may_promote", yesNo(mayPromote)},
			{"promotion_score", fmt.Sprint(score)},
		}},
		{"connection", peer, []property{{"connection", connectionWord(r.Connection)}, {"role", roleWord(r.PeerRole)}}},
	}
	for _, v := range r.Volumes {
		objs = append(objs, deviceObject(r, v, statistics))
	}
	for _, v := range r.Volumes {
		objs = append(objs, peerDeviceObject(peer, v, statistics))
	}
	return append(objs, object{
		"path", fmt.Sprintf("%s local:%s peer:%s", peer, pathWord(r.Address), pathWord(r.PeerAddress)),
		[]property{{"established", yesNo(isConnected(r))}},
	})
}

func deviceObject(r adm.Resource, v adm.Volume, statistics bool) object {
	o := object{"device", fmt.Sprintf("name:%s volume:%d minor:%d", r.Name, v.Volume, v.Minor), []property{
		{"backing_dev", noneWord(v.BackingDisk)},
		{"disk", diskWord(v.Disk)},
		{"client", yesNo(v.BackingDisk == "")},
		{"open", yesNo(v.OpenCount > 0)},
		{"quorum", "yes"},
	}}
	if statistics {
		o.props = append(o.props, property{"size", kib(v.SizeBytes)}, property{"read", kib(v.ReadBytes)},
			property{"written", kib(v.WrittenBytes)}, property{"al-writes", fmt.Sprint(v.ALWrites)}, property{"bm-writes", fmt.Sprint(v.BitmapWrites)},
			property{"upper-pending", "0"}, property{"lower-pending", "0"}, property{"al-suspended", "no"}, property{"blocked", "no"})
	}
	return o
}

func peerDeviceObject(peer string, v adm.Volume, statistics bool) object {
	o := object{"peer-device", fmt.Sprintf("%s volume:%d", peer, v.Volume), []property{
		{"replication", replicationWord(v.Replication)},
		{"peer-disk", diskWord(v.PeerDisk)},
		{"peer-client", "no"},
		{"resync-suspended", resyncSuspended(v)},
	}}
	if v.Verify != nil {
		o.props = append(o.props, property{"done", fmt.Sprintf("%.2f", v.Verify.Done())})
	}
	if v.Resync != nil {
		o.props = append(o.props, property{"done", fmt.Sprintf("%.2f", v.Resync.Done())})
	}
	if statistics {
		o.props = append(o.props, property{"received", kib(v.ReceivedBytes)}, property{"sent", kib(v.SentBytes)},
			property{"out-of-sync", kib(v.OutOfSyncBytes)}, property{"pending", "0"}, property{"unacked", "0"})
	}
	return o
}

// promotion tells whether this node could become Primary now, and how good a
// choice it would be (drbd-cli, events2: promotion_score).
func promotion(r adm.Resource) (may bool, score int) {
	local, replicas, full := 0, 2, true
	for _, v := range r.Volumes {
		n := 0
		if v.Disk == "UpToDate" {
			local++
			n++
		}
		if v.PeerDisk == "UpToDate" {
			n++
		}
		replicas = min(replicas, n)
		full = full && (v.Disk == "UpToDate" || v.Disk == "Consistent" || v.Disk == "Inconsistent")
	}
	if len(r.Volumes) == 0 || replicas == 0 {
		return false, 0
	}
	if full {
		score = 10000
	}
	return r.Role != "Primary" && r.PeerRole != "Primary", score + 100*min(local, 99) + replicas
}

func suspendedWord(s []string) string {
	if len(s) == 0 {
		return "no"
	}
	return strings.Join(s, ",")
}

func pathWord(addr string) string {
	h := hostOf(addr)
	if h.Family == "ipv6" {
		return fmt.Sprintf("ipv6:[%s]:%d", h.Address, h.Port)
	}
	return fmt.Sprintf("ipv4:%s:%d", h.Address, h.Port)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func noneWord(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func kib(bytes uint64) string { return fmt.Sprint(bytes >> 10) }

// resyncSuspended is drbdsetup's word for what pauses the resync of v: "no", or
// "user,peer,dependency" as far as they do.
func resyncSuspended(v adm.Volume) string {
	if len(v.ResyncPausedBy) == 0 {
		return "no"
	}
	return strings.Join(v.ResyncPausedBy, ",")
}
