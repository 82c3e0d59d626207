package etcd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path"
	"strings"
	"time"

	"go.uber.org/zap"
)

// Config says where etcd is and who asks.
type Config struct {
	Cluster   string        // the cluster's name or ID, part of each key; required
	Node      string        // who asks; required
	Endpoints []string      // client URLs, tried in this order: "https://10.1.1.5:2379"; http for loopback only
	TTL       time.Duration // of a lease; etcd counts in whole seconds: rounded up there, never down

	// CA, Cert and Key are PEM files. CA without the others: etcd asks for no
	// certificate. Needed with https.
	CA, Cert, Key string

	// User and Password are for an etcd with authentication.
	User, Password string

	// Attempt is how long one endpoint has to answer before the next is asked; 0
	// for a sixth of TTL, between 200 ms and 1 s.
	Attempt time.Duration

	// Member tells of an embedded member: what it has to complain of, in a few
	// words; "" if nothing. May be nil.
	Member func() string

	Log *zap.Logger // nil: silent
}

// Bounds of Config. minTTL is etcd's own unit; the attempts are our own choice:
// three fit between two renewals of a default TTL.
const (
	minTTL     = time.Second
	minAttempt = 200 * time.Millisecond
	maxAttempt = time.Second
)

// Validate returns what is wrong, without looking at files.
func (c *Config) Validate() error {
	for what, name := range map[string]string{"cluster": c.Cluster, "node": c.Node} {
		if name == "" {
			return fmt.Errorf("etcd: the name of the %s is missing", what)
		}
	}
	if len(c.Endpoints) == 0 {
		return errors.New("etcd: no endpoint is given")
	}
	for _, e := range c.Endpoints {
		if err := checkEndpoint(e); err != nil {
			return err
		}
	}
	switch {
	case c.TTL < minTTL:
		return fmt.Errorf("etcd: a TTL of %v: %v at least, etcd counts in seconds", c.TTL, minTTL)
	case (c.Cert == "") != (c.Key == ""):
		return errors.New("etcd: a certificate and its key are needed, or neither")
	case (c.User == "") != (c.Password == ""):
		return errors.New("etcd: a user and the password are needed, or neither")
	}
	return nil
}

func checkEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil {
		return fmt.Errorf("etcd: endpoint %q: %w", endpoint, err)
	}
	switch {
	case u.Scheme != "https" && u.Scheme != "http", u.Port() == "", strings.Trim(u.Path, "/") != "", u.RawQuery != "", u.User != nil:
		return fmt.Errorf("etcd: endpoint %q: https://HOST:PORT is expected", endpoint)
	case u.Scheme == "http":
		if ip := net.ParseIP(u.Hostname()); u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return fmt.Errorf("etcd: endpoint %q: without TLS anybody on the network decides who may write: use https", endpoint)
		}
	}
	return nil
}

// tlsConfig reads the files.
func (c *Config) tlsConfig() (*tls.Config, error) {
	if c.CA == "" && c.Cert == "" {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, fmt.Errorf("etcd: who signs its certificates: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("etcd: %s has no certificate in PEM", c.CA)
		}
	}
	if c.Cert != "" {
		// Read for each handshake: renewed files are used without a restart.
		if _, err := tls.LoadX509KeyPair(c.Cert, c.Key); err != nil {
			return nil, fmt.Errorf("etcd: this node's certificate %s: %w", path.Base(c.Cert), err)
		}
		cert, key := c.Cert, c.Key
		t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cert, key)
			return &pair, err
		}
	}
	return t, nil
}

func (c *Config) attempt() time.Duration {
	if c.Attempt > 0 {
		return c.Attempt
	}
	return min(max(c.TTL/6, minAttempt), maxAttempt)
}
