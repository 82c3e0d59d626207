package ha

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/cmd/internal/service"
	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/protocol/adm"
)

// A node is one polluxha: it answers on its socket all the time, and is a member
// of its cluster while it is in one.
type node struct {
	path     string // of pollux.toml, read again by a reload; "": it has none
	settings *conf.Daemon
	log      zerolog.Logger
	hup      <-chan os.Signal        // nil: none
	protect  bool                    // this process is polluxha's own: tell systemd
	args     []string                // of the command line, for a start anew
	ready    func()                  // called once everything is started; may be nil
	work     func(*conf.VM) workload // of tests, in the place of hypervisors

	boot    string
	session string
	events  *eventLog
	audit   *auditLog
	changed chan struct{} // the membership has changed: become what the files say now
	retire  atomic.Bool   // this node was taken out of its cluster

	mu      sync.Mutex
	member  *member       // nil: in no cluster
	settled chan struct{} // closed while member is what it is going to be for now
	broken  error         // why there is no member although the files describe one
}

// run is the order of start; stop is its reverse.
//
//  1. state directory   claimed: one polluxha per directory
//  2. event log         goes on behind the last one
//  3. control socket    polluxadm is answered from here on
//  4. membership        control channel, arbiter, core: if this node is in a cluster
//
// The end touches nothing that runs: VMs go on, polluxd goes on, the lease ends by
// itself, and as long as the peer is connected nobody takes over (failover.md, I6).
func (n *node) run(ctx context.Context) error {
	release, err := service.LockStateDir(n.settings.StateDir, "polluxha")
	if err != nil {
		return err
	}
	defer release()
	if n.boot, err = service.BootID(); err != nil {
		return err
	}
	n.session, n.changed, n.settled = newSession(), make(chan struct{}, 1), make(chan struct{})
	n.events, err = openEventLog(n.statePath("ha-events.jsonl"), n.settings.NodeName, bootClock{}, n.logFull)
	if err != nil {
		return err
	}
	defer n.events.close()
	n.audit = &auditLog{path: n.statePath("ha-audit.jsonl"), wall: time.Now}
	srv, err := listen(n.settings.HA.Socket, n, bootClock{}, n.log)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	defer srv.close()
	n.log.Info().Str("version", service.Version).Str("node", n.settings.NodeName).Str("session", n.session).Int("pid", os.Getpid()).Msg("polluxha starts")
	return n.serve(ctx)
}

func (n *node) statePath(name string) string { return filepath.Join(n.settings.StateDir, name) }

// logFull is told when the event log can't be written any more.
func (n *node) logFull(err error) {
	if err != nil {
		n.log.Error().Err(err).Msg("the event log can't be written: events are kept in memory only")
		return
	}
	n.log.Info().Msg("the event log is written again")
}

// serve is a member while the files say so, until ctx is done.
func (n *node) serve(ctx context.Context) error {
	told := false
	for ctx.Err() == nil {
		m, err := n.become()
		if err != nil && !told {
			return err
		}
		if err != nil { // a file that was right when we started: go on telling what is wrong
			n.log.Error().Err(err).Msg("this node can't be a member of its cluster; it is tried again")
		}
		n.mu.Lock()
		n.broken = err
		n.mu.Unlock()
		n.set(m, true)
		if !told {
			told = true
			if n.protect {
				n.notify(sd.SdNotifyReady)
				go n.feedWatchdog(ctx)
			}
			if n.ready != nil {
				n.ready()
			}
		}
		err = n.wait(ctx, m)
		n.set(nil, false)
		if m != nil {
			n.end(ctx, m)
		}
		if err == nil && n.retire.Swap(false) {
			err = n.leftover()
		}
		if err != nil {
			return err
		}
		n.session = newSession()
	}
	n.log.Info().Msg("polluxha stops: everything that runs goes on")
	if n.protect {
		n.notify(sd.SdNotifyStopping)
	}
	return nil
}

// endLimit is how long the end of the process waits for its parts, our own. etcd
// waits up to half a minute for members that do not answer; whatever is worth it is on
// disk, as a crash at this moment has to be harmless too.
const endLimit = 2 * time.Second

// end stops the member. A process that goes on afterwards waits for all of it: the
// next member needs the same ports and files.
func (n *node) end(ctx context.Context, m *member) {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		if ctx.Err() != nil && n.protect {
			m.giveUpLeaderAddress()
		}
		m.stop()
	}()
	var late <-chan time.Time
	if ctx.Err() != nil && n.protect {
		late = time.After(endLimit)
	}
	select {
	case <-stopped:
	case <-late:
		n.log.Warn().Dur("waited", endLimit).Msg("polluxha ends without waiting any longer for its parts: other members of etcd don't answer")
	}
}

// become starts the member that the files describe; nil if there is no cluster.
func (n *node) become() (*member, error) {
	settings, err := n.reread() // a reload may be why
	if err != nil {
		n.log.Error().Err(err).Msg("pollux.toml can't be used now: what was read before stays in force")
		settings = n.settings
	}
	if clusterStore(n.settings).IsRetiring() { // an earlier process was cut off as it left
		if err := n.leftover(); err != nil {
			return nil, err
		}
	}
	c, err := readWhatCanBe(settings)
	if err != nil {
		return nil, err
	}
	if c.cluster == nil {
		n.log.Info().Msg("this node is in no cluster: polluxadm cluster init makes one, polluxadm cluster join enters one")
		return nil, nil
	}
	return startMember(n, c)
}

// set tells commands whom to ask; those that come while it is not final wait.
func (n *node) set(m *member, final bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.member = m
	if final {
		close(n.settled)
	} else {
		n.settled = make(chan struct{})
	}
}

// answering is the member to ask, nil if this node is in no cluster.
func (n *node) answering(ctx context.Context) (*member, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	for {
		n.mu.Lock()
		m, settled, broken := n.member, n.settled, n.broken
		n.mu.Unlock()
		select {
		case <-settled:
			if m == nil && broken != nil {
				return nil, &adm.Error{
					Exit: adm.ExitRefused, Text: fmt.Sprintf("node %s can't take part in its cluster: %v", n.settings.NodeName, broken),
					Advice: "correct that; polluxha tries again by itself. What runs goes on",
				}
			}
			return m, nil
		default:
		}
		select {
		case <-settled:
		case <-ctx.Done():
			return nil, &adm.Error{
				Exit: adm.ExitEnvironment, Text: "polluxha is starting, or takes up a change of the cluster", Advice: "try again; its log says what it waits for (journalctl -u polluxha)",
			}
		}
	}
}

// settleTime is how long a command waits for a start, againTime the pause before a
// member that could not start is tried again. Our own.
const (
	settleTime = 10 * time.Second
	againTime  = 5 * time.Second
)

func (n *node) current() *member {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.member
}

// wait serves signals until the membership changes or ctx is done.
func (n *node) wait(ctx context.Context, m *member) error {
	var ended <-chan struct{}
	var again <-chan time.Time
	switch {
	case m != nil:
		ended = m.ended
	case n.broken != nil:
		again = time.After(againTime)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.changed:
			return nil
		case <-again:
			return nil
		case <-ended:
			return m.err
		case <-n.hup:
			n.notify(sd.SdNotifyReloading + "\nMONOTONIC_USEC=" + service.MonotonicMicros())
			if err := n.reload(ctx); isPartial(err) {
				n.log.Warn().Err(err).Msg("reload: all is in force but some VM files")
			} else if err != nil {
				n.log.Error().Err(err).Msg("reload failed: what was read before stays in force")
			}
			n.notify(sd.SdNotifyReady)
		}
	}
}

// reload reads everything again that may change while polluxha runs.
func (n *node) reload(ctx context.Context) error {
	m := n.current()
	if m == nil {
		n.rejoin()
		return nil
	}
	err := m.reload(ctx)
	level, text := adm.HALevelInfo, "the configuration was read again"
	if isPartial(err) {
		level, text = adm.HALevelWarning, fmt.Sprintf("the configuration was read again, and is in force but for this: %v", err)
	} else if err != nil {
		level, text = adm.HALevelWarning, fmt.Sprintf("the configuration was read again and refused: %v", err)
	}
	n.events.add(adm.HAEvent{Level: level, Kind: adm.HAEventConfig, Text: text})
	return err
}

// reread reads pollux.toml again. What a running polluxha can't change is refused.
func (n *node) reread() (*conf.Daemon, error) {
	if n.path == "" {
		return n.settings, nil
	}
	s, err := readSettings(n.path, true)
	if err != nil {
		return nil, err
	}
	s.HA.EmbeddedEtcd = n.settings.HA.EmbeddedEtcd // also a flag
	old := n.settings
	for _, k := range []struct{ key, was, is string }{
		{"node-name", old.NodeName, s.NodeName},
		{"state-dir", old.StateDir, s.StateDir},
		{"control-socket", old.ControlSocket, s.ControlSocket},
		{"nbd.socket", old.NBD.Socket, s.NBD.Socket},
		{"ha.socket", old.HA.Socket, s.HA.Socket},
		{"ha.cluster-file", old.HA.ClusterFile, s.HA.ClusterFile},
		{"ha.listen", old.HA.Listen.String(), s.HA.Listen.String()},
		{"ha.watchdog", old.HA.Watchdog, s.HA.Watchdog},
		{"ha.etcd-dir", old.HA.EtcdDir, s.HA.EtcdDir},
	} {
		if k.was != k.is {
			return nil, fmt.Errorf("%s: %s is %q now and was %q: restart polluxha for that, it touches no VM", n.path, k.key, k.is, k.was)
		}
	}
	return s, nil
}

// rejoin has this node become what the files say now.
func (n *node) rejoin() {
	select {
	case n.changed <- struct{}{}:
	default: // it is about to
	}
}

func (n *node) notify(state string) {
	if !n.protect {
		return
	}
	if m := n.current(); m != nil {
		state += "\nSTATUS=" + m.summary()
	} else {
		state += "\nSTATUS=in no cluster"
	}
	notify(n.log, state)
}

// feedWatchdog tells systemd at half its interval that the core still steps.
func (n *node) feedWatchdog(ctx context.Context) {
	interval, err := sd.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		return
	}
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for {
		if m := n.current(); m == nil || m.alive(ctx) {
			n.notify(sd.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// since implements handler.
func (n *node) since(seq uint64) ([]adm.HAEvent, <-chan struct{}) { return n.events.since(seq) }

// errNoCluster answers what only a member can do.
func (n *node) errNoCluster() error {
	return &adm.Error{
		Exit: adm.ExitRefused, Text: fmt.Sprintf("node %s is in no cluster", n.settings.NodeName),
		Advice: "polluxadm cluster init NAME on the first node, polluxadm cluster join TOKEN on the others",
	}
}

// handle implements handler.
func (n *node) handle(ctx context.Context, from caller, req adm.HARequest, progress func(adm.HAProgress)) (any, error) {
	m, err := n.answering(ctx)
	if err != nil {
		return nil, err
	}
	switch req.Cmd {
	case adm.HAHello:
		name := ""
		if m != nil {
			name = m.name
		}
		return hello(n.settings.NodeName, n.session, n.boot, name, os.Getpid()), nil
	case adm.HAReload:
		return nil, asRefusal(n.reload(ctx))
	case adm.HAClusterInit:
		return n.initCluster(ctx, req)
	case adm.HAClusterJoin:
		return n.joinCluster(ctx, req, progress)
	default: // for members only
	}
	if m == nil {
		if req.Cmd == adm.HAClusterStatus || req.Cmd == adm.HANodeList {
			return n.soloStatus(), nil
		}
		return nil, n.errNoCluster()
	}
	switch req.Cmd {
	case adm.HAClusterToken:
		return m.token(req)
	case adm.HAClusterLeave:
		return nil, m.leave(ctx, req, progress)
	default:
		return m.handle(ctx, from, req, progress)
	}
}

func asRefusal(err error) error {
	if err == nil {
		return nil
	}
	var known *adm.Error
	if errors.As(err, &known) {
		return known
	}
	if isPartial(err) {
		return &adm.Error{Exit: adm.ExitRefused, Text: err.Error(), Advice: "all else was taken over; correct the file, then polluxadm reload or kill -HUP polluxha"}
	}
	return &adm.Error{Exit: adm.ExitRefused, Text: err.Error(), Advice: "what was read before stays in force; correct the file, then polluxadm reload or kill -HUP polluxha"}
}

// soloStatus is cluster status on a node that is in none.
func (n *node) soloStatus() adm.HACluster {
	return adm.HACluster{
		Node: n.settings.NodeName, Level: adm.HALevelInfo, Verdict: "This node is in no cluster: nothing fails over.",
		Advice:  "polluxadm cluster init NAME makes a cluster, polluxadm cluster join TOKEN enters one",
		Arbiter: adm.HAArbiter{SinceMS: -1},
		Nodes:   []adm.HANode{{Name: n.settings.NodeName, Kind: adm.NodeData, State: adm.NodeSolo, Online: true, Votes: "-", Lease: "none", SameConfig: true}},
	}
}

// playDead replaces this process by one that kills what runs here: from one moment
// to the next its sockets are gone, and whatever it knew.
func (n *node) playDead(hold time.Duration) {
	exe, err := os.Executable()
	if err == nil {
		args := append([]string{os.Args[0], "-drill-hold=" + hold.String()}, n.args...)
		err = syscall.Exec(exe, args, os.Environ())
	}
	n.log.Error().Err(err).Msg("drill: this node could not play dead")
}
