package ha

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/protocol/adm"
)

// A leftFile is a VM file that is not in force.
type leftFile struct{ name, file, why string }

// sentence is what an event says of it.
func (f leftFile) sentence() string {
	return fmt.Sprintf("vm %s: its file can't be used, and what it describes is left as it is: %s", f.name, f.why)
}

// oneLine makes a list of errors fit for a line.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// leftOut is a partialError about the VM files that are not in force; nil: all are.
func (c *configuration) leftOut() error {
	var list []string
	for _, name := range sortedKeys(c.kept) {
		list = append(list, "vm "+name+": "+c.kept[name].sentence())
	}
	for _, f := range c.left {
		if _, ok := c.kept[f.name]; !ok {
			list = append(list, f.sentence())
		}
	}
	for _, name := range sortedKeys(c.problems) {
		list = append(list, "vm "+name+": "+c.problems[name])
	}
	if len(list) == 0 {
		return nil
	}
	return &partialError{strings.Join(list, "; ")}
}

// leftFile returns the file of a VM that is not in force, if nothing else describes it.
func (c *configuration) leftFile(name string) (leftFile, bool) {
	i := slices.IndexFunc(c.left, func(f leftFile) bool { return f.name == name })
	if i < 0 || c.vm(name) != nil {
		return leftFile{}, false
	}
	return c.left[i], true
}

// A candidate is a description that may come into force.
type candidate struct {
	vm   *conf.VM
	rank int // of two that contradict each other the higher one holds; of equal ones neither
}

// Ranks of candidates.
const (
	rankNew     = iota // nobody has heard of it
	rankChanged        // its file was in force, and says something else now
	rankSame           // it is in force
	rankKept           // it is in force, and its file is not
)

// A chooser finds out which descriptions come into force.
type chooser struct {
	c    *configuration
	old  *configuration // nil: there was none
	here func(*conf.VM) bool
	now  time.Time
	list []candidate
	left map[string]leftFile // by path
}

// choose decides which VM files are in force. One that is wrong, or contradicts
// another one, leaves in force what its VM's file said before (old); and the VMs that
// are here stay in somebody's hands even if their files are gone. It fails if that
// can't be. Without old it takes the files that are right and contradict nobody.
func (c *configuration) choose(old *configuration, here func(*conf.VM) bool, now time.Time) error {
	c.kept, c.problems = map[string]keptVM{}, map[string]string{}
	x := &chooser{c: c, old: old, here: here, now: now, left: map[string]leftFile{}}
	base := c.base()
	sound := base.Validate() == nil // else nothing can be said of a VM
	for _, f := range c.files {
		err := f.Err
		if err == nil && sound {
			err = c.fits(f.VM)
		}
		if err != nil {
			x.left[f.Path] = leftFile{f.Name, f.Path, oneLine(err)}
			continue
		}
		x.list = append(x.list, candidate{f.VM, x.rank(f.VM)})
	}
	if old != nil {
		for _, v := range old.vms {
			if err := x.keep(v); err != nil {
				return err
			}
		}
	}
	if err := x.settle(); err != nil {
		return err
	}
	c.vms = nil
	for _, k := range x.list {
		c.vms = append(c.vms, k.vm)
		if p := c.problemOf(k.vm); p != "" {
			c.problems[k.vm.Name] = p
		}
	}
	slices.SortFunc(c.vms, func(a, b *conf.VM) int { return cmp.Compare(a.Name, b.Name) })
	c.left = nil
	for _, path := range sortedKeys(x.left) {
		c.left = append(c.left, x.left[path])
	}
	return nil
}

// fits says why the core would not take a description, whatever the others say.
func (c *configuration) fits(v *conf.VM) error {
	if !c.usable(v) {
		return nil // problemOf says more
	}
	out := c.base()
	out.Services, out.Resources = []ha.Service{c.service(v, time.Time{})}, c.resourcesFor(v)
	if err := out.Validate(); err != nil {
		return fmt.Errorf("%s: %w", v.File, err)
	}
	return nil
}

func (x *chooser) rank(v *conf.VM) int {
	if x.old == nil {
		return rankNew
	}
	o := x.old.vm(v.Name)
	switch {
	case o == nil || o.File != v.File:
		return rankNew
	case o.Hash() != v.Hash():
		return rankChanged
	}
	return rankSame
}

func (x *chooser) find(name string) int {
	return slices.IndexFunc(x.list, func(k candidate) bool { return k.vm.Name == name && k.rank != rankKept })
}

// keep has an old description stay in force if its file is wrong now.
func (x *chooser) keep(v *conf.VM) error {
	k, wrong := x.wrongWith(v)
	if !wrong || !x.old.usable(v) || k.removed && !x.here(v) {
		return nil
	}
	if !x.c.usable(v) {
		if x.here(v) {
			return fmt.Errorf("vm %s is here, and its resources can't be used as they are configured now: %s", v.Name, orElse(x.c.problemOf(v), k.why))
		}
		return nil
	}
	if k == (keptVM{}) {
		return nil
	}
	k.since = x.now
	if before, ok := x.old.kept[v.Name]; ok && before.removed == k.removed {
		k.since = before.since
	}
	x.c.kept[v.Name] = k
	x.list = slices.DeleteFunc(x.list, func(o candidate) bool { return o.vm.Name == v.Name && o.rank != rankNew })
	x.list = append(x.list, candidate{v, rankKept})
	return nil
}

// wrongWith says whether a VM that is in force can be used as its file says now, and
// what is wrong with the file; zero if that has not changed.
func (x *chooser) wrongWith(v *conf.VM) (keptVM, bool) {
	same := slices.IndexFunc(x.list, func(k candidate) bool { return k.vm.Name == v.Name && k.vm.File == v.File })
	if same < 0 {
		same = x.find(v.Name)
	}
	if same >= 0 {
		n := x.list[same].vm
		p := x.c.problemOf(n)
		switch {
		case n.Hash() == v.Hash():
			return keptVM{}, p != "" // it says what it said; what is wrong stands elsewhere
		case p != "":
			if !strings.Contains(p, n.File) {
				p = n.File + ": " + p
			}
			return keptVM{why: p}, true
		case !slices.Equal(n.Resources, v.Resources) && x.here(v):
			return keptVM{why: fmt.Sprintf("%s: its disks can't change while it is here: polluxadm vm stop %s, then polluxadm reload", n.File, v.Name)}, true
		}
		return keptVM{}, false
	}
	if f, ok := x.left[v.File]; ok {
		return keptVM{why: f.why}, true
	}
	for _, path := range sortedKeys(x.left) {
		if x.left[path].name == v.Name {
			return keptVM{why: x.left[path].why}, true
		}
	}
	return keptVM{removed: true}, true
}

// settle drops what contradicts something that holds, until nothing does.
func (x *chooser) settle() error {
	for {
		var vms []*conf.VM
		ranks := map[*conf.VM]int{}
		for _, k := range x.list {
			vms = append(vms, k.vm)
			ranks[k.vm] = k.rank
		}
		losers := map[*conf.VM]error{}
		conflicts := append(conf.VMConflicts(vms), shared(vms)...)
		for _, both := range []bool{false, true} { // those of equal rank only if nobody else is to go
			for _, f := range conflicts {
				for i, v := range f.VMs {
					if d := ranks[v] - ranks[f.VMs[1-i]]; (d < 0 || both && d == 0) && losers[v] == nil {
						losers[v] = f.Errs[i]
					}
				}
			}
			if len(losers) > 0 {
				break
			}
		}
		if len(losers) == 0 {
			return nil
		}
		x.list = slices.DeleteFunc(x.list, func(k candidate) bool { return losers[k.vm] != nil })
		for _, v := range vms {
			if losers[v] == nil {
				continue
			}
			x.left[v.File] = leftFile{v.Name, v.File, oneLine(losers[v])}
			if o := x.before(v.Name); o != nil && ranks[v] != rankKept {
				if err := x.keep(o); err != nil {
					return err
				}
			}
		}
	}
}

// before is the old description of a VM that nothing else describes now.
func (x *chooser) before(name string) *conf.VM {
	if x.old == nil || slices.ContainsFunc(x.list, func(k candidate) bool { return k.vm.Name == name }) {
		return nil
	}
	return x.old.vm(name)
}

// shared finds resources that two VMs have, whichever of their volumes: a resource is
// promoted as a whole.
func shared(vms []*conf.VM) []conf.Conflict {
	var out []conf.Conflict
	users := map[string]*conf.VM{}
	for _, v := range vms {
		for _, r := range resourcesOf(v) {
			if o := users[r]; o != nil {
				text := func(v, other *conf.VM) error {
					return fmt.Errorf("%s: resource %s belongs to VM %s (%s) as well, and is promoted as a whole: give each its own", v.File, r, other.Name, other.File)
				}
				out = append(out, conf.Conflict{VMs: [2]*conf.VM{o, v}, Errs: [2]error{text(o, v), text(v, o)}})
			}
			users[r] = v
		}
	}
	return out
}

// An inForce is a VM's description as it was in force last, in the file ha-vms.json:
// a polluxha that starts while the VM's file is wrong, or gone, still knows it.
type inForce struct {
	File    string    `json:"file"`
	Text    string    `json:"text"`
	Why     string    `json:"why,omitempty"` // what is wrong with the file since
	Removed bool      `json:"removed,omitempty"`
	Since   time.Time `json:"since,omitzero"`
}

func inForceStore(settings *conf.Daemon) store[[]inForce] {
	return store[[]inForce]{path: settings.StateDir + "/ha-vms.json"}
}

// describe is what is in force, to be remembered.
func (c *configuration) describe() []inForce {
	list := []inForce{}
	for _, v := range c.vms {
		k := c.kept[v.Name]
		list = append(list, inForce{v.File, v.Text(), k.why, k.removed, k.since})
	}
	return list
}

// recall chooses once more, with what was in force when this node worked last. A VM
// that is here and can't be kept is only told of: a start must not fail for it.
func (c *configuration) recall(here func(*conf.VM) bool, now time.Time) error {
	list, err := inForceStore(c.settings).load()
	if err != nil || len(list) == 0 {
		return err
	}
	old := &configuration{settings: c.settings, cluster: c.cluster, resources: c.resources, kept: map[string]keptVM{}}
	for _, f := range list {
		v, err := conf.ParseVM(f.File, []byte(f.Text))
		if err != nil {
			c.warnings = append(c.warnings, fmt.Sprintf("what %s said last can't be read: %v", f.File, err)) // of another version
			continue
		}
		if !old.usable(v) {
			if c.vm(v.Name) == nil && here(v) {
				c.warnings = append(c.warnings, fmt.Sprintf("vm %s runs here, and nobody looks after it: %s", v.Name, orElse(old.problemOf(v), "its resources can't be used")))
			}
			continue
		}
		old.vms = append(old.vms, v)
		if f.Why != "" || f.Removed {
			old.kept[v.Name] = keptVM{since: f.Since, why: f.Why, removed: f.Removed}
		}
	}
	return c.choose(old, here, now)
}

// remember writes down what is in force.
func (m *manager) remember() {
	list, at := m.conf.describe(), inForceStore(m.settings)
	m.lanes.do("in force", func() {
		if before, err := at.load(); err == nil && slices.Equal(before, list) {
			return
		}
		if err := at.save(list); err != nil {
			m.log.Error().Err(err).Msg("a polluxha that starts anew will know the VMs by their files only")
		}
	})
}

// lookHere looks whether anything of a VM is on this node, before there is a manager.
func lookHere(work func(*conf.VM) workload, s storage) func(*conf.VM) bool {
	return func(v *conf.VM) bool {
		ctx, cancel := context.WithTimeout(context.Background(), lookTimeout)
		defer cancel()
		if w := work(v); w != nil {
			if seen, err := w.look(ctx); err != nil || seen.Phase != ha.PhaseStopped {
				return true // nobody knows, or it is
			}
		}
		for _, name := range resourcesOf(v) {
			var st adm.Status
			err := s.do(ctx, adm.Request{Cmd: adm.CmdStatus, Resource: name}, &st)
			if err == nil && slices.ContainsFunc(st.Resources, func(r adm.Resource) bool { return r.Role == string(ha.Primary) }) {
				return true
			}
		}
		return false
	}
}

// unknownVM refuses the name of a VM that is not in force.
func (c *configuration) unknownVM(name string) error {
	if f, ok := c.leftFile(name); ok {
		return &adm.Error{
			Exit: adm.ExitRefused, Text: fmt.Sprintf("vm %s: its file can't be used: %s", name, f.why),
			Advice: "correct it on all nodes of the VM, then polluxadm reload",
		}
	}
	var names []string
	for _, v := range c.vms {
		names = append(names, v.Name)
	}
	for _, f := range c.left {
		names = append(names, f.name)
	}
	return &adm.Error{
		Exit: adm.ExitUsage, Text: fmt.Sprintf("vm %s: no file describes it%s", name, conf.DidYouMean(name, names)),
		Advice: "descriptions are read from " + strings.Join(c.settings.VMFiles, " ") + "; polluxadm vm list shows what they hold",
	}
}

// unknownNode refuses the name of a node that the cluster does not have.
func (c *configuration) unknownNode(name string) error {
	names := nodeNames(c.cluster)
	return &adm.Error{
		Exit: adm.ExitUsage, Text: fmt.Sprintf("node %s: it is not a node of cluster %s%s", name, c.cluster.Name, conf.DidYouMean(name, names)),
		Advice: "its nodes are " + strings.Join(names, ", "),
	}
}
