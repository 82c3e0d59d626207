package ha

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/protocol/adm"
)

// Times of a drill, our own.
const (
	drillProbe    = 100 * time.Millisecond // between two looks of the client's view
	drillTimeout  = 5 * time.Minute        // for the service to come back
	drillExtra    = 30 * time.Second       // beyond what detection takes, until the killed node starts again
	drillFarewell = 200 * time.Millisecond // for the answer to reach the other node before the end
)

// methodDrill is what a node asks another one for over the control channel: play
// dead. Its body is a drillRequest, its answer "".
const methodDrill = "drill-kill"

type drillRequest struct {
	VM   string `json:"vm"`
	From string `json:"from"`
	UID  uint32 `json:"uid"` // of the operator, on the node that asked
}

// drill kills all of the cluster's software on the node that runs a VM, and every VM
// there, and measures on this node how long a client waits.
func (m *manager) drill(ctx context.Context, from caller, req adm.HARequest, progress func(adm.HAProgress)) (any, error) {
	s, c, _, err := m.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	v := c.vm(req.VM)
	if v == nil {
		return nil, c.unknownVM(req.VM)
	}
	owner, err := m.drillable(s, req)
	if err != nil {
		return nil, err
	}
	var w *watcher
	m.do(ctx, func() { w = m.services[v.Name] })
	d := &drillRun{m: m, vm: v, w: w, progress: progress, result: adm.HADrillResult{VM: v.Name, From: owner, OutageMS: -1}}
	body, err := json.Marshal(drillRequest{VM: v.Name, From: m.self, UID: from.uid})
	if err != nil {
		return nil, err
	}
	seq := m.events.add(adm.HAEvent{
		Kind: adm.HAEventDrill, VM: v.Name, Peer: owner, Text: fmt.Sprintf("drill: all on %s is killed now, ordered by user %d", owner, from.uid),
	}).Seq
	if err := d.baseline(ctx); err != nil {
		return nil, err
	}
	if _, err := m.peers.ask(ctx, owner, methodDrill, body); err != nil {
		return nil, &adm.Error{
			Exit: adm.ExitEnvironment, Text: fmt.Sprintf("drill: %s did not agree: %v: nothing was killed, as far as this node can tell", owner, err),
			Advice: "polluxadm cluster status",
		}
	}
	d.measure(ctx)
	d.collect(seq)
	m.events.add(adm.HAEvent{Kind: adm.HAEventDrill, VM: v.Name, Peer: owner, Text: d.verdict()})
	return d.result, nil
}

// drillable refuses a drill that would be an outage, and one that is not confirmed.
func (m *manager) drillable(s ha.Snapshot, req adm.HARequest) (owner string, err error) {
	refuse := func(advice, format string, args ...any) error {
		return &adm.Error{Exit: adm.ExitRefused, Text: fmt.Sprintf("drill of vm %s: ", req.VM) + fmt.Sprintf(format, args...), Advice: advice}
	}
	i := slices.IndexFunc(s.Services, func(x ha.ServiceStatus) bool { return x.Name == req.VM })
	if i < 0 {
		return "", refuse("polluxadm vm status "+req.VM, "its file can't be used")
	}
	st := s.Services[i]
	switch {
	case st.State != ha.StateRunning:
		return "", refuse("polluxadm vm start "+req.VM, "it is %s, not running: there is nothing to take over", st.State)
	case st.Node == m.self:
		return "", refuse("run the same command there", "it runs on this node, %s, which would be killed: the drill is run where it is to go, on %s", m.self, otherOf(st.Nodes, m.self))
	case st.Level != "" && st.Level != ha.Info:
		return "", refuse(st.Advice, "it is not protected now, so this would be an outage: %s", st.Why)
	case !st.IsCovered():
		return "", refuse("polluxadm cluster status says what is missing", "nobody would take it over: it is %s", st.Protection)
	}
	j := slices.IndexFunc(s.Nodes, func(n ha.NodeStatus) bool { return n.Name == st.Node })
	if j < 0 {
		return "", refuse("polluxadm cluster status", "nobody knows node %s", st.Node)
	}
	for _, other := range s.Services {
		if other.Node == st.Node && other.Level != "" && other.Level != ha.Info {
			return "", refuse(other.Advice, "vm %s on the same node is not protected now, and would be killed as well: %s", other.Name, other.Why)
		}
	}
	if req.Args.Confirm != req.VM {
		return "", refuse("whoever answers for that types the VM's name: --confirm "+req.VM,
			"this kills polluxd, polluxha and every VM on %s (%s), without any warning to the guests", st.Node, strings.Join(s.Nodes[j].Services, ", "))
	}
	return st.Node, nil
}

func otherOf(names []string, self string) string {
	for _, n := range names {
		if n != self {
			return n
		}
	}
	return "another node"
}

// A drillRun is one drill, as its client sees it.
type drillRun struct {
	m        *manager
	vm       *conf.VM
	w        *watcher
	progress func(adm.HAProgress)
	result   adm.HADrillResult
	killed   int64 // clock, ms
	lastGood int64
}

// hasProbe reports whether the service can be asked over the network; else a drill
// looks for it on this node.
func (d *drillRun) hasProbe() bool {
	return d.w != nil && slices.Contains([]string{"connect", "ping", "http"}, d.vm.Monitor.Kind)
}

func (d *drillRun) tell(format string, args ...any) {
	d.progress(adm.HAProgress{Step: "drill", VM: d.vm.Name, Text: fmt.Sprintf(format, args...)})
}

// baseline makes sure that what is measured works before anything is killed.
func (d *drillRun) baseline(ctx context.Context) error {
	d.result.Probe = fmt.Sprintf("the VM's process on %s, every %v", d.m.self, drillProbe)
	if !d.hasProbe() {
		return nil
	}
	d.result.Probe = fmt.Sprintf("%s %s, every %v", d.vm.Monitor.Kind, d.vm.Monitor.Address, drillProbe)
	if err := d.serves(ctx); err != nil {
		return &adm.Error{
			Exit: adm.ExitRefused, Text: fmt.Sprintf("drill of vm %s: its monitor fails already, from here: %v: nothing was killed", d.vm.Name, err),
			Advice: "check monitor.address in the VM's file, and the network between it and this node",
		}
	}
	return nil
}

// serves is one look of the client.
func (d *drillRun) serves(ctx context.Context) error {
	if d.hasProbe() {
		ctx, cancel := context.WithTimeout(ctx, d.vm.Monitor.Timeout.Duration)
		defer cancel()
		return d.w.work.probe(ctx)
	}
	if d.w == nil {
		return fmt.Errorf("%s has no copy of it", d.m.self)
	}
	if seen := d.w.look(ctx); seen.Phase != ha.PhaseRunning {
		return fmt.Errorf("it is %s on %s", seen.Phase, d.m.self)
	}
	return nil
}

// measure looks until the service is back.
func (d *drillRun) measure(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drillTimeout)
	defer cancel()
	d.killed = d.m.clock.now()
	d.lastGood = d.killed
	d.tell("%s is killed; waiting for %s to take over", d.result.From, d.vm.Name)
	failed, told := !d.hasProbe(), time.Now()
	tick := time.NewTicker(drillProbe)
	defer tick.Stop()
	for {
		err, at := d.serves(ctx), d.m.clock.now()
		switch {
		case err != nil && !failed:
			failed = true
			d.mark(at, d.m.self, "first failure a client sees: "+err.Error())
		case err == nil && failed:
			d.mark(at, d.m.self, "first success after it")
			d.result.OutageMS = at - d.lastGood
			return
		case err == nil:
			d.lastGood = at
		}
		if time.Since(told) > time.Second {
			told = time.Now()
			d.tell("no answer")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (d *drillRun) mark(at int64, node, text string) {
	d.result.Marks = append(d.result.Marks, adm.HADrillMark{AtMS: at - d.killed, Node: node, Text: text})
}

// collect adds what this node's event log says of the takeover.
func (d *drillRun) collect(seq uint64) {
	list, _ := d.m.events.since(seq)
	for _, e := range list {
		switch e.Kind {
		case adm.HAEventNode, adm.HAEventLease, adm.HAEventTerm, adm.HAEventRole, adm.HAEventVM, adm.HAEventAddress, adm.HAEventFence:
			if e.VM == "" || e.VM == d.vm.Name {
				d.mark(e.MS, e.Node, e.Text)
			}
		}
	}
	slices.SortStableFunc(d.result.Marks, func(a, b adm.HADrillMark) int { return int(a.AtMS - b.AtMS) })
	if d.result.OutageMS >= 0 {
		d.result.To = d.m.self
	}
}

func (d *drillRun) verdict() string {
	if d.result.OutageMS < 0 {
		return fmt.Sprintf("drill: %s did not come back within %v", d.vm.Name, drillTimeout)
	}
	return fmt.Sprintf("drill: a client waited %.1f s for %s", float64(d.result.OutageMS)/1000, d.vm.Name)
}

// drillKill is the other side: this node is to play dead. It answers first.
func (m *manager) drillKill(node string, body []byte) ([]byte, error) {
	var req drillRequest
	if err := json.Unmarshal(body, &req); err != nil {
		return nil, fmt.Errorf("drill: %w", err)
	}
	err := m.audit.add(auditEntry{
		Node: m.self, UID: req.UID, Command: methodDrill, VM: req.VM, Peer: node, Text: "a drill, ordered on " + node + ": everything here is killed",
	})
	if err != nil {
		return nil, err
	}
	m.events.add(adm.HAEvent{Level: adm.HALevelWarning, Kind: adm.HAEventDrill, VM: req.VM, Peer: node, Text: "drill: this node plays dead now"})
	hold := time.Duration(0)
	if !m.do(m.ctx, func() {
		t := m.conf.cluster
		hold = 2*(t.Heartbeat.Deadtime.Duration+t.Arbiter.TTL.Duration) + drillExtra
	}) {
		return nil, errStopping
	}
	time.AfterFunc(drillFarewell, func() { m.playDead(hold) })
	return nil, nil
}

// playDead is what a polluxha does that was started anew in the middle of a drill:
// from one moment to the next the process has lost its sockets and all that it
// knew. It ends this node's VMs and polluxd, keeps polluxd from coming back, and
// returns after the hold.
func playDead(settings *conf.Daemon, hold time.Duration, kill func(ctx context.Context) error, log zerolog.Logger) {
	end := time.Now().Add(hold)
	ctx, cancel := context.WithDeadline(context.Background(), end)
	defer cancel()
	lock := filepath.Join(settings.StateDir, "polluxd.lock")
	if pid := lockHolder(lock); pid > 0 {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			log.Warn().Err(err).Int("pid", pid).Msg("drill: polluxd could not be killed")
		}
	}
	free := holdLock(ctx, lock) // systemd starts it again; it finds its state directory taken
	defer free()
	if err := kill(ctx); err != nil {
		log.Warn().Err(err).Msg("drill: not everything could be killed")
	}
	log.Warn().Dur("for", hold).Msg("drill: this node plays dead")
	<-ctx.Done()
}

// lockHolder is the process that holds a lock file and has written itself into it; 0
// if nobody holds it.
func lockHolder(path string) int {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
		return 0
	}
	text, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 1 {
		return 0
	}
	return pid
}

// holdLock takes a lock file as soon as it is free.
func holdLock(ctx context.Context, path string) (free func()) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return func() {}
	}
	for unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		select {
		case <-ctx.Done():
			f.Close() //nolint:errcheck // nothing was written
			return func() {}
		case <-time.After(time.Millisecond): // its holder has been killed: the kernel lets it go any moment
		}
	}
	return func() { f.Close() } //nolint:errcheck // nothing was written
}

// withoutHold is the command line of an ordinary start.
func withoutHold(args []string) []string {
	var out []string
	for i := 0; i < len(args); i++ {
		name, _, has := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
		if name == "drill-hold" {
			if !has {
				i++
			}
			continue
		}
		out = append(out, args[i])
	}
	return out
}
