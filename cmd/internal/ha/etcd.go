package ha

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/etcd"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/etcd/embedded"
	"github.com/pollux-project/pollux/hypervisor/ha/control"
)

// etcdConfig is how this node asks etcd: the members that the nodes run
// themselves, its own first, or the ones that the cluster's file names.
func etcdConfig(c *configuration, store control.Store, complaint func() string) (etcd.Config, error) {
	e := c.cluster.Arbiter.Etcd
	cfg := etcd.Config{
		Cluster: c.cluster.ID, Node: c.self(), TTL: c.cluster.Arbiter.TTL.Duration, Endpoints: e.Endpoints,
		CA: e.CA, Cert: e.Cert, Key: e.Key, User: e.User, Member: complaint,
	}
	if e.Embedded() {
		cfg.Endpoints = embeddedEndpoints(c.cluster, c.self())
		cfg.CA, cfg.Cert, cfg.Key = store.CAFile(), store.CertFile(), store.KeyFile()
	}
	if e.PasswordFile != "" {
		text, err := os.ReadFile(e.PasswordFile)
		if err != nil {
			return cfg, fmt.Errorf("arbiter.etcd.password-file: %w", err)
		}
		cfg.Password = strings.TrimSpace(string(text))
	}
	return cfg, cfg.Validate()
}

// embeddedEndpoints are the client URLs of the members that nodes run, self's first.
func embeddedEndpoints(c *conf.Cluster, self string) []string {
	var urls []string
	for i := range c.Nodes {
		n := &c.Nodes[i]
		url := "https://" + n.EtcdClient().String()
		if n.Name == self {
			urls = append([]string{url}, urls...)
		} else {
			urls = append(urls, url)
		}
	}
	return urls
}

// memberConfig describes this node's own member of etcd.
func memberConfig(c *configuration, store control.Store, log zerolog.Logger) embedded.Config {
	n := c.cluster.Node(c.self())
	return embedded.Config{
		Name: n.Name, Dir: c.settings.HA.EtcdDir, Cluster: c.cluster.ID,
		PeerURL: "https://" + n.EtcdPeer().String(), ClientURL: "https://" + n.EtcdClient().String(),
		CA: store.CAFile(), Cert: store.CertFile(), Key: store.KeyFile(), Log: zapLogger(log),
	}
}

// An etcdMember is this node's own member of etcd, which is started beside
// everything else: until it runs, and if it does not, the arbiter is not reached.
type etcdMember struct {
	cfg    embedded.Config
	others []string // client URLs of members that may run already
	log    zerolog.Logger
	cancel context.CancelFunc
	ended  chan struct{}

	mu     sync.Mutex
	member *embedded.Member
	why    string // it does not run
}

// Times of the own member, our own.
const (
	etcdRetry    = 2 * time.Second
	etcdJoinTime = 2 * time.Minute
)

func startEtcd(cfg embedded.Config, others []string, log zerolog.Logger) *etcdMember {
	ctx, cancel := context.WithCancel(context.Background())
	m := &etcdMember{cfg: cfg, others: others, log: log, cancel: cancel, ended: make(chan struct{}), why: "it is being started"}
	go m.run(ctx)
	return m
}

// run keeps the member running until ctx is done.
func (m *etcdMember) run(ctx context.Context) {
	defer close(m.ended)
	told := ""
	for ctx.Err() == nil {
		member, err := m.start(ctx)
		if err == nil {
			m.set(member, "")
			m.log.Info().Str("dir", m.cfg.Dir).Str("listens", m.cfg.ClientURL).Msg("this node's member of etcd runs")
			select {
			case <-ctx.Done():
			case err = <-member.Failed():
			}
			m.set(nil, "it is stopped")
			if cerr := member.Close(); cerr != nil {
				m.log.Warn().Err(cerr).Msg("this node's member of etcd has ended with an error")
			}
		}
		if ctx.Err() != nil {
			return
		}
		m.set(nil, fmt.Sprint(err))
		if text := fmt.Sprint(err); text != told {
			told = text
			m.log.Error().Err(err).Msg("this node's member of etcd does not run; it is tried again")
		}
		select {
		case <-ctx.Done():
		case <-time.After(etcdRetry):
		}
	}
}

// start takes up what is on disk, or joins the others, or, alone, begins.
func (m *etcdMember) start(ctx context.Context) (*embedded.Member, error) {
	cfg := m.cfg
	_, err := os.Stat(filepath.Join(cfg.Dir, "member", "wal"))
	switch {
	case err == nil:
		return embedded.Start(cfg)
	case !errors.Is(err, os.ErrNotExist):
		return nil, err
	case len(m.others) == 0:
		cfg.Voters = map[string]string{cfg.Name: cfg.PeerURL}
		return embedded.Start(cfg)
	}
	ctx, cancel := context.WithTimeout(ctx, etcdJoinTime)
	defer cancel()
	return embedded.Join(ctx, cfg, m.others...)
}

func (m *etcdMember) set(member *embedded.Member, why string) {
	m.mu.Lock()
	m.member, m.why = member, why
	m.mu.Unlock()
}

// complaint says what is wrong with the member, for cluster status.
func (m *etcdMember) complaint() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.member == nil {
		return "this node's member of etcd does not run: " + m.why
	}
	return m.member.Complaint()
}

// missing says why there is no member with a vote; "" if there is one.
func (m *etcdMember) missing() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.member == nil {
		return "this node's member of etcd does not run: " + m.why
	}
	return ""
}

func (m *etcdMember) close() {
	m.cancel()
	<-m.ended
}

// zapLogger passes etcd's own words on, from warnings upwards.
func zapLogger(log zerolog.Logger) *zap.Logger {
	return zap.New(&zapCore{log: log.With().Str("part", "etcd").Logger()})
}

type zapCore struct {
	log    zerolog.Logger
	fields []zapcore.Field
}

func (c *zapCore) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

func (c *zapCore) With(f []zapcore.Field) zapcore.Core {
	return &zapCore{log: c.log, fields: append(c.fields[:len(c.fields):len(c.fields)], f...)}
}

func (c *zapCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *zapCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range append(c.fields[:len(c.fields):len(c.fields)], fields...) {
		f.AddTo(enc)
	}
	// What etcd finds worth an error is often the past of its own cluster; what
	// matters of its health is in its arbiter's Detail.
	ev := c.log.Debug()
	if e.Level >= zapcore.ErrorLevel {
		ev = c.log.Warn()
	}
	ev.Fields(enc.Fields).Msg(e.Message)
	return nil
}

func (c *zapCore) Sync() error { return nil }

// A changeable arbiter can be replaced by another one of the same kind: the
// cluster's nodes, and so the places to ask, have changed.
type changeable struct {
	mu      sync.Mutex
	arbiter arbiter.Arbiter
	moved   chan struct{} // closed when arbiter is another one
}

func newChangeable(a arbiter.Arbiter) *changeable {
	return &changeable{arbiter: a, moved: make(chan struct{})}
}

func (c *changeable) now() (arbiter.Arbiter, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.arbiter, c.moved
}

// change puts another arbiter in place; requests of the old one end as unreachable.
func (c *changeable) change(a arbiter.Arbiter) error {
	c.mu.Lock()
	old := c.arbiter
	c.arbiter = a
	close(c.moved)
	c.moved = make(chan struct{})
	c.mu.Unlock()
	return old.Close()
}

// Acquire, and the next ones, implement arbiter.Arbiter.
func (c *changeable) Acquire(ctx context.Context, cl arbiter.Claim) (arbiter.Record, error) {
	a, _ := c.now()
	return a.Acquire(ctx, cl)
}

func (c *changeable) Renew(ctx context.Context, node, session string) error {
	a, _ := c.now()
	return a.Renew(ctx, node, session)
}

func (c *changeable) Release(ctx context.Context, resource, node string, term uint64) error {
	a, _ := c.now()
	return a.Release(ctx, resource, node, term)
}

func (c *changeable) Resign(ctx context.Context, node, session string) error {
	a, _ := c.now()
	return a.Resign(ctx, node, session)
}

func (c *changeable) Observe(ctx context.Context, resources ...string) (arbiter.View, error) {
	a, _ := c.now()
	return a.Observe(ctx, resources...)
}

func (c *changeable) Watch(ctx context.Context, changed func()) {
	for ctx.Err() == nil {
		a, moved := c.now()
		one, cancel := context.WithCancel(ctx)
		stop := make(chan struct{})
		go func() {
			defer close(stop)
			select {
			case <-moved:
				cancel()
			case <-one.Done():
			}
		}()
		a.Watch(one, changed)
		cancel()
		<-stop
	}
}

func (c *changeable) TTL() time.Duration {
	a, _ := c.now()
	return a.TTL()
}

func (c *changeable) Close() error {
	a, _ := c.now()
	return a.Close()
}
