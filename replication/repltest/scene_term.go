package repltest

import "github.com/pollux-project/pollux/replication"

// term gives n a term, as the arbiter does that counts the copies inSync.
func (p *Play) term(n *Node, kind replication.CommandKind, inSync [2]bool) {
	if p.over() {
		return
	}
	a := p.w.terms.arbiter
	if kind == replication.CmdPromiseTerm {
		if !a.swap(a.term, n.id, inSync) {
			p.w.fail("the arbiter does not swap")
		}
	}
	c := replication.Command{Kind: kind, Term: a.term, Sole: kind == replication.CmdPrimary && inSync == only(n)}
	over := false
	n.Command(c, func(err error) {
		if over = true; err != nil {
			p.w.fail("%s: %s: %v", n.name, commandNames[kind], err)
		}
	})
	p.Until(commandNames[kind], func() bool { return over })
}

// own has n take up a new term.
func (p *Play) own(n *Node, inSync [2]bool) {
	if p.over() {
		return
	}
	if a := p.w.terms.arbiter; n.res.Role().String() == "Primary" {
		a.swap(a.term, n.id, inSync) // a Primary promises by taking it
	} else {
		p.term(n, replication.CmdPromiseTerm, inSync)
	}
	p.term(n, replication.CmdPrimary, inSync)
}

// a owns a term, loses b and goes on as the only writer, shares again, hands over;
// then the new owner is cut off and replaced.
func playTerms(p *Play) {
	a, b := p.Node(0), p.Node(1)
	both := [2]bool{true, true}
	p.w.terms = &termModel{w: p.w, arbiter: &arbiter{inSync: both}}
	p.Start(false)
	p.own(a, both)
	p.Write(a, 2, 0, 8)
	p.Cut()
	p.own(a, only(a))
	p.Write(a, 2, 8, 16)
	p.Flush(a)
	p.Heal()
	p.own(a, both)
	p.Write(a, 2, 16, 24)
	p.Demote(a)
	p.own(b, both)
	p.Do(b, replication.CmdOpen, false)
	p.Write(b, 2, 0, 32)
	p.Cut()
	p.own(a, only(a))
	p.Do(a, replication.CmdOpen, false)
	p.Write(a, 1, 0, 40)
	p.Demote(b)
	p.Heal()
	p.Write(a, 1, 48)
}
