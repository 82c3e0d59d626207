package etcd_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/etcd"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/etcd/embedded"
)

// Ticks of the members under test: the shortest with which etcd grants a TTL of 1 s.
const (
	heartbeat = 50 * time.Millisecond
	election  = 500 * time.Millisecond
	ttl       = time.Second
	limit     = time.Minute
)

// certs makes a CA and one certificate for 127.0.0.1, and returns the files.
func certs(t testing.TB) (ca, cert, key string) {
	t.Helper()
	dir := t.TempDir()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, template, template, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	nodeKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "node"}, NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, template, nodeKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(nodeKey)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	return write("ca.pem", "CERTIFICATE", caDER), write("cert.pem", "CERTIFICATE", der), write("key.pem", "EC PRIVATE KEY", keyDER)
}

// freeURL returns a URL of 127.0.0.1 with a port that is free now.
func freeURL(t testing.TB, scheme string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return scheme + "://" + l.Addr().String()
}

// cluster is members m0, m1, … in this process.
type cluster struct {
	configs []embedded.Config
	members []*embedded.Member // nil: not running
}

// newCluster describes n voters of a new cluster.
func newCluster(t testing.TB, n int, isTLS bool) *cluster {
	t.Helper()
	c := &cluster{members: make([]*embedded.Member, n)}
	scheme := "http"
	var ca, cert, key string
	if isTLS {
		scheme = "https"
		ca, cert, key = certs(t)
	}
	voters := map[string]string{}
	for i := range n {
		cfg := embedded.Config{
			Name: fmt.Sprintf("m%d", i), Dir: t.TempDir(), Cluster: "test", Voters: voters,
			PeerURL: freeURL(t, scheme), ClientURL: freeURL(t, scheme), CA: ca, Cert: cert, Key: key,
			Heartbeat: heartbeat, Election: election,
		}
		voters[cfg.Name] = cfg.PeerURL
		c.configs = append(c.configs, cfg)
	}
	t.Cleanup(func() {
		for i := range c.members {
			c.kill(t, i)
		}
	})
	return c
}

func (c *cluster) start(t testing.TB, which ...int) {
	t.Helper()
	for _, i := range which {
		m, err := embedded.Start(c.configs[i])
		if err != nil {
			t.Fatal(err)
		}
		c.members[i] = m
	}
}

func (c *cluster) ready(t testing.TB, which ...int) {
	t.Helper()
	for _, i := range which {
		select {
		case <-c.members[i].Ready():
		case <-time.After(limit):
			t.Fatalf("member %d isn't ready", i)
		}
	}
}

func (c *cluster) kill(t testing.TB, i int) {
	t.Helper()
	if m := c.members[i]; m != nil {
		c.members[i] = nil
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}

// client is the configuration of an arbiter with all members as endpoints.
func (c *cluster) client(node string) etcd.Config {
	cfg := etcd.Config{Cluster: "c", Node: node, TTL: ttl, CA: c.configs[0].CA, Cert: c.configs[0].Cert, Key: c.configs[0].Key}
	for _, m := range c.configs {
		cfg.Endpoints = append(cfg.Endpoints, m.ClientURL)
	}
	return cfg
}

func open(t testing.TB, cfg etcd.Config) *etcd.Arbiter {
	t.Helper()
	a, err := etcd.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// cable is a way to a member that can be cut: then bytes stay where they are, as
// behind a switch that has lost power.
type cable struct {
	listener net.Listener
	to       string

	mu    sync.Mutex
	isCut bool
	conns []net.Conn
}

func newCable(t testing.TB, to string) *cable {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{listener: l, to: to}
	go c.serve()
	t.Cleanup(func() {
		l.Close()
		c.mend() // ends the connections
	})
	return c
}

func (c *cable) serve() {
	for {
		in, err := c.listener.Accept()
		if err != nil {
			return
		}
		c.mu.Lock()
		c.conns = append(c.conns, in)
		isCut := c.isCut
		c.mu.Unlock()
		if isCut {
			continue // it is never answered
		}
		out, err := net.Dial("tcp", c.to)
		if err != nil {
			in.Close()
			continue
		}
		c.mu.Lock()
		c.conns = append(c.conns, out)
		c.mu.Unlock()
		go c.copy(out, in)
		go c.copy(in, out)
	}
}

func (c *cable) copy(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		c.mu.Lock()
		isCut := c.isCut
		c.mu.Unlock()
		if isCut {
			_, _ = io.Copy(io.Discard, from) // lost on the way; ends when the cable is mended
			return
		}
		if err != nil {
			to.Close()
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			from.Close()
			return
		}
	}
}

func (c *cable) cut() {
	c.mu.Lock()
	c.isCut = true
	c.mu.Unlock()
}

// mend lets new connections through; the old ones are gone.
func (c *cable) mend() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.isCut = false
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns = nil
}

func background(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}
