package engine

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
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

func TestTLSPairConnects(t *testing.T) {
	a, b := syncedPair(t, withTLS(newTestCA(t, "test CA")))
	a.await("sync", inSync)
	b.await("sync", inSync)
}
