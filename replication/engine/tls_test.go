package engine

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// A testCA signs certificates for tests.
type testCA struct {
	t    testing.TB
	dir  string
	path string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newTestCA(t testing.TB, name string) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &testCA{t: t, dir: t.TempDir(), key: key}
	ca.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca.cert, ca.cert, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	ca.path = filepath.Join(ca.dir, "ca.pem")
	ca.write(ca.path, "CERTIFICATE", der)
	return ca
}

func (ca *testCA) pool() *x509.CertPool {
	b, err := os.ReadFile(ca.path)
	if err != nil {
		ca.t.Fatal(err)
	}
	p := x509.NewCertPool()
	p.AppendCertsFromPEM(b)
	return p
}

func (ca *testCA) write(path, kind string, der []byte) {
	ca.t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		ca.t.Fatal(err)
	}
}

// node writes a certificate for a node, and its key; change makes it a wrong one.
func (ca *testCA) node(name, peer string, change func(*x509.Certificate)) *TLS {
	ca.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		ca.t.Fatal(err)
	}
	t := &TLS{
		Certificate: filepath.Join(ca.dir, name+".pem"), Key: filepath.Join(ca.dir, name+".key"), CA: ca.path,
		Names: []string{name}, PeerNames: []string{peer},
	}
	ca.write(t.Certificate, "CERTIFICATE", der)
	ca.write(t.Key, "PRIVATE KEY", secret)
	return t
}

// withTLS has both nodes of newPair use TLS.
func withTLS(ca *testCA) func(*Config) {
	return func(c *Config) { c.TLS = ca.node(c.Node, c.PeerName, nil) }
}

// Everything that a connection is for, over TLS: writes of all sizes under each
// protocol, authentication and digests on top, a verify that finds a damaged
// block, an outage and a crash that are resynced.
func TestTLSPairReplicates(t *testing.T) {
	for _, protocol := range []byte{'A', 'B', 'C'} {
		t.Run(string(protocol), func(t *testing.T) {
			ca := newTestCA(t, "test CA")
			a, b := syncedPair(t, func(c *Config) {
				withTLS(ca)(c)
				c.Net.Protocol, c.Net.VerifyAlg, c.Net.DataIntegrityAlg = protocol, "crc32c", "crc32c"
				c.Net.CramHMACAlg, c.Net.SharedSecret = "sha256", "not for the wire"
			})
			if s := a.Status().TLS; s == nil || s.Cipher == "" || s.Until.IsZero() || s.PeerUntil.IsZero() {
				t.Errorf("status shows %+v", s)
			}
			c := a.open()
			manyWrites(t, c, 400)
			for off := int64(0); off < 8<<20; off += 1 << 20 {
				c.write(off, pattern(uint64(off), 1<<20))
			}
			c.flush()
			damage(t, b, 77*4096+5)
			if err := a.Verify(0, 0, 0); err != nil {
				t.Fatal(err)
			}
			found := func(s Status) bool { v := s.volume(0); return v.Conn == drbd.Connected && v.OutOfSyncBytes == 4096 }
			a.await("end of the verify", found)
			b.await("end of the verify", found)
			if err := b.Disconnect(false); err != nil {
				t.Fatal(err)
			}
			manyWrites(t, c, 100)
			if err := b.Connect(ConnectOptions{}); err != nil {
				t.Fatal(err)
			}
			b.await("resync after the outage", inSync)
			a.await("resync after the outage", inSync)
			b.crash()
			manyWrites(t, c, 100)
			b.up()
			b.await("resync after the crash", inSync)
			a.await("resync after the crash", inSync)
			c.finish(b)
		})
	}
}

// A tap is a forwarder to a node's port that keeps what passes through it.
type tap struct {
	addr netip.AddrPort
	mu   sync.Mutex
	ways [][]byte // one per connection and direction, the dialler's first
}

func newTap(t *testing.T, to netip.AddrPort) *tap {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	x := &tap{addr: netip.MustParseAddrPort(ln.Addr().String())}
	go func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to.String())
			if err != nil {
				in.Close()
				continue
			}
			x.mu.Lock()
			n := len(x.ways)
			x.ways = append(x.ways, nil, nil)
			x.mu.Unlock()
			go x.pass(in.(*net.TCPConn), out.(*net.TCPConn), n)
			go x.pass(out.(*net.TCPConn), in.(*net.TCPConn), n+1)
		}
	}()
	return x
}

func (x *tap) pass(from, to *net.TCPConn, way int) {
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		x.mu.Lock()
		x.ways[way] = append(x.ways[way], b[:n]...)
		x.mu.Unlock()
		if _, werr := to.Write(b[:n]); err != nil || werr != nil {
			to.CloseWrite() //nolint:errcheck // it may be gone
			return
		}
	}
}

func (x *tap) seen() [][]byte {
	x.mu.Lock()
	defer x.mu.Unlock()
	return append([][]byte{}, x.ways...)
}

// On the wire there are TLS records from the first byte to the last and nothing
// of what a client wrote. Without TLS the same search finds it.
func TestTLSHidesTheData(t *testing.T) {
	for _, secret := range []bool{true, false} {
		t.Run(map[bool]string{true: "TLS", false: "plaintext"}[secret], func(t *testing.T) {
			ca := newTestCA(t, "test CA")
			a, b := newPair(t, func(c *Config) {
				if secret {
					withTLS(ca)(c)
				}
			})
			taps := []*tap{newTap(t, b.cfg.Local), newTap(t, a.cfg.Local)}
			a.cfg.Peer, b.cfg.Peer = taps[0].addr, taps[1].addr
			a.up()
			b.up()
			a.await("connection", isConnected)
			if err := a.Primary(true); err != nil {
				t.Fatal(err)
			}
			marker := []byte("what a client wrote, in plain sight ")
			c := a.open()
			c.write(0, bytes.Repeat(marker, 8192/len(marker)+1)[:8192])
			a.await("sync", inSync)
			found, bytesSeen := 0, 0
			for _, x := range taps {
				for i, way := range x.seen() {
					found += bytes.Count(way, marker)
					bytesSeen += len(way)
					if secret {
						checkRecords(t, way, i%2 == 0)
					}
				}
			}
			if bytesSeen < testSize*9/10 || secret != (found == 0) {
				t.Errorf("the marker is in %d places of %d bytes", found, bytesSeen)
			}
		})
	}
}

// checkRecords walks one direction of a connection, record by record; the last
// one may not be whole yet.
func checkRecords(t *testing.T, way []byte, dialler bool) {
	t.Helper()
	if dialler && len(way) > 0 && !startsTLS(way) {
		t.Fatalf("the dialler begins with % x", way[:min(len(way), 8)])
	}
	for off := 0; off+tlsHeader <= len(way); {
		h := way[off : off+tlsHeader]
		if h[0] < 20 || h[0] > 23 || h[1] != 3 {
			t.Fatalf("at byte %d there is no record but % x", off, h)
		}
		off += tlsHeader + (int(h[3])<<8 | int(h[4]))
	}
}

// A certificate that expires ends no connection; the next one needs a new one,
// and takes it from where the old one was.
func TestTLSOutlivesItsCertificate(t *testing.T) {
	ca := newTestCA(t, "test CA")
	var later atomic.Int64
	clock := func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	a, b := syncedPair(t, func(c *Config) {
		c.TLS = ca.node(c.Node, c.PeerName, func(x *x509.Certificate) { x.NotAfter = time.Now().Add(20 * time.Minute) })
		c.TLS.now = clock
	})
	later.Store(int64(30 * time.Minute))
	c := a.open()
	c.write(0, pattern(1, 1<<20))
	c.flush()
	if s := a.Status(); !inSync(s) {
		t.Fatalf("the connection did not go on: %+v", s)
	}
	if err := b.Disconnect(false); err != nil {
		t.Fatal(err)
	}
	if err := b.Connect(ConnectOptions{}); err != nil {
		t.Fatal(err)
	}
	b.awaitError(`TLS: (this node's certificate \S+ has expired on .*|the certificate of peer alpha has expired on .*)`)
	c.write(1<<20, pattern(2, 1<<20))
	for _, name := range []string{"alpha", "beta"} {
		ca.node(name, "", nil)
	}
	a.await("resync with new certificates", inSync)
	b.await("resync with new certificates", inSync)
	c.finish(b)
}

// TLS is switched on while both nodes are connected: one after the other they
// take it over, and what was written in between is resynced.
func TestTLSIsSwitchedOn(t *testing.T) {
	ca := newTestCA(t, "test CA")
	a, b := syncedPair(t, nil)
	c := a.open()
	for _, n := range []*node{a, b} {
		cfg := n.cfg
		cfg.TLS = ca.node(cfg.Node, cfg.PeerName, nil)
		if err := n.Reconfigure(cfg); err != nil {
			t.Fatal(err)
		}
		if s := n.Status(); s.Conn != drbd.StandAlone || s.TLS == nil {
			t.Fatalf("%s is %v with %+v", cfg.Node, s.Conn, s.TLS)
		}
		if err := n.Connect(ConnectOptions{}); err != nil { // as adjust does
			t.Fatal(err)
		}
		if n == a {
			b.awaitError(`TLS: peer alpha speaks TLS: net option tls has to be set on both nodes`)
			c.write(0, pattern(1, 1<<20))
		}
	}
	a.await("resync", inSync)
	b.await("resync", inSync)
	if s := b.Status().TLS; s == nil || s.Cipher == "" {
		t.Errorf("status shows %+v", s)
	}
	c.finish(b)
}

// Both nodes look for one another at the same time, again and again: crossing
// connections end as they do without TLS, with one pair of sockets on both.
func TestTLSReconnects(t *testing.T) {
	ca := newTestCA(t, "test CA")
	a, b := syncedPair(t, func(c *Config) { withTLS(ca)(c); c.Net.SockCheckMS = 50 })
	c := a.open()
	for i := range 12 {
		if err := a.Disconnect(true); err != nil {
			t.Fatal(err)
		}
		if err := b.Disconnect(true); err != nil {
			t.Fatal(err)
		}
		c.write(int64(i)<<16, pattern(uint64(i), 1<<16))
		var wg sync.WaitGroup
		for _, n := range []*node{a, b} {
			wg.Go(func() {
				if err := n.Connect(ConnectOptions{}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		a.await("connection", inSync)
		b.await("connection", inSync)
	}
	c.finish(b)
}
