package hatestbed

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// The port of a node's member of etcd, for clients.
const etcdPort = 2379

// Our own constants: a member that runs answers within milliseconds.
const (
	memberPatience = time.Second
	leaderPatience = 20 * time.Second
)

// member connects with a host's member of etcd, from that host.
func (h *Host) member() (*clientv3.Client, error) {
	dir := filepath.Join(h.path("state"), "cluster")
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "node.pem"), filepath.Join(dir, "node.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return clientv3.New(clientv3.Config{
		Endpoints: []string{h.memberURL()}, Logger: zap.NewNop(), DialTimeout: memberPatience,
		TLS: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: roots},
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, address string) (conn net.Conn, err error) {
			err = h.space.Do(func() error {
				var d net.Dialer
				conn, err = d.DialContext(ctx, "tcp", address)
				return err
			})
			return conn, err
		})},
	})
}

func (h *Host) memberURL() string {
	return fmt.Sprintf("https://%s:%d", h.Address(Management), etcdPort)
}

// asLeader calls f with the client and the IDs of the host whose member of etcd says
// itself that it leads; what another member believes may be old.
func (s *Site) asLeader(ctx context.Context, f func(leader *Host, c *clientv3.Client, ids map[*Host]uint64) error) error {
	ids := map[*Host]uint64{}
	var leader *Host
	var client *clientv3.Client
	for _, h := range s.Hosts {
		c, err := h.member()
		if err != nil {
			return fmt.Errorf("etcd on %s: %w", h.Name, err)
		}
		defer c.Close()
		one, cancel := context.WithTimeout(ctx, memberPatience)
		status, err := c.Status(one, h.memberURL())
		cancel()
		if err != nil {
			continue // it is off, or stands still
		}
		ids[h] = status.Header.MemberId
		if status.Leader == status.Header.MemberId {
			leader, client = h, c
		}
	}
	if leader == nil {
		return errNoLeader
	}
	return f(leader, client, ids)
}

var errNoLeader = errors.New("no member of etcd says that it leads")

// led tells whether a host's member leads etcd. Then its death costs an election, and
// the new leader lets all leases begin anew.
func (s *Site) led(ctx context.Context, struck *Host) (led bool) {
	if s.Arbiter != ArbiterEtcd {
		return false
	}
	err := s.asLeader(ctx, func(leader *Host, _ *clientv3.Client, _ map[*Host]uint64) error {
		led = leader == struck
		return nil
	})
	return led && err == nil
}

// LeaderToPrimary has the host with the machine lead etcd, LeaderToSecondary the
// other data node, LeaderToWitness neither.
func (s *Site) LeaderToPrimary(ctx context.Context, p *Host) error { return s.lead(ctx, p) }

// LeaderToSecondary is for the death of the other one.
func (s *Site) LeaderToSecondary(ctx context.Context, p *Host) error { return s.lead(ctx, s.other(p)) }

// LeaderToWitness keeps an election out of a round.
func (s *Site) LeaderToWitness(ctx context.Context, _ *Host) error {
	return s.lead(ctx, s.Hosts[2])
}

// lead hands etcd's leadership to a host.
func (s *Site) lead(ctx context.Context, to *Host) error {
	if s.Arbiter != ArbiterEtcd {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, leaderPatience)
	defer cancel()
	var last error
	err := until(ctx, to.Name+" to lead etcd", func() (bool, error) {
		led := false
		last = s.asLeader(ctx, func(leader *Host, c *clientv3.Client, ids map[*Host]uint64) error {
			if led = leader == to; led {
				return nil
			}
			_, err := c.MoveLeader(ctx, ids[to])
			return err
		})
		return led, nil
	})
	return errors.Join(err, last)
}
