package control

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/pollux-project/pollux/conf"
)

// Certificates of a cluster do not run out while it lives, and their time is not
// looked at between nodes: a host that boots with its clock in 1970 must find its
// peers. Who may speak is who is in cluster.toml, with its key. etcd, which gets
// the same files, looks at the time.
var (
	notBefore = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	notAfter  = time.Date(2120, 1, 1, 0, 0, 0, 0, time.UTC)
)

// uriScheme begins the URI in a certificate that says whose it is:
// pollux://CLUSTER-ID/NODE.
const uriScheme = "pollux"

// ForeignError is a peer of another cluster.
type ForeignError struct {
	Cluster string // as its certificate says; nobody we trust has signed that
	ID      string
	Node    string
	Same    bool // its name is this cluster's
}

func (e *ForeignError) Error() string {
	if e.Same {
		return fmt.Sprintf("node %q belongs to another cluster that is called %q as well (id %s): two clusters share this network, or one was made twice: make one node leave its cluster, then join with a token of the other", e.Node, e.Cluster, e.ID)
	}
	return fmt.Sprintf("node %q belongs to another cluster, %q (id %s): correct the address in cluster.toml", e.Node, e.Cluster, e.ID)
}

// Fingerprint is "sha256:" and the digits of a digest, of a certificate's bytes or
// of a public key's.
func Fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// newKey makes a private key and its PEM.
func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	text, err := keyPEM(key)
	return key, text, err
}

func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func serialNumber() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return n, nil
}

// An authority signs the certificates of one cluster.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newAuthority makes the CA of a cluster; id tells it from others of its name.
func newAuthority(name, id string) (*authority, error) {
	key, _, err := newKey()
	if err != nil {
		return nil, err
	}
	n, err := serialNumber()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: n,
		Subject:      pkix.Name{CommonName: name, Organization: []string{"Pollux cluster " + id}},
		NotBefore:    notBefore, NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make the certificate of the cluster's CA: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read the certificate of the cluster's CA: %w", err)
	}
	return &authority{cert: cert, key: key}, nil
}

// issue signs the certificate of a node: for its name, its addresses and this
// host's own, as etcd connects by address.
func (a *authority) issue(c *conf.Cluster, node string, links []netip.AddrPort, public any) ([]byte, error) {
	n, err := serialNumber()
	if err != nil {
		return nil, err
	}
	ips := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	for _, l := range links {
		ips = append(ips, net.IP(l.Addr().Unmap().AsSlice()))
	}
	template := &x509.Certificate{
		SerialNumber: n,
		Subject:      pkix.Name{CommonName: node, Organization: []string{c.Name}},
		NotBefore:    notBefore, NotAfter: notAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{node, "localhost"},
		IPAddresses: ips,
		URIs:        []*url.URL{{Scheme: uriScheme, Host: c.ID, Path: "/" + node}},

		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %s: %w", node, err)
	}
	return der, nil
}

// whose reads from a certificate of which cluster and node it is; that means
// something once its signature was looked at.
func whose(leaf *x509.Certificate) (id, node string) {
	for _, u := range leaf.URIs {
		if u.Scheme == uriScheme {
			return u.Host, strings.TrimPrefix(u.Path, "/")
		}
	}
	return "", ""
}

// Identity is who this node is: its certificate, and the CA that signs those of
// all nodes of its cluster. It does not change.
type Identity struct {
	Node        string
	ClusterID   string
	ClusterName string
	PublicKey   string // fingerprint of the certificate's key
	CA          []byte // in PEM

	own  tls.Certificate
	ca   *x509.Certificate
	root *x509.CertPool
	sign *ecdsa.PrivateKey // the CA's; nil on a node that admits nobody
}

// newIdentity puts the parts together, in PEM; caKey may be nil.
func newIdentity(ca, caKey, cert, key []byte) (*Identity, error) {
	block, _ := pem.Decode(ca)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("the CA's file does not begin with a certificate in PEM")
	}
	caCert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the CA's certificate: %w", err)
	}
	own, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("the node's certificate and key: %w", err)
	}
	id, node := whose(own.Leaf)
	if id == "" || node == "" {
		return nil, errors.New("the node's certificate was not made by Pollux: it names no cluster")
	}
	own.Certificate = [][]byte{own.Leaf.Raw, caCert.Raw} // who joins compares the CA with its token
	i := &Identity{
		Node: node, ClusterID: id, ClusterName: caCert.Subject.CommonName,
		PublicKey: Fingerprint(own.Leaf.RawSubjectPublicKeyInfo), CA: certPEM(caCert.Raw),
		own: own, ca: caCert, root: x509.NewCertPool(),
	}
	i.root.AddCert(caCert)
	if err := i.signed(own.Leaf); err != nil {
		return nil, fmt.Errorf("the node's certificate: %w", err)
	}
	if len(caKey) > 0 {
		if i.sign, err = parseKey(caKey); err != nil {
			return nil, fmt.Errorf("the CA's key: %w", err)
		}
		if !i.sign.PublicKey.Equal(caCert.PublicKey) {
			return nil, errors.New("the CA's key is not that of its certificate")
		}
	}
	return i, nil
}

func parseKey(text []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no private key in PEM")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("a key of type %T, expected ECDSA", k)
	}
	return key, nil
}

// Names returns for whom a certificate is that one of roots has signed: the node
// that a cluster's CA has signed it for (id is the cluster's then, and the time is
// not looked at), or the names in a certificate of somebody else's CA.
func Names(roots *x509.CertPool, certs []*x509.Certificate) (id string, names []string, err error) {
	if len(certs) == 0 {
		return "", nil, errors.New("it shows no certificate")
	}
	leaf := certs[0]
	opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, more := range certs[1:] {
		opts.Intermediates.AddCert(more)
	}
	id, node := whose(leaf)
	if id != "" {
		opts.CurrentTime = notBefore.AddDate(1, 0, 0)
	}
	if _, err := leaf.Verify(opts); err != nil {
		return "", nil, err
	}
	if id != "" {
		return id, []string{node}, nil
	}
	return "", append([]string{leaf.Subject.CommonName}, leaf.DNSNames...), nil
}

// SelfSigned makes a certificate and its key, in PEM, for a server that clients
// know by its fingerprint.
func SelfSigned(name string) (cert, key []byte, err error) {
	private, key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	n, err := serialNumber()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: n, Subject: pkix.Name{CommonName: name}, NotBefore: notBefore, NotAfter: notAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{name}, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return nil, nil, fmt.Errorf("sign a certificate: %w", err)
	}
	return certPEM(der), key, nil
}

// signed says whether the cluster's CA has signed a certificate, whatever the time.
func (i *Identity) signed(leaf *x509.Certificate) error {
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: i.root, CurrentTime: notBefore.AddDate(1, 0, 0), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err
}

// peer returns the node that a certificate is for, if it is a member.
func (i *Identity) peer(c *conf.Cluster, certs []*x509.Certificate) (*conf.ClusterNode, error) {
	if len(certs) == 0 {
		return nil, errors.New("it shows no certificate")
	}
	leaf := certs[0]
	id, node := whose(leaf)
	if err := i.signed(leaf); err != nil {
		if id != "" && id != i.ClusterID {
			name := ""
			if len(leaf.Subject.Organization) > 0 {
				name = leaf.Subject.Organization[0]
			}
			return nil, &ForeignError{Cluster: printable(name), ID: printable(id), Node: printable(node), Same: name == i.ClusterName}
		}
		return nil, fmt.Errorf("its certificate is not signed by the CA of cluster %q: %w", i.ClusterName, err)
	}
	n := c.Node(node)
	switch {
	case id != i.ClusterID || n == nil || n.Name != node:
		return nil, fmt.Errorf("node %q is no member of cluster %q any more, or not yet", node, i.ClusterName)
	case n.PublicKey != "" && n.PublicKey != Fingerprint(leaf.RawSubjectPublicKeyInfo):
		return nil, fmt.Errorf("its certificate is for node %q, with another key than the one that joined: switch the old machine of this name off, or have it leave", node)
	}
	return n, nil
}

// printable makes of a stranger's words something for a log.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r > 0x7e {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), 64)]
}

// Protocols of TLS's ALPN: nodes among themselves, and who wants to become one.
const (
	alpnNode = "pollux-ha"
	alpnJoin = "pollux-join"
)

// config is TLS 1.3 and nothing else. The handshake proves that the peer has the
// key of the certificate that it shows; whose that is, peer finds out before
// anything is said. Nothing is resumed: each connection is looked at with the
// members as they are.
func (i *Identity) config(alpn string) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{i.own},
		MinVersion:   tls.VersionTLS13, MaxVersion: tls.VersionTLS13,
		ClientAuth:             tls.RequireAnyClientCert,
		InsecureSkipVerify:     true, // see above
		NextProtos:             []string{alpn},
		SessionTicketsDisabled: true,
	}
}

// TLSCertificate returns this node's certificate with its key, for programs of
// this node that show it elsewhere (to a witness, to etcd).
func (i *Identity) TLSCertificate() tls.Certificate { return i.own }

// Admits reports whether this node can sign the certificates of new ones.
func (i *Identity) Admits() bool { return i.sign != nil }

func (i *Identity) authority() *authority { return &authority{cert: i.ca, key: i.sign} }
