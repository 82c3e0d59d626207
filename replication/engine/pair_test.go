package engine

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// node is one side of a pair under test: real sockets, real files.
type node struct {
	t   testing.TB
	cfg Config
	*Engine

	open1    func(string, blockdev.Options) (blockdev.Device, error) // nil: the real one
	outcast1 func(row int) time.Duration                             // likewise
	async1   func(blockdev.Device) asyncDevice                       // likewise
}

// sink collects completions.
type sink struct {
	mu   sync.Mutex
	cond *sync.Cond
	done map[*blockdev.Request]bool
}

func newSink() *sink {
	s := &sink{done: map[*blockdev.Request]bool{}}
	s.cond = sync.NewCond(&s.mu)
	return s
}

func (s *sink) Completed(r *blockdev.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done[r] {
		panic("completed twice")
	}
	s.done[r] = true
}

func (s *sink) Flush() { s.cond.Broadcast() }

func (s *sink) wait(r *blockdev.Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.done[r] {
		s.cond.Wait()
	}
	return r.Err
}

func freePorts(t testing.TB, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

const testSize = 16 << 20

// newPair makes two nodes with fresh metadata; change adapts their configuration.
func newPair(t testing.TB, change func(*Config)) (a, b *node) {
	t.Helper()
	ports := freePorts(t, 2)
	dir := t.TempDir()
	make1 := func(name, peer string, own, other int) *node {
		level := zerolog.Disabled
		if testing.Verbose() {
			level = zerolog.InfoLevel
		}
		state := filepath.Join(dir, name)
		if err := os.MkdirAll(state, 0o755); err != nil {
			t.Fatal(err)
		}
		cfg := Config{
			Resource: "r0", Node: name, PeerName: peer, Net: replication.DefaultNetOptions(), StateDir: state, BootID: "boot-1",
			Local: netip.MustParseAddrPort(fmt.Sprintf("127.0.0.1:%d", own)), Peer: netip.MustParseAddrPort(fmt.Sprintf("127.0.0.1:%d", other)),
			Log: zerolog.New(zerolog.ConsoleWriter{Out: os.Stderr, NoColor: true}).Level(level).With().Str("node", name).Logger(),
			Volumes: []VolumeConfig{{
				Number: 0, Minor: 0, Device: "/dev/drbd0", Disk: filepath.Join(dir, name+".img"), MetaIndex: -1,
				Options: replication.DefaultDiskOptions(),
			}},
		}
		cfg.Net.ConnectIntMS = 2000
		cfg.Volumes[0].Options.CMaxRateKiB, cfg.Volumes[0].Options.CMinRateKiB = 4<<20, 0 // as fast as it goes, clients or not
		if change != nil {
			change(&cfg)
		}
		createDisk(t, cfg.Volumes[0].Disk, testSize)
		return &node{t: t, cfg: cfg}
	}
	a = make1("alpha", "beta", ports[0], ports[1])
	b = make1("beta", "alpha", ports[1], ports[0])
	return a, b
}

func createDisk(t testing.TB, path string, size int64) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	onDisk(t, path, func(dev blockdev.Device, l meta.Layout) error { return meta.Create(dev, l, meta.CreateOptions{}) })
}

// onDisk does something to a disk with internal metadata that no engine has.
func onDisk(t testing.TB, path string, do func(dev blockdev.Device, l meta.Layout) error) {
	t.Helper()
	dev, err := blockdev.Open(path, blockdev.Options{Exclusive: true})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	l, err := meta.NewLayout(meta.Internal, 0, dev.Size(), dev.Size(), 1, 8)
	if err != nil {
		t.Fatal(err)
	}
	if err := do(dev, l); err != nil {
		t.Fatal(err)
	}
}

// editSuperblock changes the superblock of such a disk.
func editSuperblock(t testing.TB, path string, edit func(sb *meta.Superblock, l meta.Layout)) {
	t.Helper()
	onDisk(t, path, func(dev blockdev.Device, l meta.Layout) error {
		sb, l, err := meta.ReadSuperblock(dev, l)
		if err != nil {
			return err
		}
		edit(&sb, l)
		return meta.WriteSuperblock(dev, l, sb)
	})
}

// up starts the node's engine: attached and looking for its peer.
func (n *node) up() {
	n.t.Helper()
	e, err := New(n.cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	n.Engine = e
	if n.open1 != nil {
		e.openDevice = n.open1
	}
	if n.async1 != nil {
		e.openAsync, e.singleCPU = n.async1, true
	}
	if n.outcast1 != nil {
		e.outcast = n.outcast1
	}
	n.t.Cleanup(func() { e.Close() })
	if err := e.Attach(0); err != nil {
		n.t.Fatal(err)
	}
	if err := e.Connect(ConnectOptions{}); err != nil {
		n.t.Fatal(err)
	}
	e.Started()
}

// crash ends the engine as kill -9 would: nothing more is written.
func (n *node) crash() {
	n.Engine.halt()
}

func (n *node) await(what string, cond func(Status) bool) {
	n.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		s := n.Status()
		if cond(s) {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("%s: waited in vain for %s: %+v", n.cfg.Node, what, s)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func isConnected(s Status) bool {
	return s.Conn == drbd.Connected && s.Volumes[0].Conn == drbd.Connected
}

func inSync(s Status) bool {
	return isConnected(s) && s.Volumes[0].Disk == drbd.UpToDate && s.Volumes[0].PeerDisk == drbd.UpToDate
}

// client opens the volume for the rest of the test.
type client struct {
	n       *node
	s       *sink
	release func()
}

func (n *node) open() *client {
	n.t.Helper()
	release, err := n.Volume(0).Open("test")
	if err != nil {
		n.t.Fatal(err)
	}
	return &client{n, newSink(), sync.OnceFunc(release)}
}

func (c *client) submit(op blockdev.Op, off int64, data []byte, length int) *blockdev.Request {
	r := &blockdev.Request{Op: op, Offset: off, Length: uint32(length), Data: data, Sink: c.s}
	c.n.Volume(0).Submit([]*blockdev.Request{r})
	return r
}

func (c *client) write(off int64, data []byte) {
	c.n.t.Helper()
	if err := c.s.wait(c.submit(blockdev.OpWrite, off, data, len(data))); err != nil {
		c.n.t.Fatalf("write at %d: %v", off, err)
	}
}

func (c *client) read(off int64, length int) []byte {
	c.n.t.Helper()
	p := make([]byte, length)
	if err := c.s.wait(c.submit(blockdev.OpRead, off, p, length)); err != nil {
		c.n.t.Fatalf("read at %d: %v", off, err)
	}
	return p
}

func (c *client) flush() {
	c.n.t.Helper()
	if err := c.s.wait(c.submit(blockdev.OpFlush, 0, nil, 0)); err != nil {
		c.n.t.Fatalf("flush: %v", err)
	}
}

func pattern(seed uint64, n int) []byte {
	p := make([]byte, n)
	rng := rand.New(rand.NewPCG(seed, 1))
	for i := 0; i < n; i += 8 {
		v := rng.Uint64()
		for j := 0; j < 8 && i+j < n; j++ {
			p[i+j] = byte(v >> (8 * j))
		}
	}
	return p
}

// diskData is what the node's file holds, without the metadata.
func (n *node) diskData() []byte {
	n.t.Helper()
	b, err := os.ReadFile(n.cfg.Volumes[0].Disk)
	if err != nil {
		n.t.Fatal(err)
	}
	l, err := meta.NewLayout(meta.Internal, 0, testSize, testSize, 1, 8)
	if err != nil {
		n.t.Fatal(err)
	}
	return b[:l.Usable.Bytes()]
}

func assertEqualDisks(t testing.TB, a, b *node) {
	t.Helper()
	if x, y := a.diskData(), b.diskData(); !bytes.Equal(x, y) {
		for i := range x {
			if x[i] != y[i] {
				t.Fatalf("the disks differ from byte %d on", i)
			}
		}
	}
}

// finish ends the client, demotes its node and compares the two disks.
func (c *client) finish(peer *node) {
	c.n.t.Helper()
	c.release()
	if err := c.n.Secondary(); err != nil {
		c.n.t.Fatal(err)
	}
	assertEqualDisks(c.n.t, c.n, peer)
}

// syncedPair is a pair after its first sync, alpha Primary.
func syncedPair(t *testing.T, change func(*Config)) (a, b *node) {
	t.Helper()
	a, b = newPair(t, change)
	a.up()
	b.up()
	a.await("connection", isConnected)
	if err := a.Primary(false); err == nil {
		t.Fatal("a node without UpToDate data was promoted without --force")
	}
	if err := a.Primary(true); err != nil {
		t.Fatal(err)
	}
	a.await("first sync", inSync)
	b.await("first sync", inSync)
	return a, b
}

func TestPairReplicates(t *testing.T) {
	for _, protocol := range []byte{'A', 'B', 'C'} {
		t.Run(string(protocol), func(t *testing.T) {
			a, b := syncedPair(t, func(c *Config) { c.Net.Protocol = protocol })
			c := a.open()
			want := pattern(1, 256<<10)
			for off := int64(0); off < 2<<20; off += int64(len(want)) {
				c.write(off, want)
			}
			c.flush()
			if got := c.read(512<<10, len(want)); !bytes.Equal(got, want) {
				t.Fatal("read back something else")
			}
			if _, err := b.Volume(0).Open("test"); err == nil {
				t.Fatal("a Secondary's export opened")
			}
			if err := a.Secondary(); err == nil {
				t.Fatal("demoted while a client is connected")
			}
			c.finish(b)
			if err := b.Primary(false); err != nil {
				t.Fatal(err)
			}
			if got := b.open().read(512<<10, len(want)); !bytes.Equal(got, want) {
				t.Fatal("the other node has something else")
			}
		})
	}
}

func TestOutageIsResynced(t *testing.T) {
	a, b := syncedPair(t, nil)
	c := a.open()
	c.write(0, pattern(2, 64<<10))
	if err := b.Disconnect(false); err != nil {
		t.Fatal(err)
	}
	c.write(1<<20, pattern(3, 64<<10))
	c.write(3<<20, pattern(4, 4<<10))
	if s := a.Status(); s.Volumes[0].OutOfSyncBytes != 68<<10 {
		t.Fatalf("out of sync %d bytes, want 68 KiB", s.Volumes[0].OutOfSyncBytes)
	}
	if err := b.Connect(ConnectOptions{}); err != nil {
		t.Fatal(err)
	}
	a.await("resync", inSync)
	b.await("resync", inSync)
	c.finish(b)
}

func TestCrashOfThePrimaryIsBounded(t *testing.T) {
	a, b := syncedPair(t, nil)
	c := a.open()
	for i := range 32 {
		c.write(int64(i)*8192, pattern(uint64(i), 4096))
	}
	a.crash()
	b.await("loss of the peer", func(s Status) bool { return s.Conn < drbd.Connected })
	if err := b.Primary(false); err != nil {
		t.Fatal(err)
	}
	d := b.open()
	for i := range 32 {
		if !bytes.Equal(d.read(int64(i)*8192, 4096), pattern(uint64(i), 4096)) {
			t.Fatalf("acknowledged write %d is lost", i)
		}
	}
	d.write(12<<20, pattern(99, 4096))
	a.up()
	a.await("resync", inSync)
	if s := a.Status(); s.Role != drbd.Secondary {
		t.Fatalf("the crashed node is %v although its peer took over", s.Role)
	}
	b.await("resync", inSync)
	d.finish(a)
}

func TestRestartedPrimaryGoesOn(t *testing.T) {
	a, b := syncedPair(t, nil)
	c := a.open()
	c.write(0, pattern(1, 4096))
	a.crash()
	b.await("loss of the peer", func(s Status) bool { return s.Conn < drbd.Connected })
	a.up()
	a.await("role taken up again", func(s Status) bool { return s.Role == drbd.Primary && s.WaitsToResume == "" })
	a.await("resync", inSync)
	if !bytes.Equal(a.open().read(0, 4096), pattern(1, 4096)) {
		t.Fatal("acknowledged write is lost")
	}
}

func TestSplitBrainEndsStandAlone(t *testing.T) {
	a, b := syncedPair(t, nil)
	if err := b.Disconnect(false); err != nil {
		t.Fatal(err)
	}
	a.await("loss of the peer", func(s Status) bool { return s.Conn < drbd.Connected })
	c := a.open()
	c.write(0, pattern(1, 4096))
	if err := b.Primary(false); err != nil {
		t.Fatal(err)
	}
	d := b.open()
	d.write(4096, pattern(2, 4096))
	d.release()
	if err := b.Secondary(); err != nil {
		t.Fatal(err)
	}
	if err := b.Connect(ConnectOptions{}); err != nil {
		t.Fatal(err)
	}
	a.await("StandAlone", func(s Status) bool { return s.Conn == drbd.StandAlone && s.SplitBrain != "" })
	b.await("StandAlone", func(s Status) bool { return s.Conn == drbd.StandAlone && s.SplitBrain != "" })
	if err := a.Connect(ConnectOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := b.Connect(ConnectOptions{DiscardMyData: true}); err != nil {
		t.Fatal(err)
	}
	a.await("resync", inSync)
	b.await("resync", inSync)
	c.finish(b)
	if !bytes.Equal(a.diskData()[:4096], pattern(1, 4096)) {
		t.Fatal("the victim's data won")
	}
}

func TestDetachedPrimaryServesFromThePeer(t *testing.T) {
	a, b := syncedPair(t, nil)
	c := a.open()
	c.write(0, pattern(1, 8192))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := a.Detach(ctx, 0, false); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(c.read(0, 8192), pattern(1, 8192)) {
		t.Fatal("read from the peer returned something else")
	}
	c.write(1<<20, pattern(2, 8192))
	c.flush()
	if err := a.Attach(0); err != nil {
		t.Fatal(err)
	}
	a.await("resync after attach", inSync)
	b.await("resync after attach", inSync)
	if !bytes.Equal(c.read(1<<20, 8192), pattern(2, 8192)) {
		t.Fatal("read after attach returned something else")
	}
	c.finish(b)
}

func TestTrimAndZeroesAreReplicated(t *testing.T) {
	a, b := syncedPair(t, nil)
	c := a.open()
	c.write(0, pattern(1, 1<<20))
	if err := c.s.wait(c.submit(blockdev.OpTrim, 64<<10, nil, 128<<10)); err != nil {
		t.Fatal(err)
	}
	if err := c.s.wait(c.submit(blockdev.OpZero, 512<<10, nil, 128<<10)); err != nil {
		t.Fatal(err)
	}
	c.flush()
	if !bytes.Equal(c.read(64<<10, 128<<10), make([]byte, 128<<10)) {
		t.Fatal("trimmed range does not read as zeroes")
	}
	c.finish(b)
}

func TestInvalidateSyncsEverything(t *testing.T) {
	a, b := syncedPair(t, nil)
	c := a.open()
	c.write(0, pattern(5, 1<<20))
	if err := b.Invalidate(0); err != nil {
		t.Fatal(err)
	}
	c.write(2<<20, pattern(6, 64<<10)) // during the sync
	b.await("sync", inSync)
	a.await("sync", inSync)
	c.finish(b)
}

func TestSecretMismatchIsFinal(t *testing.T) {
	secret := "one"
	a, b := newPair(t, func(c *Config) {
		c.Net.CramHMACAlg, c.Net.SharedSecret = "sha256", secret
		secret = "two"
	})
	a.up()
	b.up()
	a.await("StandAlone", func(s Status) bool { return s.Conn == drbd.StandAlone && s.LastError != "" })
	b.await("StandAlone", func(s Status) bool { return s.Conn == drbd.StandAlone && s.LastError != "" })
}
