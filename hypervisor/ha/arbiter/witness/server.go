package witness

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	stdlog "log"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	"github.com/pollux-project/pollux/hypervisor/ha/control"
)

// Limits of the server; our own. A cluster of two nodes with 200 resources sends
// some 20 requests when a node dies, and one per second or less else.
const (
	maxConns      = 1024
	maxHostConns  = 64 // from one address
	maxClusterNum = 256
	ratePerSecond = 200 // requests of one cluster, on average
	rateBurst     = 4000
	watchTime     = 25 * time.Second
	requestTime   = 15 * time.Second
	logPause      = 10 * time.Second // between two lines about strangers
)

// Config is what a Server is made with.
type Config struct {
	// Dir is the state directory, which has to survive a reboot:
	//
	//	witness.pem, witness.key   the server's own certificate, made at the first start
	//	clusters/NAME.pem          the CA of each cluster that may ask
	//	records/ID/log             its records; ID is the CA's fingerprint
	Dir string
	Log zerolog.Logger

	now  func() time.Duration // nil: a monotonic clock
	disk func(dir string) vfs // nil: the directory itself
}

// Server is the witness: Serve answers the nodes of its clusters. All methods are
// safe for concurrent use.
type Server struct {
	cfg   Config
	own   tls.Certificate
	epoch string
	began time.Time
	http  *http.Server

	mu       sync.Mutex
	clusters map[string]*member     // by name
	known    map[[32]byte]*identity // certificates that were looked at, until the next Reload
	problems []string
	told     time.Time // of a stranger
}

// member is a cluster that may ask.
type member struct {
	name  string
	print string // of its CA
	roots *x509.CertPool
	c     *cluster
	ill   error // why there is none

	mu     sync.Mutex
	tokens float64
	filled time.Time
	seen   map[string]time.Time // nodes
}

// identity is whose a certificate is.
type identity struct {
	m     *member
	names []string
}

// NewServer reads the state directory, and makes it where there is none.
func NewServer(cfg Config) (*Server, error) {
	if cfg.now == nil {
		start := time.Now()
		cfg.now = func() time.Duration { return time.Since(start) }
	}
	if cfg.disk == nil {
		cfg.disk = func(dir string) vfs { return osDir(dir) }
	}
	s := &Server{cfg: cfg, began: time.Now(), clusters: map[string]*member{}}
	for _, dir := range []string{cfg.Dir, s.caDir(), s.recordDir("")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("state directory: %w", err)
		}
	}
	var err error
	if s.own, err = ownCertificate(cfg.Dir); err != nil {
		return nil, err
	}
	var b [8]byte
	rand.Read(b[:])
	s.epoch = hex.EncodeToString(b[:])
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	s.http = &http.Server{
		Handler: s, TLSConfig: s.tlsConfig(), Protocols: protocols,
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: watchTime + 15*time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 8 << 10, ErrorLog: stdlog.New(tlsLog{s}, "", 0),
	}
	return s, s.Reload()
}

func (s *Server) caDir() string               { return filepath.Join(s.cfg.Dir, "clusters") }
func (s *Server) recordDir(dir string) string { return filepath.Join(s.cfg.Dir, "records", dir) }

// ownCertificate is read, or made.
func ownCertificate(dir string) (tls.Certificate, error) {
	certFile, keyFile := filepath.Join(dir, "witness.pem"), filepath.Join(dir, "witness.key")
	if _, err := os.Lstat(certFile); errors.Is(err, fs.ErrNotExist) {
		cert, key, err := control.SelfSigned("pollux-witness")
		if err != nil {
			return tls.Certificate{}, err
		}
		// The certificate comes last: with it the pair is complete.
		if err := control.WriteFile(keyFile, key); err != nil {
			return tls.Certificate{}, err
		}
		if err := control.WriteFile(certFile, cert); err != nil {
			return tls.Certificate{}, err
		}
	}
	if fi, err := os.Stat(keyFile); err == nil && fi.Mode().Perm()&0o077 != 0 {
		return tls.Certificate{}, fmt.Errorf("%s can be read by others (mode %04o): run `chmod 600 %s`", keyFile, fi.Mode().Perm(), keyFile)
	}
	own, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return own, fmt.Errorf("the witness's certificate: %w", err)
	}
	return own, nil
}

// Fingerprint is that of the server's certificate: cluster.toml has it.
func (s *Server) Fingerprint() string { return control.Fingerprint(s.own.Leaf.Raw) }

// Reload reads the directory of CAs again. What is wrong with one cluster is told
// by Status, and harms no other. A cluster whose CA is gone is not answered any
// more; its records stay on disk.
func (s *Server) Reload() error {
	list, err := readClusters(s.caDir())
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known = map[[32]byte]*identity{}
	s.problems = list.problems
	for _, p := range list.problems {
		s.cfg.Log.Error().Msg(p)
	}
	var errs []error
	for name, m := range s.clusters {
		if n := list.clusters[name]; n == nil || n.print != m.print {
			errs = append(errs, m.close())
			delete(s.clusters, name)
			s.cfg.Log.Info().Str("cluster", name).Msg("removed")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(list.clusters)) {
		if old := s.clusters[name]; old != nil && old.ill == nil {
			continue
		}
		m := list.clusters[name]
		s.open(m)
		s.clusters[name] = m
	}
	return errors.Join(errs...)
}

func (m *member) close() error {
	if m.c == nil {
		return nil
	}
	return m.c.close()
}

func (s *Server) open(m *member) {
	dir := s.recordDir(strings.TrimPrefix(m.print, "sha256:")[:32])
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = osDir(s.recordDir("")).SyncDir()
	}
	if err == nil {
		m.c, err = newCluster(m.name, s.cfg.disk(dir), s.cfg.now)
	}
	if err != nil {
		m.ill = fmt.Errorf("%s: %w", dir, err)
		s.cfg.Log.Error().Err(m.ill).Str("cluster", m.name).Msg("not served")
		return
	}
	m.tokens, m.filled, m.seen = rateBurst, time.Now(), map[string]time.Time{}
	s.cfg.Log.Info().Str("cluster", m.name).Int("resources", m.c.status().Resources).Msg("serving")
}

// clusterList is what a directory of CAs says.
type clusterList struct {
	clusters map[string]*member
	problems []string
}

func readClusters(dir string) (clusterList, error) {
	list := clusterList{clusters: map[string]*member{}}
	files, err := os.ReadDir(dir)
	if err != nil {
		return list, fmt.Errorf("clusters: %w", err)
	}
	prints := map[string]string{}
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), ".pem")
		if !ok || strings.HasPrefix(name, ".") {
			continue
		}
		path := filepath.Join(dir, f.Name())
		ca, err := ReadCA(path)
		switch {
		case err != nil:
			list.problems = append(list.problems, err.Error())
		case len(list.clusters) >= maxClusterNum:
			list.problems = append(list.problems, fmt.Sprintf("%s: %d clusters are served already, at most that many are", path, maxClusterNum))
		case prints[control.Fingerprint(ca.Raw)] != "":
			list.problems = append(list.problems, fmt.Sprintf("%s: this CA is that of cluster %s already: remove one of the two", path, prints[control.Fingerprint(ca.Raw)]))
		default:
			m := &member{name: name, print: control.Fingerprint(ca.Raw), roots: x509.NewCertPool()}
			m.roots.AddCert(ca)
			list.clusters[name], prints[m.print] = m, name
		}
	}
	return list, nil
}

// ReadCA reads the certificate of a CA, the first one of a file in PEM.
func ReadCA(path string) (*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return ParseCA(path, text)
}

// ParseCA is ReadCA for a text; path is for messages.
func ParseCA(path string, text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s does not begin with a certificate in PEM: it is ca.pem of a node of the cluster", path)
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if !ca.IsCA {
		return nil, fmt.Errorf("%s is the certificate of %q, not of a CA: it is ca.pem of a node of the cluster, not node.pem", path, ca.Subject.CommonName)
	}
	return ca, nil
}

// tlsConfig takes the certificates of known clusters only.
func (s *Server) tlsConfig() *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{s.own},
		MinVersion:   tls.VersionTLS13,
		ClientAuth:   tls.RequireAnyClientCert,
		VerifyConnection: func(c tls.ConnectionState) error {
			_, err := s.identify(c.PeerCertificates)
			return err
		},
		SessionTicketsDisabled: true,
	}
}

// identify finds whose a certificate is, and remembers it.
func (s *Server) identify(certs []*x509.Certificate) (*identity, error) {
	if len(certs) == 0 {
		return nil, errors.New("no certificate")
	}
	sum := sha256.Sum256(certs[0].Raw)
	s.mu.Lock()
	defer s.mu.Unlock()
	if id := s.known[sum]; id != nil {
		return id, nil
	}
	for _, m := range s.clusters {
		_, names, err := control.Names(m.roots, certs)
		if err != nil {
			continue
		}
		id := &identity{m: m, names: names}
		if len(s.known) < maxConns {
			s.known[sum] = id
		}
		return id, nil
	}
	return nil, fmt.Errorf("certificate signed by %q, which is the CA of no cluster here: pollux-witness add makes it known", certs[0].Issuer.CommonName)
}

// Serve answers on l until Close. It closes l.
func (s *Server) Serve(l net.Listener) error {
	err := s.http.ServeTLS(&limited{Listener: l, hosts: map[netip.Addr]int{}}, "", "")
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Close ends all connections, and closes the logs.
func (s *Server) Close() error {
	errs := []error{s.http.Close()}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.clusters {
		errs = append(errs, m.close())
	}
	s.clusters, s.known = map[string]*member{}, nil
	return errors.Join(errs...)
}

// tlsLog takes what net/http has to say of handshakes, seldom enough.
type tlsLog struct{ s *Server }

func (t tlsLog) Write(b []byte) (int, error) {
	t.s.mu.Lock()
	quiet := time.Since(t.s.told) < logPause
	if !quiet {
		t.s.told = time.Now()
	}
	t.s.mu.Unlock()
	if !quiet {
		t.s.cfg.Log.Warn().Msg(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

// allow takes one request from a cluster's allowance.
func (m *member) allow(node string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.tokens = min(rateBurst, m.tokens+now.Sub(m.filled).Seconds()*ratePerSecond)
	m.filled = now
	if m.tokens < 1 {
		return false
	}
	m.tokens--
	if _, known := m.seen[node]; known || len(m.seen) < maxNodes {
		m.seen[node] = now
	}
	return true
}

// ServeHTTP answers one request of a node.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id, err := s.identify(r.TLS.PeerCertificates)
	if err != nil {
		answer(w, http.StatusForbidden, response{Error: err.Error()})
		return
	}
	switch {
	case id.m.ill != nil:
		answer(w, http.StatusServiceUnavailable, response{Error: id.m.ill.Error()})
		return
	case !id.m.allow(id.names[0]):
		w.Header().Set("Retry-After", "1")
		answer(w, http.StatusTooManyRequests, response{Error: fmt.Sprintf("more than %d requests a second from cluster %s", ratePerSecond, id.m.name)})
		return
	}
	if r.Method == http.MethodGet && r.URL.Path == pathWatch {
		s.watch(w, r, id.m.c)
		return
	}
	var q request
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&q); err != nil {
		answer(w, http.StatusBadRequest, response{Error: "the request is no JSON of a known form, or too large"})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), requestTime)
	defer cancel()
	s.decide(ctx, w, r, id, &q)
}

// decide has one request of a node decided.
func (s *Server) decide(ctx context.Context, w http.ResponseWriter, r *http.Request, id *identity, q *request) {
	var a response
	var other *notYours
	if err := q.check(id.names); err != nil && !errors.As(err, &other) {
		answer(w, http.StatusBadRequest, response{Error: err.Error()})
		return
	}
	var verb func(t *txn) error
	switch {
	case r.Method != http.MethodPost:
	case r.URL.Path == pathAcquire && q.Claim != nil:
		verb = func(t *txn) error {
			rec, err := t.acquire(*q.Claim)
			a.Record = &rec
			return err
		}
	case r.URL.Path == pathRenew && q.Node != "":
		verb = func(t *txn) error { return t.renew(q.Node, q.Session, time.Duration(q.TTLMS)*time.Millisecond) }
	case r.URL.Path == pathRelease && q.Node != "" && q.Resource != "":
		verb = func(t *txn) error { return t.release(q.Resource, q.Node, q.Term) }
	case r.URL.Path == pathResign && q.Node != "":
		verb = func(t *txn) error { return t.resign(q.Node, q.Session) }
	case r.URL.Path == pathObserve:
		verb = func(t *txn) error {
			v := t.observe(q.Resources)
			a.View = &v
			return nil
		}
	}
	isClaim := r.URL.Path == pathAcquire || r.URL.Path == pathRelease
	switch {
	case verb == nil:
		answer(w, http.StatusNotFound, response{Error: "this version of the witness does not know the request"})
		return
	case other != nil && !isClaim:
		answer(w, http.StatusForbidden, response{Error: other.text})
		return
	case other != nil:
		verb = func(t *txn) error { return other.refuse(t, q) }
	}
	var no *arbiter.RefusedError
	switch err := id.m.c.do(ctx, verb); {
	case err == nil:
		answer(w, http.StatusOK, a)
	case errors.As(err, &no):
		answer(w, http.StatusConflict, response{Refused: refusal(no)})
	default:
		answer(w, http.StatusServiceUnavailable, response{Error: err.Error()})
	}
}

// watch answers when something has changed since a version of this run.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, c *cluster) {
	var since uint64
	if _, err := fmt.Sscan(r.URL.Query().Get("since"), &since); err != nil || r.URL.Query().Get("epoch") != s.epoch {
		since = ^uint64(0) // of another run, or the first question: at once
	}
	ctx, cancel := context.WithTimeout(r.Context(), watchTime)
	defer cancel()
	answer(w, http.StatusOK, response{Epoch: s.epoch, Version: c.wait(ctx, since)})
}

func answer(w http.ResponseWriter, status int, a response) {
	b, err := json.Marshal(a)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"error":"the answer can't be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b) // who has gone asks again
}
