package engine

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/protocol/drbd/wiretest"
	"github.com/pollux-project/pollux/replication"
)

// reach is how far a capture is replayed that is not replayed as a whole: up to
// this line, where what comes next is chance, or our choice.
var reach = map[string]struct {
	line int
	why  string
}{
	"s07-peer-crash/A":       {287, "a program writes on while the node is alone: no packet says what"},
	"s18-two-primaries/A":    {70, "both write the same blocks at once: who wins depends on time"},
	"s18-two-primaries/B":    {47, "both write the same blocks at once: who wins depends on time"},
	"s19-congestion/A":       {44, "when the connection is congested depends on its speed"},
	"s28-integrity-zeroes/A": {47, "we do not agree on P_ZEROES beside data-integrity-alg, which breaks drbd.ko's connection (10.3)"},
	"s28-integrity-zeroes/B": {47, "we do not agree on P_ZEROES beside data-integrity-alg, which breaks drbd.ko's connection (10.3)"},
}

// otherwise lists commands that we refuse and DRBD's tools do not, or in other
// words.
func otherwise(command, refusal string) bool {
	for _, o := range []struct{ command, refusal, why string }{
		{"drbdadm outdate r0", "(-6) Refusing to be Outdated while Connected", "drbd.ko changes nothing and reports success: a fence-peer handler of the other node would believe it"},
		{"drbdadm outdate r0", "(-16) Disk state is lower than outdated", "drbdadm tries drbdmeta then, which refuses because the disk is in use"},
	} {
		if o.command == command && strings.Contains(refusal, o.refusal) {
			return true
		}
	}
	return false
}

// confs are the changes to drbd.conf of one node alone, in the order of its
// adjusts.
var confs = map[string][]func(*replication.NetOptions){
	"s11-auth-wrong/B": {func(n *replication.NetOptions) { n.SharedSecret = "BarFunFactory" }},
	"s22-mismatch/B": {
		func(n *replication.NetOptions) { n.Protocol = 'A' },
		func(n *replication.NetOptions) { n.Protocol, n.VerifyAlg = 'C', "md5" },
	},
}

// TestReplay puts an engine in the place of each node of each capture: it must
// send what the kernel sent, packet by packet and field by field, to a peer that
// sends what the other kernel sent, and say the same of itself.
func TestReplay(t *testing.T) {
	var mu sync.Mutex
	var all sync.WaitGroup
	used, granted, runs, want := make([]int, len(freedoms)), map[string]int{}, 0, 0
	slots := make(chan struct{}, 8) // they mostly wait
	for _, name := range wiretest.Names(t) {
		if name == "v01-versions" {
			continue // TestReplayVersions
		}
		for _, me := range []string{"A", "B"} {
			want++
			all.Add(1)
			go func() {
				defer all.Done()
				slots <- struct{}{}
				defer func() { <-slots }()
				t.Run(name+"/"+me, func(t *testing.T) {
					r := newReplay(t, name, me)
					r.mustPass()
					mu.Lock()
					defer mu.Unlock()
					runs++
					for i, n := range r.used {
						used[i] += n
					}
					for name, n := range r.fields {
						granted[name] += n
					}
				})
			}()
		}
	}
	all.Wait()
	if runs < want || t.Failed() {
		return // only some were wanted
	}
	for i, f := range freedoms {
		if used[i] == 0 {
			t.Errorf("the freedom %q is not needed", f.name)
		}
	}
	for name := range fields {
		if granted[name] == 0 && !byChance[name] {
			t.Errorf("the field %q never differs", name)
		}
	}
}

// mustPass runs the replay.
func (r *replayed) mustPass() {
	r.t.Helper()
	line, why := r.run()
	for _, d := range r.diffs {
		r.t.Error(d)
	}
	if line != 0 {
		r.t.Errorf("line %d of %d: %s", line, r.events[len(r.events)-1].Line, why)
	}
}

// TestEndDoesNotOvertakeAGrant: the peer's data socket ends before its answer on
// the meta socket is there. What was granted holds: the two nodes must not differ
// in who is outdated.
func TestEndDoesNotOvertakeAGrant(t *testing.T) {
	for _, me := range []string{"A", "B"} {
		t.Run(me, func(t *testing.T) {
			t.Parallel()
			r := newReplay(t, "s27-fencing", me)
			r.endFirst = true
			r.mustPass()
		})
	}
}

// TestResyncOfABusyDisk: the kernel's answers to resync requests came before the
// writes that programs made meanwhile. Here the disk takes its time, and they
// come after them.
func TestResyncOfABusyDisk(t *testing.T) {
	t.Parallel()
	r := newReplay(t, "s26-write-during-sync", "A")
	r.faults.slow = 3 * time.Millisecond
	r.mustPass()
}

func newReplay(t *testing.T, name, me string) *replayed {
	r := prepareReplay(t, name, me, wiretest.Load(t, name))
	for i := range r.cfg.Volumes {
		r.setUpDisk(i, begin(t, r.events, me, uint16(i)))
	}
	return r
}

// prepareReplay is a replay without disks.
func prepareReplay(t *testing.T, name, me string, events []wiretest.Event) *replayed {
	crash := false
	for _, e := range events {
		if e.Kind == wiretest.Note && e.Text == "killed" {
			crash = true
		}
	}
	r := &replayed{
		t: t, me: me, used: make([]int, len(freedoms)), fields: map[string]int{}, crash: crash, anyBit: map[uint64]bool{}, events: events, cfg: captured(t, events, crash),
		image: map[uint16][]byte{}, size: map[uint16]drbd.Sector{}, uuids: map[uint64]uint64{},
		limit: reach[name+"/"+me].line, adjust: confs[name+"/"+me],
	}
	if name == "s11-auth-wrong" && me == "A" {
		r.peerSecret = "BarFunFactory"
	} else if name == "s11-auth-wrong" {
		r.peerSecret = "FooFunFactory"
	}
	r.cfg.addresses(t)
	r.setUp()
	r.peer = newScriptedPeer(r.cfg.Peer.String(), r.cfg.Local.String())
	r.newConnection()
	t.Cleanup(func() {
		r.peer.listen(false) //nolint:errcheck // the test is over
		r.peer.forget()
		if r.eng != nil {
			r.eng.halt()
		}
	})
	return r
}
