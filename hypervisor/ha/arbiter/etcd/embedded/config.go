package embedded

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// Defaults and sizes, all our own choices; the package comment has the reason of
// the first two. The state is a few hundred keys: little history is kept.
const (
	DefaultHeartbeat = 250 * time.Millisecond
	DefaultElection  = 1500 * time.Millisecond
	snapshotCount    = 2000 // entries between two snapshots
	catchUpEntries   = 500  // kept for a slow follower
	quotaBytes       = 256 << 20
	keepRevisions    = "1000"
)

// Config describes one member.
type Config struct {
	Name      string // of the node; required
	Dir       string // its data: on a disk that is not replicated; required
	PeerURL   string // where it listens for members: "https://10.1.1.1:2380"; required
	ClientURL string // where it listens for clients: "https://10.1.1.1:2379"; required
	Cluster   string // the cluster's ID: members of two clusters never mix; required

	// Voters are the members that a new cluster begins with, name to peer URL, this
	// one among them. Ignored if Dir has a member, and by Join.
	Voters map[string]string

	// CA, Cert and Key are PEM files, for clients and members alike: both sides
	// show a certificate of that CA. The certificate has to be good for servers
	// and clients, and for the addresses in the URLs. Without them the URLs are
	// http, for tests on loopback.
	CA, Cert, Key string

	Heartbeat time.Duration // 0 for DefaultHeartbeat; the same on all members
	Election  time.Duration // 0 for DefaultElection; at least five heartbeats

	Log *zap.Logger // nil: silent. etcd tells much: let only warnings through
}

// Validate returns what is wrong.
func (c *Config) Validate() error {
	for what, v := range map[string]string{"Name": c.Name, "Dir": c.Dir, "PeerURL": c.PeerURL, "ClientURL": c.ClientURL, "Cluster": c.Cluster} {
		if v == "" {
			return fmt.Errorf("embedded etcd: %s is missing", what)
		}
	}
	isTLS := c.CA != "" && c.Cert != "" && c.Key != ""
	if !isTLS && (c.CA != "" || c.Cert != "" || c.Key != "") {
		return errors.New("embedded etcd: CA, certificate and key are needed, or none of them")
	}
	urls := slices.Collect(maps.Values(c.Voters))
	for _, s := range append(urls, c.PeerURL, c.ClientURL) {
		u, err := url.Parse(s)
		if err != nil || u.Port() == "" || u.Scheme != "http" && u.Scheme != "https" {
			return fmt.Errorf("embedded etcd: %q: https://HOST:PORT is expected", s)
		}
		if (u.Scheme == "https") != isTLS {
			return fmt.Errorf("embedded etcd: %s: https goes with certificates, http without", s)
		}
	}
	if len(c.Voters) > 0 && c.Voters[c.Name] != c.PeerURL {
		return fmt.Errorf("embedded etcd: %s is not among the voters with %s", c.Name, c.PeerURL)
	}
	if c.election() < 5*c.heartbeat() {
		return fmt.Errorf("embedded etcd: an election timeout of %v is less than five heartbeats of %v", c.election(), c.heartbeat())
	}
	return nil
}

func (c *Config) heartbeat() time.Duration {
	if c.Heartbeat == 0 {
		return DefaultHeartbeat
	}
	return c.Heartbeat
}

func (c *Config) election() time.Duration {
	if c.Election == 0 {
		return DefaultElection
	}
	return c.Election
}

// etcd returns etcd's own configuration; Validate has passed. cluster is the list
// "name=url,…", state is embed.ClusterStateFlagNew or …Existing.
func (c *Config) etcd(cluster, state string, log *zap.Logger) (*embed.Config, error) {
	peer, err := url.Parse(c.PeerURL)
	if err != nil {
		return nil, err
	}
	client, err := url.Parse(c.ClientURL)
	if err != nil {
		return nil, err
	}
	e := embed.NewConfig()
	e.Name, e.Dir = c.Name, c.Dir
	e.ListenPeerUrls, e.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	e.ListenClientUrls, e.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	e.InitialCluster, e.InitialClusterToken, e.ClusterState = cluster, c.Cluster, state
	if c.CA != "" {
		e.ClientTLSInfo = transport.TLSInfo{CertFile: c.Cert, KeyFile: c.Key, TrustedCAFile: c.CA, ClientCertAuth: true}
		e.PeerTLSInfo = e.ClientTLSInfo
		// A member may come from any of its host's addresses; that the cluster's CA
		// signed for it is what counts.
		e.PeerTLSInfo.SkipClientSANVerify = true
		e.TlsMinVersion = "TLS1.3"
	}
	e.TickMs, e.ElectionMs = uint(c.heartbeat().Milliseconds()), uint(c.election().Milliseconds())
	e.SnapshotCount, e.SnapshotCatchUpEntries = snapshotCount, catchUpEntries
	e.QuotaBackendBytes = quotaBytes
	e.AutoCompactionMode, e.AutoCompactionRetention = embed.CompactorModeRevision, keepRevisions
	e.EnableGRPCGateway = false
	e.SocketOpts.ReuseAddress = true // a restarted member listens at once
	e.ZapLoggerBuilder = embed.NewZapLoggerBuilder(log)
	return e, nil
}

// list is etcd's form of a set of members.
func list(members map[string]string) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(members)) {
		all = append(all, name+"="+members[name])
	}
	return strings.Join(all, ",")
}
