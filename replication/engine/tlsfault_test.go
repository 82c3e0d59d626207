package engine

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// logLines keeps what a node logs.
type logLines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// awaitError waits until status says why there is no connection, as want has it.
func (n *node) awaitError(want string) {
	n.t.Helper()
	match := regexp.MustCompile("^" + want + "$")
	n.await("the error "+want, func(s Status) bool { return match.MatchString(s.LastError) })
}

// Everything that can be wrong with certificates gets one sentence on each
// node, in status and log; both go on trying, and once it is mended they are
// connected without a command.
func TestTLSFaults(t *testing.T) {
	const date = `\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC`
	past := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = c.NotBefore.Add(-time.Hour), time.Now().Add(-time.Minute)
	}
	future := func(c *x509.Certificate) { c.NotBefore = time.Now().Add(30 * time.Minute) }
	// Each spoils beta; alpha is right. A sentence about this node's own
	// certificate names the file.
	own := func(text string) string { return `TLS: this node's certificate \S+/beta\.pem ` + text }
	for _, tt := range []struct {
		name        string
		spoil       func(t *testing.T, ca *testCA, beta *TLS)
		alpha, beta string // what status says
	}{
		{
			"expired", func(_ *testing.T, ca *testCA, _ *TLS) { ca.node("beta", "alpha", past) },
			`TLS: the certificate of peer beta has expired on ` + date + `: renew it on beta`,
			own(`has expired on ` + date + `: renew it \(peer alpha refuses it\)`),
		},
		{
			"not yet valid", func(_ *testing.T, ca *testCA, _ *TLS) { ca.node("beta", "alpha", future) },
			`TLS: the certificate of peer beta is not valid before ` + date + `: compare the clocks of both nodes, or renew it on beta`,
			own(`is not valid before ` + date + `: compare the clocks of both nodes, or renew it \(peer alpha refuses it\)`),
		},
		{
			"wrong name", func(_ *testing.T, ca *testCA, _ *TLS) {
				ca.node("beta", "alpha", func(c *x509.Certificate) { c.DNSNames = []string{"gamma"} })
			},
			`TLS: the certificate of peer beta is for gamma, and not for beta, the name in its "on" section: have one signed with that name in subjectAltName`,
			own(`is for gamma, and not for beta, the name in its "on" section: have one signed with that name in subjectAltName \(peer alpha refuses it\)`),
		},
		{
			"name in the subject only", func(_ *testing.T, ca *testCA, _ *TLS) {
				ca.node("beta", "alpha", func(c *x509.Certificate) { c.DNSNames = nil })
			},
			`TLS: the certificate of peer beta is for no name at all, and not for beta, .*`,
			own(`is for no name at all, and not for beta, .*`),
		},
		{
			"server only", func(_ *testing.T, ca *testCA, _ *TLS) {
				ca.node("beta", "alpha", func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] })
			},
			`TLS: the certificate of peer beta is not for both ends of TLS: have it signed with extendedKeyUsage serverAuth and clientAuth`,
			own(`is not for both ends of TLS: have it signed with extendedKeyUsage serverAuth and clientAuth \(peer alpha refuses it\)`),
		},
		{
			"unknown CA", func(t *testing.T, _ *testCA, beta *TLS) {
				other := newTestCA(t, "other CA")
				copyFile(t, other.node("beta", "alpha", nil).Certificate, beta.Certificate)
				copyFile(t, other.dir+"/beta.key", beta.Key)
			},
			`TLS: the certificate of peer beta is signed by "CN=other CA", whom ca file \S+/ca\.pem does not have: both nodes need certificates of one CA, and its own in that file`,
			own(`is signed by "CN=other CA", whom ca file \S+/ca\.pem does not have: .* \(peer alpha refuses it\)`),
		},
		{
			"another CA on one node", func(t *testing.T, _ *testCA, beta *TLS) {
				other := newTestCA(t, "other CA")
				copyFile(t, other.node("beta", "alpha", nil).Certificate, beta.Certificate)
				copyFile(t, other.dir+"/beta.key", beta.Key)
				copyFile(t, other.path, beta.CA+".beta")
				beta.CA += ".beta"
			},
			`TLS: (the certificate of peer beta is signed by "CN=other CA".*|peer beta refuses this node's certificate \S+/alpha\.pem with the alert "bad certificate": its log says why)`,
			`TLS: (the certificate of peer alpha is signed by "CN=test CA".*|peer alpha refuses this node's certificate \S+/beta\.pem with the alert "bad certificate": its log says why)`,
		},
		{
			"key of another certificate", func(t *testing.T, ca *testCA, beta *TLS) { copyFile(t, ca.dir+"/alpha.key", beta.Key) },
			`TLS: peer beta ended the handshake without a word: its net option tls is not set, or its log says more`,
			`TLS: the key in \S+/beta\.key is not that of the certificate in \S+/beta\.pem: put the two that belong together there`,
		},
		{
			"missing certificate", func(t *testing.T, _ *testCA, beta *TLS) { os.Remove(beta.Certificate) },
			`TLS: peer beta ended the handshake without a word: .*`,
			`TLS: certificate file \S+/beta\.pem does not exist: put it there, or correct \[tls\] in pollux\.toml`,
		},
		{
			"key that others read", func(t *testing.T, _ *testCA, beta *TLS) { chmod(t, beta.Key, 0o640) },
			`TLS: peer beta ended the handshake without a word: .*`,
			`TLS: key file (\S+/beta\.key) can be read by others \(mode 0640\): run .chmod 600 \S+/beta\.key.`,
		},
		{
			"no PEM", func(t *testing.T, _ *testCA, beta *TLS) { writeFile(t, beta.Certificate, "nonsense") },
			`TLS: peer beta ended the handshake without a word: .*`,
			`TLS: certificate file \S+/beta\.pem does not begin with a certificate in PEM: \[tls\] of pollux\.toml names it`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ca := newTestCA(t, "test CA")
			logs := map[string]*logLines{"alpha": {}, "beta": {}}
			a, b := newPair(t, func(c *Config) {
				withTLS(ca)(c)
				c.Log = zerolog.New(logs[c.Node])
			})
			tt.spoil(t, ca, b.cfg.TLS)
			a.up()
			b.up()
			a.awaitError(tt.alpha)
			b.awaitError(tt.beta)
			for n, want := range map[string]string{"alpha": tt.alpha, "beta": tt.beta} {
				found := regexp.MustCompile(`"message":"connect: `+strings.NewReplacer(`"`, `\\"`).Replace(want)+`; connecting goes on"`).FindAllString(logs[n].String(), -1)
				if len(found) != 1 && !strings.Contains(want, "|") {
					t.Errorf("%s logged it %d times, want once:\n%s", n, len(found), logs[n])
				}
			}
			os.Remove(b.cfg.TLS.Key)      // with its mode
			ca.node("beta", "alpha", nil) // renewed, in its place
			if strings.HasSuffix(b.cfg.TLS.CA, ".beta") {
				copyFile(t, ca.path, b.cfg.TLS.CA)
			}
			a.await("connection", isConnected)
		})
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, to, string(b))
}

func writeFile(t *testing.T, to, text string) {
	t.Helper()
	if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func chmod(t *testing.T, name string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
}

// A node with TLS and one without: each says so, and nothing of DRBD is read.
func TestTLSMeetsPlaintext(t *testing.T) {
	for _, with := range []string{"alpha", "beta"} {
		t.Run(with, func(t *testing.T) {
			ca := newTestCA(t, "test CA")
			logs := map[string]*logLines{"alpha": {}, "beta": {}}
			a, b := newPair(t, func(c *Config) {
				if c.Node == with {
					withTLS(ca)(c)
				}
				c.Log = zerolog.New(logs[c.Node])
			})
			a.up()
			b.up()
			if with == "beta" {
				a, b = b, a
			}
			a.awaitError(`TLS: peer ` + b.cfg.Node + ` (speaks no TLS: net option tls has to be set on both nodes|ended the handshake without a word: its net option tls is not set, or its log says more)`)
			b.awaitError(`TLS: peer ` + a.cfg.Node + ` speaks TLS: net option tls has to be set on both nodes`)
			for n, l := range logs {
				if strings.Contains(l.String(), "first packet") {
					t.Errorf("%s took what it got for DRBD: %s", n, l)
				}
			}
		})
	}
}

// Whoever connects to a node from the peer's address, is refused and stays does
// not keep it from the peer: the connection begins at once.
func TestTLSRefusedDoesNotHoldUp(t *testing.T) {
	ca := newTestCA(t, "test CA")
	logs := new(logLines)
	a, b := newPair(t, func(c *Config) {
		withTLS(ca)(c)
		c.Log = zerolog.New(logs)
		c.Net.PingTimeoutMS, c.Net.SockCheckMS = 15000, 100
	}) // a handshake may take 60 s
	a.up()
	for range 4 {
		c := a.dial()
		defer c.Close()
		if _, err := c.Write([]byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
	}
	a.awaitLog(logs, `TLS: peer beta speaks no TLS: net option tls has to be set on both nodes`)
	b.up()
	b.await("connection", isConnected) // within 20 s
}

// dial connects to the node's replication port as soon as it listens.
func (n *node) dial() net.Conn {
	n.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		c, err := net.Dial("tcp", n.cfg.Local.String())
		if err == nil {
			return c
		}
		if time.Now().After(deadline) {
			n.t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond) // it begins to listen on a goroutine of its own
	}
}

// awaitLog waits for a message; status has the latest reason only, which may be
// that nobody answers.
func (n *node) awaitLog(logs *logLines, want string) {
	n.t.Helper()
	match := regexp.MustCompile(`"message":"connect: ` + want + `; connecting goes on"`)
	n.await("the message "+want, func(Status) bool { return match.MatchString(logs.String()) })
}

// Clients from the peer's address that bring no certificate, or an older TLS.
func TestTLSRefusesClients(t *testing.T) {
	ca := newTestCA(t, "test CA")
	for _, tt := range []struct {
		name, here, there string
		newest            uint16
	}{
		{
			"without a certificate", `TLS: peer beta shows no certificate: \[tls\] of its pollux\.toml has to name one`,
			"certificate required", tls.VersionTLS13,
		},
		{
			"TLS 1.2", `TLS: handshake with peer beta: .*unsupported versions.*`,
			"protocol version not supported", tls.VersionTLS12,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			logs := new(logLines)
			a, _ := newPair(t, func(c *Config) { withTLS(ca)(c); c.Log = zerolog.New(logs) })
			a.up()
			c := tls.Client(a.dial(), &tls.Config{RootCAs: ca.pool(), ServerName: "alpha", MaxVersion: tt.newest})
			defer c.Close()
			c.SetDeadline(time.Now().Add(20 * time.Second))
			err := c.Handshake()
			if err == nil { // a client hears of it by the first read only
				_, err = c.Read(make([]byte, 1))
			}
			if err == nil || !strings.Contains(err.Error(), tt.there) {
				t.Errorf("the client hears %v, want %q", err, tt.there)
			}
			a.awaitLog(logs, tt.here)
		})
	}
}

// Whoever connects from the peer's address without TLS, or without a
// certificate, or who stops in the middle of a handshake, is let go within the
// handshake's time, and the peer gets in nevertheless.
func TestTLSHandshakeIsBounded(t *testing.T) {
	ca := newTestCA(t, "test CA")
	a, b := newPair(t, func(c *Config) { withTLS(ca)(c); c.Net.PingTimeoutMS = 300 })
	a.up()
	hello := []byte{22, 3, 1, 2, 0, 1, 0, 1, 252} // the beginning of a ClientHello of 512 bytes
	var held []net.Conn
	for range 2 * maxGreeting {
		c := a.dial()
		defer c.Close()
		if _, err := c.Write(hello); err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	b.up()
	b.await("connection", isConnected)
	for i, c := range held {
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		var one [1]byte
		if n, err := c.Read(one[:]); n > 0 || err == nil || os.IsTimeout(err) {
			t.Fatalf("connection %d still stands: read %d, %v", i, n, err)
		}
	}
}
