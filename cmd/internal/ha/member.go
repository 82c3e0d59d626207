package ha

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pollux-project/pollux/cmd/internal/service"
	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	"github.com/pollux-project/pollux/hypervisor/ha/control"
	"github.com/pollux-project/pollux/protocol/adm"
)

// A member is this node while it is in a cluster: a manager with all its parts.
type member struct {
	*manager
	node    *node
	store   control.Store
	channel atomic.Pointer[control.Channel]
	// serveArbiter answers the other node's half of an arbiter of two; nil: it is no such one.
	serveArbiter func(ctx context.Context, from string, request []byte) ([]byte, error)
	closers      []func() // of the parts, in the order in which they were made
	ended        chan struct{}
	follow       func(c *configuration) error // has the arbiter follow a change of the nodes; may be nil
	endpoints    []string
	etcd         *etcdMember // of this process, or nil
	err          error       // of the manager's run; set before ended is closed
	cancel       context.CancelFunc
}

// vitalTime is how long the core may take between two steps before this node's
// heartbeats stop: the others must not believe in a node that decides nothing.
const vitalTime = 2000

func clusterStore(settings *conf.Daemon) control.Store {
	return control.Store{Dir: settings.StateDir + "/cluster", File: settings.HA.ClusterFile}
}

// startMember starts the parts in this order; stop is the reverse.
//
//  1. identity          certificates, the cluster's file
//  2. workloads         hypervisors, addresses, hooks; what was in force last is recalled
//  3. arbiter           with its own server, if this node runs a part of it
//  4. core              begins to look and to decide
//  5. control channel   the other nodes hear of this one
func startMember(n *node, c *configuration) (_ *member, err error) {
	m := &member{node: n, store: clusterStore(n.settings), ended: make(chan struct{})}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	id, _, err := m.store.Load()
	if err != nil {
		return nil, err
	}
	if err := c.cluster.AutomaticFailover(); err != nil {
		n.log.Warn().Err(err).Msg("no automatic failover")
	}
	p := parts{
		settings: n.settings, events: n.events, audit: n.audit, clock: bootClock{}, wall: time.Now, log: n.log, playDead: n.playDead,
		storage:  &polluxd{socket: n.settings.ControlSocket, log: n.log},
		saved:    store[ha.Saved]{path: n.statePath("ha-state.json")},
		watchdog: &watchdog{path: n.settings.HA.Watchdog},
	}
	if err := p.watchdog.check(); err != nil {
		return nil, err
	}
	e, err := newEquipment(n.settings, p.storage, n.hookEnded, func(text string) { n.log.Warn().Msg(text) })
	if err != nil {
		return nil, err
	}
	m.closers = append(m.closers, e.close)
	p.work, p.hook, p.peers, p.ips = e.work, e.hooks, m, vips{e.vips}
	p.leaderIP = floating{c.cluster.LeaderIP.Prefix, c.cluster.LeaderInterface}
	if n.work != nil {
		p.work = n.work
	}
	if err := c.recall(lookHere(p.work, p.storage), time.Now()); err != nil {
		c.warnings = append(c.warnings, fmt.Sprintf("the VMs are known by their files only: %v", err))
	}
	for _, w := range c.warnings {
		n.log.Warn().Msg(w)
		n.events.add(adm.HAEvent{Level: adm.HALevelWarning, Kind: adm.HAEventConfig, Text: w})
	}
	if err := removeStrays(context.Background(), p.ips, c); err != nil {
		n.log.Warn().Err(err).Msg("addresses that nothing names any more stay on this node")
	}
	cfg, err := c.core(time.Now())
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", c.cluster.Name, err)
	}
	arb, err := m.startArbiter(c, id)
	if err != nil {
		return nil, err
	}
	p.arbiter = arb.Arbiter
	p.fence, p.confirm, p.selfTest = arb.fence, arb.confirm, arb.selfTest
	saved, err := p.saved.load()
	if err != nil {
		return nil, err
	}
	if m.manager, err = newManager(p, c, cfg, n.session, n.boot); err != nil {
		return nil, err
	}
	m.tellLeft(&configuration{})
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	m.lastStep.Store(m.clock.now())
	if err := m.startChannel(id); err != nil {
		cancel()
		return nil, err
	}
	go func() {
		defer close(m.ended)
		m.err = m.manager.run(ctx, saved)
	}()
	n.log.Info().Str("cluster", c.cluster.Name).Str("arbiter", c.cluster.Arbiter.Kind).Int("vms", len(cfg.Services)).Msg("this node is a member of its cluster")
	return m, nil
}

func (m *member) startChannel(id *control.Identity) error {
	ch, err := control.Start(control.Config{
		Store: m.store, Identity: id, Cluster: m.conf.cluster, Listen: m.settings.HA.Listen,
		Session: m.session, Boot: m.boot, Software: service.Version, Log: m.log,
		OnBeat: func(b control.Beat) { m.heartbeat(b.Node, b.Link, b.Payload) },
		OnLink: func(l control.LinkChange) {
			if !l.Up {
				m.log.Info().Str("peer", l.Node).Int("link", l.Link).Str("reason", l.Why).Msg("link is broken")
			}
			m.linkChanged(l.Node, l.Link, l.Up)
		},
		OnCluster: m.clusterChanged,
		Vital:     func() bool { return m.clock.now()-m.lastStep.Load() < vitalTime },
		Unfit:     m.unfit,
	}, map[string]control.Handler{
		methodDrill: func(_ context.Context, from string, body []byte, _ func([]byte) error) ([]byte, error) {
			return m.drillKill(from, body)
		},
		methodArbiter: func(ctx context.Context, from string, body []byte, _ func([]byte) error) ([]byte, error) {
			if m.serveArbiter == nil {
				return nil, errors.New("the arbiter is another one here: compare cluster.toml")
			}
			return m.serveArbiter(ctx, from, body)
		},
	})
	if err != nil {
		return err
	}
	m.channel.Store(ch)
	m.closers = append(m.closers, func() { ch.Close() }) //nolint:errcheck // what is not closed ends with the process
	return nil
}

// clusterChanged follows the cluster's file: a node has joined or left, or somebody
// has edited it on another node. It must not block.
func (m *member) clusterChanged(c *conf.Cluster) {
	if c.Node(m.self) == nil {
		m.node.log.Warn().Str("cluster", c.Name).Msg("this node was taken out of its cluster")
		m.node.retire.Store(true)
		m.node.rejoin()
		return
	}
	m.worker(func() {
		if err := m.reload(m.ctx); isPartial(err) {
			m.log.Warn().Err(err).Msg("the cluster's file has changed; not all of the VM files are in force")
		} else if err != nil && m.ctx.Err() == nil {
			m.log.Error().Err(err).Msg("the cluster's file has changed, and what belongs to it here does not fit: what was read before stays in force")
		}
	})
}

// reload takes over what the files say now. A change of the arbiter begins anew. A
// partialError says that all was taken over but some VM files.
func (m *member) reload(ctx context.Context) error {
	settings, err := m.node.reread()
	if err != nil {
		return err
	}
	c, err := readAll(settings)
	if err != nil {
		return err
	}
	if c.cluster == nil {
		return fmt.Errorf("%s is gone: restore it from another node, or polluxadm cluster leave %s", m.settings.HA.ClusterFile, m.self)
	}
	anew := false
	if !m.do(ctx, func() { anew, err = m.takeOver(c) }) {
		return errStopping
	}
	if anew && err == nil {
		m.node.rejoin()
		return nil
	}
	if err == nil && m.follow != nil {
		err = m.follow(c)
	}
	if err == nil && clusterHash(m.channel.Load().Cluster()) != clusterHash(c.cluster) {
		err = m.channel.Load().Reload(c.cluster)
	}
	if err == nil {
		err = c.leftOut()
	}
	return err
}

// beginsAnew reports whether a change of the cluster's file is more than a running
// member can follow: who decides, and how.
func beginsAnew(old, c *conf.Cluster) bool {
	twoNodes := !c.Arbiter.Leases() && !slices.Equal(old.DataNodes(), c.DataNodes())
	return twoNodes || !reflect.DeepEqual(old.Arbiter, c.Arbiter) || !reflect.DeepEqual(old.Fences, c.Fences) ||
		old.LeaderIP != c.LeaderIP || old.LeaderInterface != c.LeaderInterface
}

// unfit says why this node can't take part in a change of the members now.
func (m *member) unfit(ctx context.Context, change control.Change) error {
	s, _, _, err := m.snapshot(ctx)
	if err != nil {
		return err
	}
	for _, v := range s.Services {
		if change.Leaves == "" {
			continue
		}
		if v.State == ha.StateStarting || v.State == ha.StateStopping || v.State == ha.StateMoving {
			return fmt.Errorf("vm %s is %s: wait until it is not", v.Name, v.State)
		}
	}
	for _, n := range s.Nodes {
		if n.Name == s.Self && n.State == ha.Error {
			return fmt.Errorf("node %s is ill: %s", n.Name, n.Why)
		}
	}
	for _, v := range s.Services {
		if change.Leaves != "" && v.Node == change.Leaves {
			return fmt.Errorf("vm %s runs on %s: polluxadm node evacuate %s", v.Name, v.Node, v.Node)
		}
	}
	return nil
}

// stop ends the member; what runs goes on.
func (m *member) stop() {
	m.cancel()
	<-m.ended
	m.close()
}

func (m *member) close() {
	for i := len(m.closers) - 1; i >= 0; i-- {
		m.closers[i]()
	}
	m.closers = nil
}

// alive reports whether the core steps.
func (m *member) alive(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, vitalTime*time.Millisecond)
	defer cancel()
	return m.do(ctx, func() {})
}

// summary is one line for systemctl status.
func (m *member) summary() string {
	ctx, cancel := context.WithTimeout(context.Background(), vitalTime*time.Millisecond)
	defer cancel()
	s, c, _, err := m.snapshot(ctx)
	if err != nil {
		return "no answer from the core"
	}
	here := 0
	for _, v := range s.Services {
		if v.Node == s.Self {
			here++
		}
	}
	return fmt.Sprintf("cluster %s, %d of %d VMs here: %s", c.cluster.Name, here, len(c.vms), s.Verdict)
}

// setBeat, ask, links and version make the channel the manager's peers.
func (m *member) setBeat(beat []byte) {
	if err := m.channel.Load().SetPayload(beat); err != nil {
		m.log.Error().Err(err).Msg("the others hear of this node no more: too many VMs")
	}
}

func (m *member) ask(ctx context.Context, node, method string, body []byte) ([]byte, error) {
	return m.channel.Load().Request(ctx, node, method, body, nil)
}

func (m *member) peer(node string) (control.Peer, bool) {
	for _, p := range m.channel.Load().Peers() {
		if p.Node == node {
			return p, true
		}
	}
	return control.Peer{}, false
}

func (m *member) links(node string) []adm.HALink {
	p, _ := m.peer(node)
	var out []adm.HALink
	for _, l := range p.Links {
		out = append(out, adm.HALink{Address: l.Remote.String(), Up: l.State == control.LinkOK, SilentMS: l.Silent.Milliseconds()})
	}
	return out
}

func (m *member) version(node string) string {
	p, _ := m.peer(node)
	return p.Software
}

// token lets one node in.
func (m *member) token(req adm.HARequest) (any, error) {
	links, err := parseLinks(req.Args.Links)
	if err != nil {
		return nil, err
	}
	t, err := m.channel.Load().NewToken(control.TokenRequest{Node: req.Node, Kind: req.Args.Kind, Links: links})
	if err != nil {
		return nil, refused(err)
	}
	m.events.add(adm.HAEvent{Kind: adm.HAEventOperator, Peer: req.Node, Text: fmt.Sprintf("a token was made with which %s may join", req.Node)})
	return adm.HAToken{Token: t.String(), Node: t.Node, Expires: t.Expires}, nil
}

// leave takes a node out of the cluster.
func (m *member) leave(ctx context.Context, req adm.HARequest, progress func(adm.HAProgress)) error {
	s, c, _, err := m.snapshot(ctx)
	if err != nil {
		return err
	}
	for _, v := range s.Services {
		if v.Node == req.Node {
			return &adm.Error{
				Exit: adm.ExitRefused, Text: fmt.Sprintf("node %s: vm %s runs there", req.Node, v.Name),
				Advice: "polluxadm node evacuate " + req.Node,
			}
		}
	}
	if c.cluster.Node(req.Node) == nil {
		return c.unknownNode(req.Node)
	}
	progress(adm.HAProgress{Step: "leave", Text: "the other nodes are asked"})
	if err := m.channel.Load().MayLeave(ctx, req.Node); err != nil { // before its vote is gone
		return refused(err)
	}
	if w := fewVoters(c.cluster); w != "" {
		progress(adm.HAProgress{Step: "leave", Text: "warning: " + w})
		m.events.add(adm.HAEvent{Level: adm.HALevelWarning, Kind: adm.HAEventArbiter, Peer: req.Node, Text: w})
	}
	if err := m.forgetVoter(ctx, c, req.Node); err != nil {
		return refused(err)
	}
	if err := m.channel.Load().Leave(ctx, req.Node); err != nil {
		return refused(fmt.Errorf("%w: its vote in the arbiter is gone already: polluxadm cluster leave %s once more, when that is mended", err, req.Node))
	}
	m.events.add(adm.HAEvent{Kind: adm.HAEventOperator, Peer: req.Node, Text: fmt.Sprintf("node %s was taken out of the cluster", req.Node)})
	return nil
}

// fewVoters warns of what a cluster's arbiter is when one more node has left; "": it
// has enough voters, or none of its own.
func fewVoters(c *conf.Cluster) string {
	left := len(c.Nodes) - 1
	if c.Arbiter.Kind != conf.ArbiterEtcd || !c.Arbiter.Etcd.Embedded() || left == 0 || left > 2 {
		return ""
	}
	voters := "2 voters are"
	if left == 1 {
		voters = "1 voter is"
	}
	return voters + " left in the arbiter, and the death of one silences it: nothing fails over automatically until there are three again"
}

// initCluster makes a cluster with this node as its first.
func (n *node) initCluster(ctx context.Context, req adm.HARequest) (any, error) {
	links, err := parseLinks(req.Args.Links)
	if err != nil {
		return nil, err
	}
	c, err := control.Init(clusterStore(n.settings), control.InitOptions{
		Cluster: req.Args.Cluster, Node: n.settings.NodeName, Links: links,
		Change: func(c *conf.Cluster) error { return setArbiter(c, req.Args.Arbiter, req.Args.ArbiterOptions) },
	})
	if err != nil {
		return nil, refused(err)
	}
	n.events.add(adm.HAEvent{Kind: adm.HAEventOperator, Text: fmt.Sprintf("cluster %s was made, id %s", c.Name, c.ID)})
	return n.enter(ctx)
}

// joinCluster makes this node a member of the cluster that a token is of.
func (n *node) joinCluster(ctx context.Context, req adm.HARequest, progress func(adm.HAProgress)) (any, error) {
	c, err := control.Join(ctx, clusterStore(n.settings), req.Args.Token, control.JoinOptions{
		Node: n.settings.NodeName, Software: service.Version,
		Foreign:  n.foreign,
		Progress: func(text string) { progress(adm.HAProgress{Step: "join", Text: text}) },
	})
	if err != nil {
		return nil, refused(err)
	}
	n.events.add(adm.HAEvent{Kind: adm.HAEventOperator, Text: fmt.Sprintf("this node has joined cluster %s", c.Name)})
	if _, err := n.enter(ctx); err != nil {
		return nil, err
	}
	progress(adm.HAProgress{Step: "join", Text: "waiting until all nodes hear each other"})
	return n.meet(ctx)
}

// meet waits until this node hears all others, so that the next one can join at once,
// and, if it is to run a member of etcd, that has a vote.
func (n *node) meet(ctx context.Context) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, meetTime)
	defer cancel()
	why := "this node is no member any more"
	for {
		if m := n.current(); m != nil {
			if why = m.apart(ctx); why == "" {
				return m.clusterStatus(ctx)
			}
		}
		select {
		case <-ctx.Done():
			return nil, &adm.Error{
				Exit: adm.ExitEnvironment, Text: "this node has joined the cluster, and something is missing: " + why,
				Advice: "polluxadm cluster status, on both sides",
			}
		case <-time.After(50 * time.Millisecond): // both are polled elsewhere
		}
	}
}

// apart says what keeps the nodes from working together; "" if nothing does.
func (m *member) apart(ctx context.Context) string {
	for _, p := range m.channel.Load().Peers() {
		if p.State() != control.LinkOK {
			return "there is no heartbeat of " + p.Node
		}
	}
	s, _, _, err := m.snapshot(ctx)
	if err != nil {
		return err.Error()
	}
	for _, n := range s.Nodes {
		if n.State == ha.Error {
			return fmt.Sprintf("node %s is ill: %s", n.Name, n.Why)
		}
	}
	return m.arbiterMissing()
}

// enterTime is how long a new member may take until it answers, meetTime until it
// hears all others and its member of etcd has caught up. Our own.
const (
	enterTime = 30 * time.Second
	meetTime  = time.Minute
)

// enter has this node become what the files say now, and answers with its status.
func (n *node) enter(ctx context.Context) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, enterTime)
	defer cancel()
	n.rejoin()
	for n.current() == nil {
		select {
		case <-ctx.Done():
			return nil, &adm.Error{
				Exit: adm.ExitEnvironment, Text: "this node is a member now, and polluxha has not begun to work as one",
				Advice: "its log says why (journalctl -u polluxha)",
			}
		case <-time.After(20 * time.Millisecond): // it is being started by the goroutine that owns it
		}
	}
	return n.current().clusterStatus(ctx)
}

func refused(err error) error {
	var known *adm.Error
	if errors.As(err, &known) {
		return known
	}
	return &adm.Error{Exit: adm.ExitRefused, Text: err.Error()}
}

// parseLinks reads IP:PORT; the port may be left out.
func parseLinks(texts []string) ([]netip.AddrPort, error) {
	var links []netip.AddrPort
	for _, t := range texts {
		l, err := netip.ParseAddrPort(t)
		if a, aerr := netip.ParseAddr(strings.Trim(t, "[]")); err != nil && aerr == nil {
			l, err = netip.AddrPortFrom(a, conf.DefaultHAPort), nil
		}
		if err != nil {
			return nil, &adm.Error{Exit: adm.ExitUsage, Text: fmt.Sprintf("link %q: expected IP:PORT, or IP for port %d", t, conf.DefaultHAPort)}
		}
		links = append(links, l)
	}
	if len(links) == 0 {
		return nil, &adm.Error{Exit: adm.ExitUsage, Text: "no link is given: where does the node hear the others? expected IP:PORT"}
	}
	return links, nil
}

// foreign says what of this node belongs to another cluster. Nothing is erased.
func (n *node) foreign(context.Context) error {
	if _, err := os.Stat(filepath.Join(n.settings.HA.EtcdDir, "member")); err == nil {
		return fmt.Errorf("%s holds a member of another cluster's etcd: nothing was changed; if that cluster is no more, move the directory away and join again", n.settings.HA.EtcdDir)
	}
	if _, err := os.Stat(n.recordsPath()); err == nil {
		return fmt.Errorf("%s has records of another cluster: nothing was changed; if that cluster is no more, move the file away and join again", n.recordsPath())
	}
	saved, err := store[ha.Saved]{path: n.statePath("ha-state.json")}.load()
	if err != nil {
		return err
	}
	if len(saved.Wishes) > 0 {
		return fmt.Errorf("%s has what this node was told to run in another cluster: nothing was changed; move the file away and join again", n.statePath("ha-state.json"))
	}
	return nil
}

// recordsPath is the file of an arbiter that two nodes are.
func (n *node) recordsPath() string { return n.statePath("ha-records.json") }

// leftover moves what belonged to a cluster that this node has left out of the way.
func (n *node) leftover() error {
	kept, err := clusterStore(n.settings).Retire(n.statePath("ha-state.json"), n.recordsPath(), inForceStore(n.settings).path, n.settings.HA.EtcdDir)
	if err != nil {
		return err
	}
	n.log.Warn().Str("kept", kept).Msg("this node has left its cluster: what was of it is kept there")
	n.events.add(adm.HAEvent{Level: adm.HALevelWarning, Kind: adm.HAEventConfig, Text: "this node has left its cluster"})
	return nil
}

// An arbiterParts is an arbiter with what belongs to its kind.
type arbiterParts struct {
	arbiter.Arbiter
	fence    func(ctx context.Context, node string) error
	confirm  func(node string) error
	selfTest func() *time.Time
}
