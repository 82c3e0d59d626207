package embedded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Member is a member of the cluster that runs in this process.
type Member struct {
	etcd   *embed.Etcd
	failed chan error
	syncs  syncs

	closing sync.Once
	stop    context.CancelFunc
	done    chan struct{}
}

// Start starts a member and does not wait for the others. With data in Dir it is
// the member that it was before; without, it begins a new cluster with the others
// of Voters.
func Start(c Config) (*Member, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if len(c.Voters) == 0 && !hasMember(c.Dir) {
		return nil, fmt.Errorf("embedded etcd: %s has no member, and no voters are given to begin a cluster with", c.Dir)
	}
	voters := c.Voters
	if len(voters) == 0 {
		voters = map[string]string{c.Name: c.PeerURL} // etcd wants a list, and ignores it
	}
	return start(c, list(voters), embed.ClusterStateFlagNew)
}

// hasMember reports whether a member was started in dir before.
func hasMember(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "member", "wal"))
	return err == nil
}

func start(c Config, cluster, state string) (*Member, error) {
	m := &Member{failed: make(chan error, 1), done: make(chan struct{})}
	log := c.Log
	if log == nil {
		log = zap.NewNop()
	}
	cfg, err := c.etcd(cluster, state, log.WithOptions(zap.WithFatalHook(fatal{m})))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("embedded etcd: %w", err)
	}
	if err := m.run(cfg); err != nil {
		return nil, fmt.Errorf("embedded etcd: member %s in %s: %w", c.Name, c.Dir, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	go func() {
		defer close(m.done)
		m.watch(ctx)
	}()
	return m, nil
}

// startLimit is for reading the data, and for the other members to answer one that
// joins; our own choice.
const startLimit = time.Minute

// run starts etcd on a goroutine of its own: where etcd means to end the process,
// only that goroutine ends.
func (m *Member) run(cfg *embed.Config) error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("etcd gave up") // unless a value comes below
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("the data there are damaged, or of another version (%v): take this member out of the cluster, move the directory away, and join anew", r)
			}
			done <- err
		}()
		m.etcd, err = embed.StartEtcd(cfg)
	}()
	var err error
	select {
	case err = <-done:
	case <-time.After(startLimit):
		return fmt.Errorf("etcd does not start within %v: is its directory in use?", startLimit)
	}
	select {
	case f := <-m.failed:
		return errors.Join(f, err)
	default:
		return err
	}
}

// fatal stands in for etcd's end of the process, for example when its log can't be
// written: the manager has more to do than to run etcd.
type fatal struct{ m *Member }

func (f fatal) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	err := errors.New(e.Message)
	for _, field := range fields {
		if cause, ok := field.Interface.(error); ok && field.Type == zapcore.ErrorType {
			err = fmt.Errorf("%s: %w", e.Message, cause)
		}
	}
	select {
	case f.m.failed <- err:
	default: // the first one counts
	}
	runtime.Goexit()
}

// watch looks at the syncs, and waits for etcd to fail.
func (m *Member) watch(ctx context.Context) {
	tick := time.NewTicker(syncInterval)
	defer tick.Stop()
	for {
		m.syncs.look()
		select {
		case <-ctx.Done():
			return
		case err := <-m.etcd.Err():
			select {
			case m.failed <- err:
			default:
			}
		case <-tick.C:
		}
	}
}

// Ready is closed when the member has found a leader and serves.
func (m *Member) Ready() <-chan struct{} { return m.etcd.Server.ReadyNotify() }

// Failed has the one error that ended the member. It takes no part any more; the
// program may Close it and start another.
func (m *Member) Failed() <-chan error { return m.failed }

// Complaint says in a few words what is wrong with the member, "" if nothing; it
// fits etcd.Config.Member.
func (m *Member) Complaint() string { return m.syncs.complaint() }

// How long a member may take to end, our own. A leader hands over first, which takes
// some ten milliseconds; etcd itself waits for seven seconds for a successor that
// does not answer, as when all members are stopped together.
const (
	handoverLimit = time.Second
	closeLimit    = 15 * time.Second
)

// Close ends the member. A leader hands over first.
func (m *Member) Close() error {
	var err error
	m.closing.Do(func() {
		m.stop()
		<-m.done
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			m.etcd.Close()
		}()
		select {
		case <-ended:
			return
		case <-time.After(handoverLimit):
			m.etcd.Server.HardStop() // ends every wait in Close
		}
		select {
		case <-ended:
		case <-time.After(closeLimit):
			err = fmt.Errorf("embedded etcd: it does not end within %v", closeLimit)
		}
	})
	return err
}
