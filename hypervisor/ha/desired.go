package ha

import (
	"cmp"
	"fmt"
	"slices"
)

func compareWishes(a, b Wish) int {
	return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Node, b.Node))
}

// wish is what is wanted of s.
func (c *Core) wish(s *service) Wish {
	if i, ok := slices.BinarySearchFunc(c.wishes, Wish{Service: s.name}, compareWishes); ok {
		return c.wishes[i]
	}
	w := Wish{Service: s.name, Target: s.cfg.Target}
	if w.Target == "" {
		w.Target = TargetStarted
	}
	return w
}

// isStandby reports whether a node is to run nothing.
func (c *Core) isStandby(node string) bool {
	i, ok := slices.BinarySearchFunc(c.wishes, Wish{Node: node}, compareWishes)
	return ok && c.wishes[i].Target == TargetStandby
}

// learnWish takes a wish that another node knows of; it reports whether it is news.
func (c *Core) learnWish(w Wish) bool {
	if (w.Service == "") == (w.Node == "") || w.Version == 0 {
		return false
	}
	i, known := slices.BinarySearchFunc(c.wishes, w, compareWishes)
	switch {
	case !known:
		c.wishes = slices.Insert(c.wishes, i, w)
	case w.Version < c.wishes[i].Version, w.Version == c.wishes[i].Version && w.By <= c.wishes[i].By:
		return false
	default:
		c.wishes[i] = w
	}
	c.saved, c.beatDue, c.urgent = false, true, true
	c.dirtyAll()
	return true
}

// want files an operator's wish, and stores it before anything else is done.
func (c *Core) want(w Wish) Wish {
	w.By, w.Version = c.self, 1
	if i, known := slices.BinarySearchFunc(c.wishes, w, compareWishes); known {
		w.Version = c.wishes[i].Version + 1
	}
	c.learnWish(w)
	c.save()
	return w
}

// load takes over what an earlier process has stored.
func (c *Core) load(saved Saved) {
	for _, w := range saved.Wishes {
		c.learnWish(w)
	}
	c.shots = slices.Clone(saved.Shots)
	c.overrides = slices.Clone(saved.Overrides)
	if saved.Boot == c.boot && c.boot != "" {
		for _, name := range saved.Met {
			if r := c.resource(name); r != nil {
				r.met = true
			}
		}
	}
	for _, name := range saved.Left {
		if r := c.resource(name); r != nil {
			r.left = true
		}
	}
	// A wish that is stored was acted upon: nothing moves because polluxha was restarted.
	for _, s := range c.services {
		s.acted = c.wish(s).Version
	}
	c.saved = saved.Boot == c.boot
}

// save stores what has changed.
func (c *Core) save() {
	if c.saved || c.begun == 0 {
		return
	}
	c.saved = true
	sv := Saved{Boot: c.boot, Wishes: slices.Clone(c.wishes), Shots: slices.Clone(c.shots), Overrides: slices.Clone(c.overrides)}
	for _, r := range c.resources {
		if r.met {
			sv.Met = append(sv.Met, r.name)
		}
		if r.left {
			sv.Left = append(sv.Left, r.name)
		}
	}
	c.give(Order{Kind: Persist, Saved: sv, Timeout: persistTimeout}, func(e Event) {
		n := Notice{Key: "state", Level: Critical, Topic: TopicAlarm}
		if e.Err != "" {
			n.Text = fmt.Sprintf("polluxha can't store what operators want: %s: it would be forgotten by a restart", e.Err)
			c.retrySave = c.now + 5000
		}
		c.alarm(n)
	})
}

// overridden reports whether the operator had this node go on alone under a term
// that the arbiter has not heard of.
func (c *Core) overridden(r *resource) bool {
	return r.st.Role == Primary && r.st.Sole && r.st.Term > r.rec.Term && slices.Contains(c.overrides, Override{Resource: r.name, Term: r.st.Term})
}

// dropOverrides forgets those that the arbiter knows of by now.
func (c *Core) dropOverrides(r *resource) {
	n := len(c.overrides)
	c.overrides = slices.DeleteFunc(c.overrides, func(o Override) bool { return o.Resource == r.name && o.Term <= r.rec.Term })
	c.saved = c.saved && len(c.overrides) == n
}
