package control

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/pollux-project/pollux/conf"
)

// joinTime bounds a whole join: it waits for a disk and an answer of each node.
const joinTime = time.Minute

// joinRequest is what a new node sends, in a frameRequest.
type joinRequest struct {
	Min      int    `json:"min"`
	Max      int    `json:"max"`
	Token    string `json:"token"` // its ID
	Secret   string `json:"secret"`
	Node     string `json:"node"`
	Software string `json:"software"`
	CSR      []byte `json:"csr"` // PKCS 10, DER
}

// joinAnswer makes it a member, in a frameAnswer.
type joinAnswer struct {
	CA      []byte `json:"ca"` // all in PEM
	CAKey   []byte `json:"ca_key,omitempty"`
	Cert    []byte `json:"cert"`
	Cluster string `json:"cluster"` // cluster.toml
}

// TokenRequest says who may join.
type TokenRequest struct {
	Node  string
	Kind  string // "" is data
	Links []netip.AddrPort
	Life  time.Duration // 0: TokenLife
}

// NewToken makes a token with which one node can join, once. An older one for the
// same node is void.
func (ch *Channel) NewToken(r TokenRequest) (Token, error) {
	c := ch.Cluster()
	if !ch.id.Admits() {
		return Token{}, fmt.Errorf("node %s is a witness and signs no certificates: run polluxadm cluster token on one of %v", ch.id.Node, c.DataNodes())
	}
	life := r.Life
	if life == 0 {
		life = TokenLife
	}
	if life < time.Minute || life > maxTokenLife {
		return Token{}, fmt.Errorf("a token is good for 1 minute to %v, not %v", maxTokenLife, life)
	}
	// As it will be: bad names and addresses are told now.
	p := &pendingChange{ch: ch, old: c, change: Change{Serial: c.Serial + 1}}
	if _, err := p.withNode(pending{Node: r.Node, Kind: r.Kind, Links: r.Links}, ""); err != nil {
		return Token{}, err
	}
	t := Token{
		Cluster: c.Name, ClusterID: c.ID, Node: r.Node, Addresses: c.Node(ch.id.Node).Links,
		CA: Fingerprint(ch.id.ca.Raw), ID: randomHex(8), Secret: randomHex(16), Expires: time.Now().Add(life).UTC().Truncate(time.Second),
	}
	err := ch.cfg.Store.addToken(pending{ID: t.ID, Hash: hashSecret(t.Secret), Node: r.Node, Kind: r.Kind, Links: r.Links, Expires: t.Expires})
	return t, err
}

// withNode is the description with a new node in it, or with one that was lost
// and joins anew.
func (p *pendingChange) withNode(t pending, publicKey string) (*conf.Cluster, error) {
	next := p.next()
	n := conf.ClusterNode{Name: t.Node, Kind: t.Kind, Links: t.Links, PublicKey: publicKey}
	if n.Kind == "" {
		n.Kind = conf.NodeData
	}
	if old := next.Node(t.Node); old == nil {
		next.Nodes = append(next.Nodes, n)
	} else {
		for _, peer := range p.ch.Peers() {
			if peer.Node == old.Name && peer.State() != LinkDead {
				return nil, fmt.Errorf("%s is in the cluster and alive: polluxadm cluster leave %s takes it out", old.Name, old.Name)
			}
		}
		if old.Name == p.ch.id.Node {
			return nil, fmt.Errorf("%s is this node", old.Name)
		}
		n.Name, n.Etcd = old.Name, old.Etcd
		*old = n
	}
	return next, next.Validate()
}

// serveJoin talks to somebody who has no certificate, and needs a token. met takes
// the connection out of the hands of Close: what a join puts in force may restart
// this very channel, and who was let in has to hear it all the same. All that waits
// here has an end of its own.
func (ch *Channel) serveJoin(tc *tls.Conn, met func() bool) {
	defer tc.Close()
	_, body, err := readFrame(tc, nil, maxHello)
	if err != nil {
		ch.stranger(tc.RemoteAddr().String(), printable(err.Error()))
		return
	}
	if !met() {
		return // it is being stopped
	}
	tc.NetConn().SetDeadline(time.Now().Add(joinTime))
	ctx, cancel := context.WithTimeout(ch.ctx, joinTime)
	defer cancel()
	var r joinRequest
	answer, err := joinAnswer{}, error(nil)
	if json.Unmarshal(body, &r) != nil {
		err = errors.New("this request to join can't be read: both nodes need the same version of Pollux")
	} else {
		answer, err = ch.admit(ctx, r, func(text string) {
			_, _ = tc.Write(appendFrame(nil, framePart, []byte(text))) // the answer will say more
		})
	}
	if err != nil {
		ch.cfg.Log.Warn().Str("from", tc.RemoteAddr().String()).Str("node", printable(r.Node)).Err(err).Msg("join refused")
		_, _ = tc.Write(appendFrame(nil, frameBye, []byte(cut(err.Error())))) // who is gone need not know
		return
	}
	text, err := json.Marshal(answer)
	if err == nil {
		tc.NetConn().SetWriteDeadline(time.Now().Add(handshakeTime)) // it has been waiting for this
		_, err = tc.Write(appendFrame(nil, frameAnswer, text))
	}
	if err != nil {
		ch.cfg.Log.Warn().Str("node", r.Node).Err(err).Msg("a node was let in and did not hear it: let it join again with a new token")
		return
	}
	ch.cfg.Log.Info().Str("node", r.Node).Msg("joined the cluster")
}

// admit makes somebody with a good token a member.
func (ch *Channel) admit(ctx context.Context, r joinRequest, progress func(string)) (joinAnswer, error) {
	var none joinAnswer
	if _, err := agree(ch.cfg.versions, hello{Min: r.Min, Max: r.Max, Node: printable(r.Node), Software: r.Software}); err != nil {
		return none, err
	}
	t, err := ch.cfg.Store.findToken(r.Token, r.Secret, time.Now())
	if err != nil {
		return none, err
	}
	if !conf.SameHost(t.Node, r.Node) {
		return none, fmt.Errorf("the token is for node %q, and this one is called %q", t.Node, printable(r.Node))
	}
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return none, fmt.Errorf("request for a certificate: %w", err)
	}
	progress("asking the other nodes")
	p, err := ch.begin(ctx, Change{Joins: t.Node}, t.Node)
	if err != nil {
		return none, err
	}
	c, err := p.withNode(t, Fingerprint(csr.RawSubjectPublicKeyInfo))
	if err != nil {
		p.abort()
		return none, err
	}
	name := c.Node(t.Node).Name
	cert, err := ch.id.authority().issue(c, name, t.Links, csr.PublicKey)
	if err == nil {
		err = ch.cfg.Store.dropToken(t.ID)
	}
	if err != nil {
		p.abort()
		return none, err
	}
	if err := p.commit(ctx, c); err != nil {
		return none, fmt.Errorf("%w; the token is used up", err)
	}
	a := joinAnswer{CA: ch.id.CA, Cert: certPEM(cert), Cluster: string(c.Text())}
	if c.Node(name).Kind != conf.NodeWitness {
		if a.CAKey, err = keyPEM(ch.id.sign); err != nil {
			return none, err
		}
	}
	return a, nil
}

// JoinOptions say who joins.
type JoinOptions struct {
	Node     string // this node's name
	Software string
	// Foreign says what of this node belongs to another cluster, so that it must
	// not join; nothing is ever erased. nil: nothing does.
	Foreign func(ctx context.Context) error
	// Progress, if not nil, is told what is being done.
	Progress func(text string)

	versions [2]int
}

// Join makes this node a member of the cluster that a token is of.
func Join(ctx context.Context, s Store, token string, o JoinOptions) (*conf.Cluster, error) {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if o.versions == [2]int{} {
		o.versions = [2]int{MinVersion, Version}
	}
	t, err := ParseToken(token)
	if err != nil {
		return nil, err
	}
	if !conf.SameHost(t.Node, o.Node) {
		return nil, fmt.Errorf("the token is for node %q, and this one is %q: node-name in pollux.toml says so, or make a token with polluxadm cluster token %s", t.Node, o.Node, o.Node)
	}
	if id, c, err := s.Load(); err == nil && id.ClusterID != t.ClusterID {
		same := ""
		if c.Name == t.Cluster {
			same = ", another one of the same name"
		}
		return nil, fmt.Errorf("node %q is in cluster %q (id %s)%s: nothing was changed; polluxadm cluster leave %s ends that, if this is what you want", id.Node, c.Name, c.ID, same, id.Node)
	}
	if err := s.vacant(); err != nil {
		return nil, err
	}
	if o.Foreign != nil {
		if err := o.Foreign(ctx); err != nil {
			return nil, err
		}
	}
	key, keyText, err := newKey()
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make a request for a certificate: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	tc, err := t.dial(ctx, o.Progress)
	if err != nil {
		return nil, err
	}
	defer tc.NetConn().Close()
	answer, err := ask(tc, joinRequest{
		Min: o.versions[0], Max: o.versions[1], Token: t.ID, Secret: t.Secret, Node: o.Node, Software: o.Software, CSR: csr,
	}, o.Progress)
	if err != nil {
		return nil, err
	}
	c, err := answer.check(s, t, keyText)
	if err == nil {
		err = s.found(c, memberFiles{ca: answer.CA, caKey: answer.CAKey, cert: answer.Cert, key: keyText})
	}
	if err != nil {
		return nil, fmt.Errorf("the cluster has let this node in, and it failed here: %w: repair that, and join again with a new token", err)
	}
	return c, nil
}

// dial finds a member, and believes the one that has the CA of the token.
func (t Token) dial(ctx context.Context, progress func(string)) (*tls.Conn, error) {
	var errs []error
	for _, a := range t.Addresses {
		progress(fmt.Sprintf("connecting to %s", a))
		d := net.Dialer{Timeout: handshakeTime}
		nc, err := d.DialContext(ctx, "tcp", a.String())
		if err != nil {
			errs = append(errs, fmt.Errorf("connect %s: %w", a, unwrapNet(err)))
			continue
		}
		nc.SetDeadline(time.Now().Add(handshakeTime))
		tc := tls.Client(nc, &tls.Config{
			MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, // VerifyConnection knows better
			NextProtos: []string{alpnJoin}, VerifyConnection: t.verify,
		})
		if err := tc.HandshakeContext(ctx); err != nil {
			nc.Close()
			errs = append(errs, fmt.Errorf("connect %s: %w", a, unwrapNet(err)))
			continue
		}
		nc.SetDeadline(time.Now().Add(joinTime))
		return tc, nil
	}
	return nil, fmt.Errorf("no node of cluster %q answers: is polluxha running on the node that gave the token out, and may this node reach it?\n%w", t.Cluster, errors.Join(errs...))
}

func (t Token) verify(s tls.ConnectionState) error {
	chain := s.PeerCertificates
	if len(chain) < 2 || Fingerprint(chain[len(chain)-1].Raw) != t.CA {
		return fmt.Errorf("it belongs to another cluster than the token, which is of %q (id %s)", t.Cluster, t.ClusterID)
	}
	i := &Identity{root: x509.NewCertPool()}
	i.root.AddCert(chain[len(chain)-1])
	if err := i.signed(chain[0]); err != nil {
		return err
	}
	if id, _ := whose(chain[0]); id != t.ClusterID {
		return fmt.Errorf("it belongs to the cluster with id %s, the token to %s", printable(id), t.ClusterID)
	}
	return nil
}

// ask sends the request and waits for its answer.
func ask(tc *tls.Conn, r joinRequest, progress func(string)) (joinAnswer, error) {
	var a joinAnswer
	body, err := json.Marshal(r)
	if err != nil {
		return a, fmt.Errorf("encode a request: %w", err)
	}
	if _, err := tc.Write(appendFrame(nil, frameRequest, body)); err != nil {
		return a, fmt.Errorf("join: %w", unwrapNet(err))
	}
	for {
		kind, body, err := readFrame(tc, nil, maxFrame)
		switch {
		case err != nil:
			return a, fmt.Errorf("join: no answer: %w: look at polluxadm cluster status there; if this node is in it, join again with a new token", unwrapNet(err))
		case kind == framePart:
			progress(printableText(string(body)))
		case kind == frameBye:
			return a, fmt.Errorf("the cluster refuses this node: %s", printableText(string(body)))
		case kind == frameAnswer:
			if err := json.Unmarshal(body, &a); err != nil {
				return a, protocolErrorf("answer that is no JSON")
			}
			return a, nil
		default:
			return a, protocolErrorf("frame %d as an answer", kind)
		}
	}
}

// check looks at what a new member was given before anything of it is kept.
func (a joinAnswer) check(s Store, t Token, key []byte) (*conf.Cluster, error) {
	block, _ := pem.Decode(a.CA)
	if block == nil || Fingerprint(block.Bytes) != t.CA {
		return nil, errors.New("its CA is not that of the token")
	}
	id, err := newIdentity(a.CA, a.CAKey, a.Cert, key)
	if err != nil {
		return nil, err
	}
	c, err := conf.ParseCluster(s.File, []byte(a.Cluster))
	if err != nil {
		return nil, err
	}
	if n := c.Node(id.Node); c.ID != t.ClusterID || id.ClusterID != t.ClusterID || n == nil || n.PublicKey != id.PublicKey {
		return nil, errors.New("its cluster.toml does not have this node")
	}
	return c, nil
}
