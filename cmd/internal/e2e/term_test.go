package e2e

import (
	"strings"
	"testing"

	"github.com/pollux-project/pollux/protocol/adm"
)

// newTermPair is a pair in sync whose alpha is Primary under term 1, by the
// control socket as polluxha does it.
func newTermPair(t *testing.T, o options) *pair {
	t.Helper()
	if !strings.Contains(o.settings, "manager") {
		p := newPair(t, o)
		p.a.must("secondary", "r0")
		p.own(p.a, 1, false)
		return p
	}
	o.bare = true
	p := newPair(t, o)
	for _, n := range []*node{p.a, p.b} {
		n.must("create-md", "r0")
		n.start()
	}
	p.wait("connected", func(a, b adm.Resource) bool { return a.Connection == "Connected" && b.Connection == "Connected" })
	p.a.must("new-current-uuid", "--clear-bitmap", "r0")
	p.inSync()
	p.own(p.a, 1, false)
	return p
}

// own makes n the owner of a term, as polluxha does it.
func (p *pair) own(n *node, term uint64, sole bool) {
	p.t.Helper()
	for _, x := range []*node{p.a, p.b} {
		if x.proc != nil && (x == n || !sole) {
			x.command(adm.CmdPromiseTerm, adm.Args{Term: term})
		}
	}
	n.command(adm.CmdPrimary, adm.Args{Term: term, Sole: sole})
}

// command asks for a command of r0 that has to succeed.
func (n *node) command(c adm.Command, args adm.Args) {
	n.t.Helper()
	if err := n.call(adm.Request{Cmd: c, Resource: "r0", Args: args}, nil); err != nil {
		n.t.Fatalf("%s: %s %+v: %v\n%s", n.name, c, args, err, n.log())
	}
}

// refuses asks for one that has to be refused, with all of these words.
func (n *node) refuses(c adm.Command, args adm.Args, words ...string) {
	n.t.Helper()
	err := n.call(adm.Request{Cmd: c, Resource: "r0", Args: args}, nil)
	if err == nil {
		n.t.Errorf("%s: %s %+v was not refused", n.name, c, args)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			n.t.Errorf("%s: %s %+v: the refusal lacks %q: %v", n.name, c, args, w, err)
		}
	}
}

// TestTermsOverTheSocket: a Primary that is replaced while it is silent is
// refused when it wakes up, and old terms are refused everywhere.
func TestTermsOverTheSocket(t *testing.T) {
	begin(t)
	p := newTermPair(t, options{global: quick})
	if st := p.a.status(); st.Term == nil || st.Term.Term != 1 || !st.Term.Owned || st.Term.Sole || st.Volumes[0].Generation() == 0 {
		t.Errorf("alpha under term 1: %+v", st)
	}
	if all, err := p.a.statusAll(); err != nil || all.BootID == "" {
		t.Errorf("status without a boot id: %+v, %v", all, err)
	}
	p.a.refuses(adm.CmdPromiseTerm, adm.Args{}, "terms begin with 1")

	p.a.kill()
	p.b.wait("alpha is missed", func(r adm.Resource) bool { return r.Connection == "WFConnection" })
	p.b.command(adm.CmdPromiseTerm, adm.Args{Term: 2})
	p.b.refuses(adm.CmdPrimary, adm.Args{Term: 1, Sole: true}, "r0: ", "term 1 is lower than term 2")
	p.b.refuses(adm.CmdPromiseTerm, adm.Args{Term: 1}, "term 1 is lower than term 2")
	p.b.command(adm.CmdPrimary, adm.Args{Term: 2, Sole: true})
	if st := p.b.status(); st.Role != "Primary" || st.Term == nil || !st.Term.Sole || !st.Term.Marked || len(st.Suspended) > 0 {
		t.Errorf("bravo alone under term 2: %+v", st)
	}

	p.a.start()
	p.inSync()
	st := p.a.status()
	if st.Role != "Secondary" || st.Term == nil || st.Term.Promised != 2 {
		t.Errorf("alpha after its return: %+v", st)
	}
	p.a.refuses(adm.CmdPrimary, adm.Args{Term: 1}, "term 1 is lower than term 2")
}
