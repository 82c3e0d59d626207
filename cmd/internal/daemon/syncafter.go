package daemon

import (
	"slices"
	"sync"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/protocol/adm"
)

// volumeKey names a volume of all resources.
type volumeKey struct {
	res string
	vol int
}

// syncNode is what resync-after has to know of a volume.
type syncNode struct {
	after   *volumeKey // the volume that is to be resynced before, nil if there is none
	hasDisk bool
	busy    bool // a resync or verify runs or rests, or anything pauses one
	waits   bool // it is paused by its dependency now
}

// mustWait reports whether a resync of the volume has to wait: one of those
// before it, at whatever distance, is busy. The configuration has no cycles; if
// an adjust has made one nevertheless, it is followed once. Source:
// drbd84-protocol, 7.8 (DRBD 8.4 drbd_worker.c, _drbd_may_sync_now).
func mustWait(nodes map[volumeKey]syncNode, at volumeKey) bool {
	for range len(nodes) {
		n := nodes[at]
		if !n.hasDisk || n.after == nil {
			return false
		}
		at = *n.after
		before, known := nodes[at]
		if !known {
			return false // not up here: nothing to wait for
		}
		if before.busy {
			return true
		}
	}
	return false
}

// syncStates are those in which a volume is busy.
var syncStates = []string{"SyncSource", "SyncTarget", "VerifyS", "VerifyT", "PausedSyncS", "PausedSyncT"}

// syncNodeOf is volume v of a running resource.
func syncNodeOf(v adm.Volume, option string) syncNode {
	n := syncNode{
		hasDisk: v.Disk != "Diskless", waits: slices.Contains(v.ResyncPausedBy, "dependency"),
		busy: slices.Contains(syncStates, v.Replication) || len(v.ResyncPausedBy) > 0,
	}
	if res, vol, ok := conf.ParseResyncAfter(option); ok {
		n.after = &volumeKey{res, vol}
	}
	return n
}

// syncOrder keeps resyncs in the order of resync-after. It looks at all
// resources whenever one has changed, one look at a time.
type syncOrder struct {
	mu    sync.Mutex
	inUse bool // an option was seen: pauses may have to be taken back
	busy  bool // a look is under way
	again bool // and something has changed since it began
}

// check has the order looked at. It doesn't block, and costs nothing as long as
// no volume has the option.
func (o *syncOrder) check(d *Daemon) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.inUse = o.inUse || d.usesResyncAfter()
	switch {
	case !o.inUse:
	case o.busy:
		o.again = true
	default:
		o.busy = true
		go o.look(d)
	}
}

func (o *syncOrder) look(d *Daemon) {
	for {
		d.orderResyncs()
		o.mu.Lock()
		if !o.again {
			o.busy = false
			o.mu.Unlock()
			return
		}
		o.again = false
		o.mu.Unlock()
	}
}

func (d *Daemon) usesResyncAfter() bool {
	for _, r := range d.sorted() {
		spec := r.runningSpec()
		if spec.Resource == nil {
			continue // it was never up
		}
		for _, v := range spec.Volumes {
			if _, _, ok := conf.ParseResyncAfter(v.Options.ResyncAfter); ok {
				return true
			}
		}
	}
	return false
}

// orderResyncs pauses the volumes that have to wait, and lets those go on that
// need not any more. Each change is announced and has the order looked at again,
// so that a chain settles step by step.
func (d *Daemon) orderResyncs() {
	nodes := map[volumeKey]syncNode{}
	engines := map[string]engineAPI{}
	for _, r := range d.sorted() {
		eng, spec := r.engine(), r.runningSpec()
		if eng == nil || spec.Resource == nil {
			continue
		}
		engines[r.name] = eng
		options := map[int]string{}
		for _, v := range spec.Volumes {
			options[v.Number] = v.Options.ResyncAfter
		}
		for _, v := range eng.Status().Volumes {
			nodes[volumeKey{r.name, v.Volume}] = syncNodeOf(v, options[v.Volume])
		}
	}
	for key, n := range nodes {
		if wait := mustWait(nodes, key); wait != n.waits {
			if err := engines[key.res].SyncAfter(key.vol, wait); err != nil {
				d.log.Warn().Str("res", key.res).Int("vol", key.vol).Err(err).Msg("resync-after")
			}
		}
	}
}
