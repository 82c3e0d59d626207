package embedded

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// Our own constants.
const (
	askLimit    = 5 * time.Second  // for one question
	addLimit    = 20 * time.Second // for a change of the members
	promotePoll = time.Second      // a newcomer catches up in seconds
)

// client connects to members that run already.
func (c *Config) client(endpoints []string) (*clientv3.Client, error) {
	cfg := clientv3.Config{Endpoints: endpoints, DialTimeout: askLimit, Logger: zap.NewNop()}
	if c.CA != "" {
		info := transport.TLSInfo{CertFile: c.Cert, KeyFile: c.Key, TrustedCAFile: c.CA}
		t, err := info.ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("embedded etcd: %w", err)
		}
		cfg.TLS = t
	}
	return clientv3.New(cfg)
}

// Join starts a member of the cluster behind these client URLs. It is refused while
// a member there is ill or still learning. The newcomer has no vote until it has
// caught up; Join returns when it has one, or with the member closed. A member that
// was added by a Join that broke off is taken up again.
func Join(ctx context.Context, c Config, endpoints ...string) (*Member, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	etcd, err := c.client(endpoints)
	if err != nil {
		return nil, err
	}
	defer etcd.Close()
	id, cluster, err := c.add(ctx, etcd)
	if err != nil {
		return nil, fmt.Errorf("embedded etcd: adding %s: %w", c.Name, err)
	}
	m, err := start(c, cluster, embed.ClusterStateFlagExisting)
	if err != nil {
		return nil, err
	}
	if err := promote(ctx, etcd, id, m.failed); err != nil {
		return nil, errors.Join(fmt.Errorf("embedded etcd: %s has no vote yet: %w", c.Name, err), m.Close())
	}
	return m, nil
}

// add makes this node a member without a vote, unless it is one.
func (c *Config) add(ctx context.Context, etcd *clientv3.Client) (id uint64, cluster string, err error) {
	ctx, cancel := context.WithTimeout(ctx, addLimit)
	defer cancel()
	now, err := etcd.MemberList(ctx)
	if err != nil {
		return 0, "", err
	}
	members := now.Members
	own := slices.IndexFunc(members, func(m *etcdserverpb.Member) bool { return slices.Contains(m.PeerURLs, c.PeerURL) })
	switch {
	case own >= 0 && members[own].Name != "" && members[own].Name != c.Name:
		return 0, "", fmt.Errorf("%s is member %s already", c.PeerURL, members[own].Name)
	case own >= 0:
		id = members[own].ID
	default:
		for _, m := range members {
			if err := healthy(ctx, etcd, m); err != nil {
				return 0, "", fmt.Errorf("not while %w", err)
			}
		}
		var added *clientv3.MemberAddResponse
		err := whenHealthy(ctx, func() (err error) {
			added, err = etcd.MemberAddAsLearner(ctx, []string{c.PeerURL})
			return err
		})
		if err != nil {
			return 0, "", err
		}
		id, members = added.Member.ID, added.Members
	}
	all := map[string]string{}
	for _, m := range members {
		name := m.Name
		if m.ID == id {
			name = c.Name // it tells its name when it has started
		}
		if name == "" || len(m.PeerURLs) == 0 {
			return 0, "", fmt.Errorf("not while %v has been added and never started: remove it, or start it", m.PeerURLs)
		}
		all[name] = m.PeerURLs[0]
	}
	return id, list(all), nil
}

// whenHealthy makes a change of the members. etcd refuses that for 5 s after they
// have found each other (etcdserver.HealthInterval): then it is tried again.
func whenHealthy(ctx context.Context, change func() error) error {
	for {
		err := change()
		if !errors.Is(err, rpctypes.ErrUnhealthy) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(promotePoll):
		}
	}
}

func healthy(ctx context.Context, etcd *clientv3.Client, m *etcdserverpb.Member) error {
	switch {
	case m.Name == "" || len(m.ClientURLs) == 0:
		return fmt.Errorf("%v has been added and never started: remove it, or start it", m.PeerURLs)
	case m.IsLearner:
		return fmt.Errorf("%s is still learning", m.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	s, err := etcd.Status(ctx, m.ClientURLs[0])
	switch {
	case err != nil:
		return fmt.Errorf("%s does not answer: %w", m.Name, err)
	case s.Leader == 0:
		return fmt.Errorf("%s knows no leader", m.Name)
	case len(s.Errors) > 0:
		return fmt.Errorf("%s is ill: %v", m.Name, s.Errors)
	}
	return nil
}

// promote gives a newcomer its vote as soon as etcd permits it.
func promote(ctx context.Context, etcd *clientv3.Client, id uint64, failed chan error) error {
	for {
		one, cancel := context.WithTimeout(ctx, askLimit)
		_, err := etcd.MemberPromote(one, id)
		cancel()
		if err == nil || errors.Is(err, rpctypes.ErrMemberNotLearner) {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case f := <-failed:
			return f
		case <-time.After(promotePoll):
		}
	}
}

// Remove takes a member out of the cluster behind these client URLs, by its name.
// It is refused where the others would have no majority. The member ends by itself.
func Remove(ctx context.Context, c Config, name string, endpoints ...string) error {
	etcd, err := c.client(endpoints)
	if err != nil {
		return err
	}
	defer etcd.Close()
	ctx, cancel := context.WithTimeout(ctx, addLimit)
	defer cancel()
	now, err := etcd.MemberList(ctx)
	if err != nil {
		return fmt.Errorf("embedded etcd: removing %s: %w", name, err)
	}
	for _, m := range now.Members {
		if m.Name != name {
			continue
		}
		if err := whenHealthy(ctx, func() error {
			_, err := etcd.MemberRemove(ctx, m.ID)
			return err
		}); err != nil && !errors.Is(err, rpctypes.ErrMemberNotFound) {
			return fmt.Errorf("embedded etcd: removing %s: %w", name, err)
		}
	}
	return nil // it is no member
}
