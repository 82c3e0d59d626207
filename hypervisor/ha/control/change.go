package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pollux-project/pollux/conf"
)

// Requests by which the members are changed: each node says yes to one change at a
// time (prepare), then gets the new cluster.toml (commit) or is told that nothing
// came of it (abort). All nodes have to say yes, so two changes never cross; a node
// that misses the commit gets the file when it connects next, as its serial is
// higher.
const (
	methodPrepare = "_prepare"
	methodCommit  = "_commit"
	methodAbort   = "_abort"
)

// Times of a change, our own.
const (
	prepareTime = 10 * time.Second // for the answer of each node
	promiseTime = 30 * time.Second // a node that said yes waits for the rest
)

// Change is what is done to the members.
type Change struct {
	ID      string `json:"id"`
	Serial  int    `json:"serial"` // of the new cluster.toml
	OldHash string `json:"old_hash"`
	Joins   string `json:"joins,omitempty"`  // the node
	Leaves  string `json:"leaves,omitempty"` // the node
}

type commit struct {
	ID   string `json:"id"`
	Text string `json:"text"` // cluster.toml
}

// prepared is the change that this node has said yes to; under the channel's lock.
type prepared struct {
	id    string
	until time.Duration
	ready *conf.Cluster // committed and on disk, not yet in force
}

func (ch *Channel) servePrepare(ctx context.Context, _ string, body []byte, _ func([]byte) error) ([]byte, error) {
	var c Change
	if err := json.Unmarshal(body, &c); err != nil || c.ID == "" {
		return nil, protocolErrorf("prepare that is no JSON")
	}
	return nil, ch.prepare(ctx, c)
}

func (ch *Channel) prepare(ctx context.Context, c Change) error {
	if err := ch.promise(c); err != nil {
		return err
	}
	if ch.cfg.Unfit == nil {
		return nil
	}
	if err := ch.cfg.Unfit(ctx, c); err != nil {
		ch.forgetChange(c.ID)
		return err
	}
	return nil
}

func (ch *Channel) promise(c Change) error {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	now := ch.cfg.now()
	switch {
	case ch.prepared.id != "" && ch.prepared.id != c.ID && now < ch.prepared.until:
		return errors.New("another change of the cluster is under way: one node at a time, try again in half a minute")
	case c.OldHash != ch.cluster.Hash() || c.Serial != ch.cluster.Serial+1:
		return fmt.Errorf("its cluster.toml has serial %d and is another one: copy the right one to all nodes, serial one higher", ch.cluster.Serial)
	}
	ch.prepared = prepared{id: c.ID, until: now + promiseTime}
	return nil
}

func (ch *Channel) serveAbort(_ context.Context, _ string, body []byte, _ func([]byte) error) ([]byte, error) {
	var c Change
	if err := json.Unmarshal(body, &c); err != nil {
		return nil, protocolErrorf("abort that is no JSON")
	}
	ch.forgetChange(c.ID)
	return nil, nil
}

func (ch *Channel) forgetChange(id string) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if ch.prepared.id == id {
		ch.prepared = prepared{}
	}
}

// serveCommit puts the new file on disk; it comes into force behind the answer.
func (ch *Channel) serveCommit(_ context.Context, _ string, body []byte, _ func([]byte) error) ([]byte, error) {
	var c commit
	if err := json.Unmarshal(body, &c); err != nil {
		return nil, protocolErrorf("commit that is no JSON")
	}
	cl, err := conf.ParseCluster(ch.cfg.Store.File, []byte(c.Text))
	if err != nil {
		return nil, err
	}
	ch.mu.Lock()
	mine := ch.prepared.id == c.ID
	ch.mu.Unlock()
	if !mine {
		return nil, errors.New("this change took too long: nothing was changed here yet")
	}
	isNew, err := ch.save(cl)
	if err != nil {
		return nil, err
	}
	if isNew {
		ch.mu.Lock()
		ch.prepared.ready = cl
		ch.mu.Unlock()
	}
	return nil, nil
}

func (ch *Channel) enactCommitted(from string) {
	ch.mu.Lock()
	cl := ch.prepared.ready
	ch.prepared = prepared{}
	ch.mu.Unlock()
	if cl != nil {
		ch.enact(cl, from)
	}
}

// A pendingChange was agreed to by all nodes that it needs.
type pendingChange struct {
	ch     *Channel
	change Change
	old    *conf.Cluster
	others []string // that agreed, without this node
}

// begin asks all members; without, if not "", need not agree if it can't be reached.
func (ch *Channel) begin(ctx context.Context, c Change, without string) (*pendingChange, error) {
	ch.mu.Lock()
	old := ch.cluster
	ch.mu.Unlock()
	c.ID, c.Serial, c.OldHash = randomHex(8), old.Serial+1, old.Hash()
	p := &pendingChange{ch: ch, change: c, old: old}
	for _, peer := range ch.Peers() {
		if peer.State() == LinkOK {
			p.others = append(p.others, peer.Node)
			continue
		}
		if peer.Node != without {
			return nil, fmt.Errorf("%s is not well (%s): one node at a time; bring it back, or take it out with polluxadm cluster leave %s, and try again", peer.Node, peer.why(), peer.Node)
		}
	}
	if err := ch.prepare(ctx, c); err != nil {
		return nil, fmt.Errorf("%s: %w", ch.id.Node, err)
	}
	body, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode a change: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, prepareTime)
	defer cancel()
	if err := ch.askAll(ctx, p.others, methodPrepare, body); err != nil {
		p.abort()
		return nil, err
	}
	return p, nil
}

// why is the first link's.
func (p Peer) why() string {
	for _, l := range p.Links {
		if l.Why != "" {
			return l.Why
		}
	}
	return "no heartbeat"
}

// askAll sends one request to several nodes and returns what failed.
func (ch *Channel) askAll(ctx context.Context, nodes []string, method string, body []byte) error {
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { _, errs[i] = ch.Request(ctx, n, method, body, nil) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// abort takes it back. Who is not reached forgets it by itself.
func (p *pendingChange) abort() {
	p.ch.forgetChange(p.change.ID)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if body, err := json.Marshal(p.change); err == nil {
		_ = p.ch.askAll(ctx, p.others, methodAbort, body) // see above
	}
}

// next is a copy of the description for the change.
func (p *pendingChange) next() *conf.Cluster {
	c := *p.old
	c.Serial = p.change.Serial
	c.Nodes, c.Fences = slices.Clone(c.Nodes), slices.Clone(c.Fences)
	return &c
}

// commit puts the new description in force here, and then on the other nodes. The
// error says that it is in force nowhere.
func (p *pendingChange) commit(ctx context.Context, c *conf.Cluster) error {
	ch := p.ch
	if err := c.Validate(); err != nil {
		p.abort()
		return err
	}
	isNew, err := ch.save(c)
	if err == nil && !isNew {
		err = errors.New("cluster.toml was changed meanwhile: try again")
	}
	if err != nil {
		p.abort()
		return err
	}
	body, err := json.Marshal(commit{ID: p.change.ID, Text: string(c.Text())})
	if err != nil {
		return fmt.Errorf("encode cluster.toml: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, prepareTime)
	defer cancel()
	if err := ch.askAll(ctx, p.others, methodCommit, body); err != nil {
		ch.cfg.Log.Warn().Err(err).Msg("a node has not confirmed the new cluster.toml: it gets it when it connects again")
	}
	ch.forgetChange(p.change.ID)
	ch.enact(c, ch.id.Node)
	return nil
}

// Leave takes a node out of the cluster, on all nodes. It may be this one, and it
// may be dead; all others have to be well. When the node itself has left, its
// OnCluster is called with a description that lacks it: it stops then, and calls
// Store.Retire.
func (ch *Channel) Leave(ctx context.Context, node string) error {
	n, err := ch.leaver(node)
	if err != nil {
		return err
	}
	p, err := ch.begin(ctx, Change{Leaves: n.Name}, n.Name)
	if err != nil {
		return err
	}
	next := p.next()
	next.Nodes = slices.DeleteFunc(next.Nodes, func(x conf.ClusterNode) bool { return x.Name == n.Name })
	next.Fences = slices.DeleteFunc(next.Fences, func(x conf.FenceDevice) bool { return conf.SameHost(x.Node, n.Name) })
	return p.commit(ctx, next)
}

// MayLeave says why Leave would be refused now; nothing is changed.
func (ch *Channel) MayLeave(ctx context.Context, node string) error {
	n, err := ch.leaver(node)
	if err != nil {
		return err
	}
	p, err := ch.begin(ctx, Change{Leaves: n.Name}, n.Name)
	if err == nil {
		p.abort()
	}
	return err
}

// leaver is the node of a name, if the description can do without it.
func (ch *Channel) leaver(node string) (*conf.ClusterNode, error) {
	c := ch.Cluster()
	var names []string
	for _, n := range c.Nodes {
		names = append(names, n.Name)
	}
	n := c.Node(node)
	switch {
	case n == nil:
		return nil, fmt.Errorf("node %s: it is not a node of cluster %s%s; its nodes are %s", node, c.Name, conf.DidYouMean(node, names), strings.Join(names, ", "))
	case len(c.Nodes) == 1:
		return nil, fmt.Errorf("%s is the only node of cluster %q: nothing is left to leave; stop polluxha and remove %s to forget the cluster", n.Name, c.Name, ch.cfg.Store.Dir)
	case n.Kind != conf.NodeWitness && len(c.DataNodes()) == 1:
		return nil, fmt.Errorf("%s is the only node of kind \"data\" of cluster %q: the others must leave before", n.Name, c.Name)
	}
	return n, nil
}
