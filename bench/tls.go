package bench

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// certificateTime is how long the certificates of a benchmark last.
const certificateTime = 24 * time.Hour

// makeCertificates writes ca.pem, and a certificate and a key for each node,
// to dir.
func makeCertificates(dir string, nodes []string) error {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("key of the CA: %w", err)
	}
	ca := certificate(1, "pollux-bench CA")
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	if err := sign(filepath.Join(dir, "ca.pem"), ca, ca, &caKey.PublicKey, caKey); err != nil {
		return err
	}
	for i, node := range nodes {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return fmt.Errorf("key of node %s: %w", node, err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return fmt.Errorf("key of node %s: %w", node, err)
		}
		if err := writePEM(filepath.Join(dir, node+".key"), "PRIVATE KEY", der); err != nil {
			return err
		}
		c := certificate(int64(i)+2, node)
		c.DNSNames, c.KeyUsage = []string{node}, x509.KeyUsageDigitalSignature
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		if err := sign(filepath.Join(dir, node+".pem"), c, ca, &key.PublicKey, caKey); err != nil {
			return err
		}
	}
	return nil
}

func certificate(serial int64, name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(certificateTime),
	}
}

func sign(path string, c, ca *x509.Certificate, of *ecdsa.PublicKey, by *ecdsa.PrivateKey) error {
	der, err := x509.CreateCertificate(rand.Reader, c, ca, of, by)
	if err != nil {
		return fmt.Errorf("certificate %s: %w", path, err)
	}
	return writePEM(path, "CERTIFICATE", der)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
