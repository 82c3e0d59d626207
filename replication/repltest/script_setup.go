package repltest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// What a script says of the two nodes before they start, in other words than
// the core's: the policies of drbd.conf, the generations and marks on disk.

// sbPolicies are the names that drbd.conf(5) gives the policies after a split
// brain and for rr-conflict.
var sbPolicies = map[string]uint32{
	"disconnect": replication.SBDisconnect, "discard-younger-primary": replication.SBDiscardYoungerPrimary,
	"discard-older-primary": replication.SBDiscardOlderPrimary, "discard-zero-changes": replication.SBDiscardZeroChanges,
	"discard-least-changes": replication.SBDiscardLeastChanges, "discard-local": replication.SBDiscardLocal,
	"discard-remote": replication.SBDiscardRemote, "consensus": replication.SBConsensus,
	"discard-secondary": replication.SBDiscardSecondary, "call-pri-lost-after-sb": replication.SBCallPriLost,
	"call-pri-lost": replication.SBCallPriLost, "violently-as0p": replication.SBViolently, "violently": replication.SBViolently,
}

// policyOption sets after-sb-0pri, -1pri, -2pri, rr-conflict, and
// always-asbp of node i. discard-local of node a is discard-remote of b.
func policyOption(d *directive, n *replication.NetOptions, i int, key, value string) bool {
	switch key {
	case "always-asbp":
		n.AlwaysASBP = true
		return true
	}
	field := map[string]*uint32{
		"after-sb-0pri": &n.AfterSB0P, "after-sb-1pri": &n.AfterSB1P, "after-sb-2pri": &n.AfterSB2P, "rr-conflict": &n.RRConflict,
	}[key]
	if field == nil {
		return false
	}
	policy, ok := sbPolicies[value]
	if !ok {
		d.fatalf("%s has no policy %q", key, value)
	}
	switch {
	case i == 1 && policy == replication.SBDiscardLocal:
		policy = replication.SBDiscardRemote
	case i == 1 && policy == replication.SBDiscardRemote:
		policy = replication.SBDiscardLocal
	}
	*field = policy
	return true
}

// mdfNames are the superblock's flags as drbd84-protocol, 8.3, writes them.
var mdfNames = map[string]meta.Flags{
	"consistent": meta.MDFConsistent, "primary": meta.MDFPrimaryInd, "connected": meta.MDFConnectedInd,
	"full-sync": meta.MDFFullSync, "was-up-to-date": meta.MDFWasUpToDate, "peer-outdated": meta.MDFPeerOutdated,
	"crashed": meta.MDFCrashedPrimary, "al-clean": meta.MDFALClean, "al-disabled": meta.MDFALDisabled,
}

// set writes generations, flags and set bits to the disks of nodes that are
// down: current=C bitmap=B history=H1,H2 (hexadecimal), flags=consistent,crashed,
// dirty=N bits from the start.
func (s *script) set(d *directive) {
	for _, n := range s.nodes(d) {
		if n.alive {
			d.fatalf("node %s is up", n.name)
		}
		v := n.Vols[d.number("vol", 0)]
		sb, bm, err := meta.Load(v.meta, v.layout)
		if err != nil {
			d.fatalf("%v", err)
		}
		d.uuid("current", &sb.UUIDs.Current)
		d.uuid("bitmap", &sb.UUIDs.Bitmap)
		if list, ok := d.args["history"]; ok {
			h1, h2, _ := strings.Cut(list, ",")
			d.args["h1"], d.args["h2"] = h1, h2
			d.uuid("h1", &sb.UUIDs.History[0])
			d.uuid("h2", &sb.UUIDs.History[1])
		}
		if list, ok := d.args["flags"]; ok {
			sb.Flags = 0
			for _, name := range strings.Split(list, ",") {
				f, ok := mdfNames[name]
				if !ok && name != "" {
					d.fatalf("no flag %q", name)
				}
				sb.Flags |= f
			}
		}
		if k := d.number("dirty", 0); k > 0 {
			bm.Set(0, uint64(k-1))
			page := make([]byte, blockSize)
			bm.EncodePage(0, page)
			if _, err := v.meta.WriteAt(page, v.layout.Bitmap); err != nil {
				d.fatalf("%v", err)
			}
		}
		if err := meta.WriteSuperblock(v.meta, v.layout, sb); err != nil {
			d.fatalf("%v", err)
		}
		v.meta.commit()
		s.w.Model.renamed, s.w.Model.vols[v.num].alone = true, [2]bool{true, true}
	}
}

// uuid reads a generation: hexadecimal digits, filled up with zeroes behind
// them to 16 (so a1 is A1000000...), or just-created.
func (d *directive) uuid(key string, u *uint64) {
	text, ok := d.args[key]
	switch {
	case !ok:
		return
	case text == "just-created":
		*u = meta.UUIDJustCreated
		return
	case text == "0":
		*u = 0
		return
	}
	primary := strings.HasSuffix(text, "+p") // the mark of a Primary's generation
	text = strings.TrimSuffix(text, "+p")
	x, err := strconv.ParseUint(text+strings.Repeat("0", max(16-len(text), 0)), 16, 64)
	if err != nil {
		d.fatalf("%s=%s is no generation", key, text)
	}
	if *u = x; primary {
		*u |= 1
	}
}

// verdict is what each node makes of the generations on both disks, as they are
// now, with the roles of now.
func (s *script) verdict(d *directive) {
	w := s.w
	var sb [2]meta.Superblock
	for i, n := range w.Nodes {
		v := n.Vols[d.number("vol", 0)]
		b, _, err := meta.ReadSuperblock(v.meta, v.layout)
		if err != nil {
			d.fatalf("%v", err)
		}
		sb[i] = b
	}
	const crashed = meta.MDFCrashedPrimary | meta.MDFPrimaryInd
	isPrimary := func(n *Node) bool { return n.alive && n.res.Role() == drbd.Primary }
	for i, n := range w.Nodes {
		in := replication.CompareInput{
			Self: sb[i].UUIDs, Peer: sb[1-i].UUIDs,
			SelfPrimary: isPrimary(n), PeerPrimary: isPrimary(w.Nodes[1-i]),
			ResolveConflicts: i == w.cfg.Resolver, Version: w.version(), Features: w.cfg.Features,
		}
		in.SelfCrashed = !in.SelfPrimary && sb[i].Flags&crashed != 0
		in.PeerCrashed = !in.PeerPrimary && sb[1-i].Flags&crashed != 0
		if in.SelfPrimary { // its mark on disk is of now; what it was before stands in the other flag
			in.SelfCrashed = sb[i].Flags&meta.MDFCrashedPrimary != 0
		}
		if in.PeerPrimary {
			in.PeerCrashed = sb[1-i].Flags&meta.MDFCrashedPrimary != 0
		}
		r := replication.CompareUUIDs(in)
		w.trace("%s rule %d verdict %s", n.name, r.Rule, verdictText(r.Verdict))
	}
}

func verdictText(v int) string {
	switch v {
	case replication.VerdictSplitBrain:
		return "100: split brain, automatic recovery possible"
	case replication.VerdictSplitBrainHard:
		return "-100: split brain, no automatic recovery"
	case replication.VerdictUnrelated:
		return "-1000: unrelated data"
	case replication.VerdictNeeds91:
		return "-1091: refused, needs protocol 91"
	}
	if v <= -0x10000 {
		return fmt.Sprintf("%d: refused, needs protocol %d with features %#x", v, -v&0xff, -v>>8&0xff)
	}
	words := []string{"target, full sync", "target, by the bitmap", "nothing to do", "source, by the bitmap", "source, full sync"}
	return fmt.Sprintf("%+d: %s", v, words[slices.Index([]int{-2, -1, 0, 1, 2}, v)])
}
