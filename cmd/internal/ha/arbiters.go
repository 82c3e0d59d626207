package ha

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/etcd"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/etcd/embedded"
	arbfence "github.com/pollux-project/pollux/hypervisor/ha/arbiter/fence"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/manual"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/pair"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/witness"
	"github.com/pollux-project/pollux/hypervisor/ha/control"
	"github.com/pollux-project/pollux/hypervisor/ha/fence"
)

// startArbiter makes the arbiter that the cluster's file names. That it can't be
// reached now is no error: the core says so, and nothing is promoted.
func (m *member) startArbiter(c *configuration, id *control.Identity) (*arbiterParts, error) {
	parts := &arbiterParts{
		fence: func(_ context.Context, node string) error {
			return fmt.Errorf("there is no [[fence]] for %s in %s", node, c.cluster.File)
		},
		confirm: func(node string) error {
			return fmt.Errorf("arbiter %q fences nobody: %s is not confirmed to be off", c.cluster.Arbiter.Kind, node)
		},
		selfTest: func() *time.Time { return nil },
	}
	var err error
	switch kind := c.cluster.Arbiter.Kind; kind {
	case conf.ArbiterEtcd:
		err = m.startEtcd(c, parts)
	case conf.ArbiterWitness:
		err = startWitness(c, id, parts)
	case conf.ArbiterManual, conf.ArbiterFence:
		err = m.startPair(c, parts)
	default:
		err = fmt.Errorf("arbiter %q", kind)
	}
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", c.cluster.Name, err)
	}
	m.closers = append(m.closers, func() { parts.Arbiter.Close() }) //nolint:errcheck // what is not closed ends with the process
	return parts, nil
}

// startPair makes the arbiter that the two data nodes are together: with fence agents,
// or with a person who decides. A cluster that has one data node so far has none.
func (m *member) startPair(c *configuration, parts *arbiterParts) error {
	var peer string
	switch names := c.cluster.DataNodes(); {
	case c.cluster.Node(c.self()).Kind == conf.NodeWitness:
		return fmt.Errorf("arbiter %q is two data nodes, and %s is a witness: choose etcd", c.cluster.Arbiter.Kind, c.self())
	case len(names) == 1:
		parts.Arbiter = alone{c.cluster.Arbiter.TTL.Duration}
		return nil
	case len(names) != 2:
		return fmt.Errorf("arbiter %q is for two data nodes, and there are %d: choose etcd or witness", c.cluster.Arbiter.Kind, len(names))
	default:
		peer = otherOf(names, c.self())
	}
	cfg := pair.Config{
		Cluster: c.cluster.ID, Node: c.self(), Peer: peer, File: m.node.recordsPath(), Boot: m.node.boot,
		TTL: c.cluster.Arbiter.TTL.Duration, Caller: pairCaller{m, peer},
	}
	if c.cluster.Arbiter.Kind == conf.ArbiterManual {
		a, err := manual.New(cfg)
		if err != nil {
			return err
		}
		parts.Arbiter, m.serveArbiter = a, onlyFrom(peer, a.Serve)
		return nil
	}
	devices, err := fenceDevices(c)
	if err != nil {
		return err
	}
	a, err := arbfence.New(arbfence.Config{Pair: cfg, Switch: devices})
	if err != nil {
		return err
	}
	parts.Arbiter, m.serveArbiter, parts.fence, parts.confirm = a, onlyFrom(peer, a.Serve), a.Fence, a.Confirmed
	parts.selfTest = func() *time.Time { return lastTest(devices) }
	m.selfTests(devices)
	return nil
}

// onlyFrom takes requests of the other half of an arbiter, and of no third node.
func onlyFrom(peer string, serve func(context.Context, []byte) ([]byte, error)) func(context.Context, string, []byte) ([]byte, error) {
	return func(ctx context.Context, from string, request []byte) ([]byte, error) {
		if from != peer {
			return nil, fmt.Errorf("%s has no half of this arbiter, %s has it", from, peer)
		}
		return serve(ctx, request)
	}
}

// fenceDevices are the agents of the cluster's file.
func fenceDevices(c *configuration) (*fence.Devices, error) {
	var list []fence.Device
	for _, f := range c.cluster.Fences {
		node := f.Node
		if n := c.cluster.Node(f.Node); n != nil {
			node = n.Name
		}
		list = append(list, fence.Device{Node: node, Agent: f.Agent, Options: f.Options})
	}
	return fence.New(list)
}

// selfTestEvery is how often each fence agent is asked whether it could shoot. Our own.
const selfTestEvery = 15 * time.Minute

func (m *member) selfTests(devices *fence.Devices) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		devices.SelfTest(ctx, selfTestEvery)
	}()
	m.closers = append(m.closers, func() {
		cancel()
		<-done
	})
}

// lastTest is when the oldest of the last self-tests ended; nil if one failed, or was
// not made yet.
func lastTest(devices *fence.Devices) *time.Time {
	var oldest *time.Time
	for _, t := range devices.Tests() {
		if t.Err != nil || t.At.IsZero() {
			return nil
		}
		if oldest == nil || t.At.Before(*oldest) {
			at := t.At.UTC()
			oldest = &at
		}
	}
	return oldest
}

// A pairCaller brings requests of this node's half of the arbiter to the other one.
type pairCaller struct {
	m    *member
	peer string
}

func (p pairCaller) Call(ctx context.Context, request []byte) ([]byte, error) {
	ch := p.m.channel.Load()
	if ch == nil {
		return nil, control.ErrNotConnected
	}
	return ch.Request(ctx, p.peer, methodArbiter, request, nil)
}

// methodArbiter carries what two nodes have to agree upon, without a third.
const methodArbiter = "arbiter"

// alone is the arbiter of a cluster that has one data node so far: it can't be reached.
type alone struct{ ttl time.Duration }

var errAlone = fmt.Errorf("%w: the cluster has one data node so far: polluxadm cluster token, and join on the other", arbiter.ErrUnreachable)

func (alone) Acquire(context.Context, arbiter.Claim) (arbiter.Record, error) {
	return arbiter.Record{}, errAlone
}
func (alone) Renew(context.Context, string, string) error           { return errAlone }
func (alone) Release(context.Context, string, string, uint64) error { return errAlone }
func (alone) Resign(context.Context, string, string) error          { return errAlone }
func (alone) Observe(context.Context, ...string) (arbiter.View, error) {
	return arbiter.View{}, errAlone
}
func (alone) Watch(ctx context.Context, _ func()) { <-ctx.Done() }
func (a alone) TTL() time.Duration                { return a.ttl }
func (alone) Close() error                        { return nil }

// startWitness makes the client of pollux-witness.
func startWitness(c *configuration, id *control.Identity, parts *arbiterParts) error {
	w := c.cluster.Arbiter.Witness
	cfg := witness.ClientConfig{
		Address: w.Address, Fingerprint: w.Fingerprint, Certificate: id.TLSCertificate(), TTL: c.cluster.Arbiter.TTL.Duration,
	}
	var err error
	if w.CA != "" {
		if cfg.CA, err = os.ReadFile(w.CA); err != nil {
			return fmt.Errorf("arbiter.witness.ca: %w", err)
		}
	}
	if w.Cert != "" {
		if cfg.Certificate, err = tls.LoadX509KeyPair(w.Cert, w.Key); err != nil {
			return fmt.Errorf("arbiter.witness.cert: %w", err)
		}
	}
	client, err := witness.NewClient(cfg)
	if err != nil {
		return err
	}
	parts.Arbiter = client
	return nil
}

func (m *member) startEtcd(c *configuration, parts *arbiterParts) error {
	complaint := func() string { return "" }
	if c.settings.HA.EmbeddedEtcd && c.cluster.Arbiter.Etcd.Embedded() {
		own := startEtcd(memberConfig(c, m.store, m.node.log), embeddedEndpoints(c.cluster, c.self())[1:], m.node.log)
		m.closers = append(m.closers, own.close)
		m.etcd, complaint = own, own.complaint
	}
	cfg, err := etcdConfig(c, m.store, complaint)
	if err != nil {
		return err
	}
	a, err := etcd.New(cfg)
	if err != nil {
		return err
	}
	changeable := newChangeable(a)
	parts.Arbiter = changeable
	m.follow = func(c *configuration) error {
		cfg, err := etcdConfig(c, m.store, complaint)
		if err != nil || slices.Equal(cfg.Endpoints, m.endpoints) {
			return err
		}
		a, err := etcd.New(cfg)
		if err != nil {
			return err
		}
		m.endpoints = cfg.Endpoints
		return changeable.change(a)
	}
	m.endpoints = cfg.Endpoints
	return nil
}

// arbiterMissing says why this node's part of the arbiter does not work yet.
func (m *member) arbiterMissing() string {
	if m.etcd == nil {
		return ""
	}
	return m.etcd.missing()
}

// forgetVoter takes the vote of a node that leaves away.
func (m *member) forgetVoter(ctx context.Context, c *configuration, node string) error {
	a := c.cluster.Arbiter
	if a.Kind != conf.ArbiterEtcd || !a.Etcd.Embedded() || len(c.cluster.Nodes) == 1 {
		return nil
	}
	var others []string
	for i := range c.cluster.Nodes {
		if n := &c.cluster.Nodes[i]; n.Name != node {
			others = append(others, "https://"+n.EtcdClient().String())
		}
	}
	return embedded.Remove(ctx, memberConfig(c, m.store, m.node.log), node, others...)
}

// setArbiter writes what cluster init was told into the cluster's file. The keys of
// options are those of cluster.toml: ttl of [arbiter], and those of the kind's own table.
func setArbiter(c *conf.Cluster, kind string, options map[string]string) error {
	a := &c.Arbiter
	if kind != "" {
		a.Kind = kind
	}
	for _, key := range slices.Sorted(maps.Keys(options)) {
		value := options[key]
		var err error
		switch {
		case key == "ttl":
			err = a.TTL.UnmarshalText([]byte(value))
		case key == "unsafe-short-ttl":
			a.UnsafeShortTTL = value == "true"
		case key == "keepalive":
			err = c.Heartbeat.Keepalive.UnmarshalText([]byte(value))
		case key == "warntime":
			err = c.Heartbeat.Warntime.UnmarshalText([]byte(value))
		case key == "deadtime":
			err = c.Heartbeat.Deadtime.UnmarshalText([]byte(value))
		case key == "initdead":
			err = c.Heartbeat.Initdead.UnmarshalText([]byte(value))
		case kind == conf.ArbiterEtcd:
			err = setEtcd(&a.Etcd, key, value)
		case kind == conf.ArbiterWitness:
			err = setWitness(&a.Witness, key, value)
		default:
			err = errOption
		}
		if err != nil {
			return fmt.Errorf("arbiter %q: option %s=%s: %w", a.Kind, key, value, err)
		}
	}
	return nil
}

var errOption = fmt.Errorf("there is no such key in the arbiter's table of cluster.toml, see cluster.toml(5)")

func setEtcd(e *conf.EtcdTable, key, value string) error {
	switch key {
	case "endpoints":
		e.Endpoints = strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' })
	case "user":
		e.User = value
	case "password-file":
		e.PasswordFile = value
	case "ca":
		e.CA = value
	case "cert":
		e.Cert = value
	case "key":
		e.Key = value
	default:
		return errOption
	}
	return nil
}

func setWitness(w *conf.WitnessTable, key, value string) error {
	switch key {
	case "address":
		return w.Address.UnmarshalText([]byte(value))
	case "fingerprint":
		w.Fingerprint = value
	case "ca":
		w.CA = value
	case "cert":
		w.Cert = value
	case "key":
		w.Key = value
	default:
		return errOption
	}
	return nil
}
