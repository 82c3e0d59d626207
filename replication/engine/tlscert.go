package engine

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// TLS is what the connection of a resource with net option tls takes: files in
// PEM, read anew for each socket, so that a renewed certificate is taken up
// without a word, and names.
type TLS struct {
	Certificate string // of this node, intermediate ones behind it
	Key         string // its private key, for the owner's eyes only
	CA          string // who signs the certificates of both nodes
	// A certificate has to carry one of these as a DNS name, or, if it looks
	// like one, as an IP address.
	Names, PeerNames []string

	now func() time.Time // nil: time.Now; tests have time pass
}

func (t *TLS) clock() time.Time {
	if t.now != nil {
		return t.now()
	}
	return time.Now()
}

// A tlsError is why there is no TLS with the peer, in one sentence. Connecting
// goes on: a certificate is renewed, a clock is set, the other node's
// configuration follows, and all that without a word to this node.
type tlsError struct {
	text string
	lost bool // the peer said nothing
}

func (e *tlsError) Error() string { return tlsPrefix + e.text }

// tlsPrefix begins each sentence about TLS.
const tlsPrefix = "TLS: "

func tlsErrorf(format string, args ...any) error {
	return &tlsError{text: fmt.Sprintf(format, args...)}
}

// credentials are the files of a TLS, as they were a moment ago.
type credentials struct {
	of   *TLS
	own  tls.Certificate
	root *x509.CertPool
	// What the peer will find wrong with this node's certificate, or nil.
	ownFault error
}

// maxPEM bounds a file; a chain with large keys is some KiB.
const maxPEM = 1 << 20

// load reads the files. The error is a *tlsError.
func (t *TLS) load() (*credentials, error) {
	cert, err := readPEM("certificate", t.Certificate, false)
	if err != nil {
		return nil, err
	}
	key, err := readPEM("key", t.Key, true)
	if err != nil {
		return nil, err
	}
	ca, err := readPEM("ca", t.CA, false)
	if err != nil {
		return nil, err
	}
	c := &credentials{of: t, root: x509.NewCertPool()}
	if !c.root.AppendCertsFromPEM(ca) {
		return nil, tlsErrorf("ca file %s holds no certificate in PEM: [tls] of pollux.toml names it", t.CA)
	}
	if b, _ := pem.Decode(cert); b == nil || b.Type != "CERTIFICATE" {
		return nil, tlsErrorf("certificate file %s does not begin with a certificate in PEM: [tls] of pollux.toml names it", t.Certificate)
	}
	if b, _ := pem.Decode(key); b == nil {
		return nil, tlsErrorf("key file %s holds no private key in PEM: [tls] of pollux.toml names it", t.Key)
	}
	if c.own, err = tls.X509KeyPair(cert, key); err != nil {
		if strings.Contains(err.Error(), "does not match") { // crypto/tls has no name for it
			return nil, tlsErrorf("the key in %s is not that of the certificate in %s: put the two that belong together there", t.Key, t.Certificate)
		}
		return nil, tlsErrorf("certificate %s with key %s: %v: a key without passphrase is needed", t.Certificate, t.Key, err)
	}
	c.ownFault = c.verify("this node's certificate "+t.Certificate, c.own.Leaf, c.own.Certificate[1:], t.Names, "")
	return c, nil
}

// readPEM reads a file; one that is secret must be closed to others.
func readPEM(what, path string, secret bool) ([]byte, error) {
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, tlsErrorf("%s file %s does not exist: put it there, or correct [tls] in pollux.toml", what, path)
	case err != nil:
		return nil, tlsErrorf("%s file: %v", what, err)
	case !fi.Mode().IsRegular():
		return nil, tlsErrorf("%s file %s is not a file: correct [tls] in pollux.toml", what, path)
	case secret && fi.Mode().Perm()&0o077 != 0:
		return nil, tlsErrorf("%s file %s can be read by others (mode %04o): run `chmod 600 %s`", what, path, fi.Mode().Perm(), path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, tlsErrorf("%s file: %v", what, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPEM))
	if err != nil {
		return nil, tlsErrorf("%s file: %v", what, err)
	}
	return b, nil
}

// config is TLS 1.3 and nothing else. Both ends show a certificate and are
// looked at alike, whichever of the two dialled. Nothing is resumed: a
// connection lasts for weeks, and each one checks the certificates as they are.
func (c *credentials) config(peer string) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{c.own},
		MinVersion:   tls.VersionTLS13, MaxVersion: tls.VersionTLS13,
		ClientAuth:                  tls.RequireAnyClientCert,
		InsecureSkipVerify:          true, // VerifyConnection does it, for client and server
		VerifyConnection:            func(s tls.ConnectionState) error { return c.verifyPeer(s, peer) },
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
	}
}

func (c *credentials) verifyPeer(s tls.ConnectionState, peer string) error {
	if len(s.PeerCertificates) == 0 {
		return errNoCertificate(peer)
	}
	leaf, rest := s.PeerCertificates[0], [][]byte{}
	for _, more := range s.PeerCertificates[1:] {
		rest = append(rest, more.Raw)
	}
	return c.verify("the certificate of peer "+peer, leaf, rest, c.of.PeerNames, " on "+peer)
}

func errNoCertificate(peer string) error {
	return tlsErrorf("peer %s shows no certificate: [tls] of its pollux.toml has to name one", peer)
}

// verify says what is wrong with a certificate: its issuer, its time, what it
// may be used for, its name. where tells on which node it is mended.
func (c *credentials) verify(what string, leaf *x509.Certificate, rest [][]byte, names []string, where string) error {
	opts := x509.VerifyOptions{Roots: c.root, Intermediates: x509.NewCertPool(), CurrentTime: c.of.clock()}
	for _, der := range rest {
		if more, err := x509.ParseCertificate(der); err == nil {
			opts.Intermediates.AddCert(more)
		}
	}
	// Each node is client of one socket and server of the other, or of both.
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		opts.KeyUsages = []x509.ExtKeyUsage{usage}
		if _, err := leaf.Verify(opts); err != nil {
			return c.explainChain(what, leaf, err, where)
		}
	}
	for _, name := range names {
		if leaf.VerifyHostname(name) == nil {
			return nil
		}
	}
	return tlsErrorf("%s is for %s, and not for %s, the name in its \"on\" section: have one signed with that name in subjectAltName",
		what, namesOf(leaf), strings.Join(names, " or "))
}

func namesOf(leaf *x509.Certificate) string {
	names := append([]string{}, leaf.DNSNames...)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 {
		return "no name at all"
	}
	return strings.Join(names, ", ")
}

// explainChain has a sentence for each way in which crypto/x509 refuses one.
func (c *credentials) explainChain(what string, leaf *x509.Certificate, err error, where string) error {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return tlsErrorf("%s is signed by %q, whom ca file %s does not have: both nodes need certificates of one CA, and its own in that file",
			what, leaf.Issuer, c.of.CA)
	case !errors.As(err, &invalid):
		return tlsErrorf("%s: %v", what, err)
	}
	if invalid.Cert != nil && !invalid.Cert.Equal(leaf) {
		what = fmt.Sprintf("the CA's certificate %q, which signs %s,", invalid.Cert.Subject, what)
		leaf = invalid.Cert
	}
	switch {
	case invalid.Reason == x509.Expired && c.of.clock().Before(leaf.NotBefore):
		return tlsErrorf("%s is not valid before %s: compare the clocks of both nodes, or renew it%s", what, stamp(leaf.NotBefore), where)
	case invalid.Reason == x509.Expired:
		return tlsErrorf("%s has expired on %s: renew it%s", what, stamp(leaf.NotAfter), where)
	case invalid.Reason == x509.IncompatibleUsage:
		return tlsErrorf("%s is not for both ends of TLS: have it signed with extendedKeyUsage serverAuth and clientAuth", what)
	}
	return tlsErrorf("%s: %v", what, err)
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// explain turns the end of a handshake, or of a connection that had hardly
// begun, into one sentence.
func (c *credentials) explain(err error, peer string) error {
	var ours *tlsError
	var header tls.RecordHeaderError
	var op *net.OpError
	switch {
	case errors.As(err, &ours):
		return ours
	case errors.As(err, &header):
		return tlsErrorf("peer %s speaks no TLS: net option tls has to be set on both nodes", peer)
	case strings.Contains(err.Error(), "didn't provide a certificate"): // crypto/tls has no name for it
		return errNoCertificate(peer)
	case errors.As(err, &op) && op.Op == "remote error":
		return c.explainAlert(strings.TrimPrefix(op.Err.Error(), "tls: "), peer)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &tlsError{fmt.Sprintf("peer %s did not finish the handshake in time", peer), true}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return &tlsError{fmt.Sprintf("peer %s ended the handshake without a word: its net option tls is not set, or its log says more", peer), true}
	}
	return tlsErrorf("handshake with peer %s: %v", peer, err)
}

// explainAlert is for what the peer says of this node.
func (c *credentials) explainAlert(alert, peer string) error {
	switch {
	case !strings.Contains(alert, "certificate"):
		return tlsErrorf("peer %s ends TLS with the alert %q: its log says more", peer, alert)
	case c.ownFault != nil:
		return tlsErrorf("%s (peer %s refuses it)", strings.TrimPrefix(c.ownFault.Error(), tlsPrefix), peer)
	}
	return tlsErrorf("peer %s refuses this node's certificate %s with the alert %q: its log says why", peer, c.of.Certificate, alert)
}
