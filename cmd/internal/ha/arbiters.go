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
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/etcd"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/etcd/embedded"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/witness"
	"github.com/pollux-project/pollux/hypervisor/ha/control"
)

// startArbiter makes the arbiter that the cluster's file names. That it can't be
// reached now is no error: the core says so, and nothing is promoted.
func (m *member) startArbiter(c *configuration, id *control.Identity) (*arbiterParts, error) {
	parts := &arbiterParts{
		fence: func(_ context.Context, node string) error {
			return fmt.Errorf("there is no [[fence]] for %s in %s", node, c.cluster.File)
		},
		selfTest: func() *time.Time { return nil },
	}
	var err error
	switch kind := c.cluster.Arbiter.Kind; kind {
	case conf.ArbiterEtcd:
		err = m.startEtcd(c, parts)
	case conf.ArbiterWitness:
		err = startWitness(c, id, parts)
	default:
		err = fmt.Errorf("arbiter %q", kind)
	}
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", c.cluster.Name, err)
	}
	m.closers = append(m.closers, func() { parts.Arbiter.Close() })
	return parts, nil
}

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
