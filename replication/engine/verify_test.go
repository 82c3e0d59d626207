package engine

import (
	"bytes"
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// A byte of the Secondary's disk changes while nobody looks. The verify finds
// exactly its block, while clients write, and every digest on the wire is right.
func TestVerifyFindsWhatNobodyWrote(t *testing.T) {
	a, b := syncedPair(t, func(c *Config) { c.Net.VerifyAlg, c.Net.DataIntegrityAlg = "crc32c", "sha256" })
	c := a.open()
	c.write(0, pattern(7, 1<<20))
	c.flush()
	damage(t, b, 77*4096+5)
	stop := make(chan struct{})
	wrote := make(chan int)
	go func() {
		n := 0
		defer func() { wrote <- n }()
		for ; ; n++ {
			select {
			case <-stop:
				return
			default:
				c.write(int64(100+n%700)*4096, pattern(uint64(n), 4096))
			}
		}
	}()
	if err := b.Verify(0, 0, 0); err != nil {
		t.Fatal(err)
	}
	verified := func(s Status) bool { v := s.volume(0); return v.Conn == drbd.Connected && v.OutOfSyncBytes == 4096 }
	a.await("end of the verify", verified)
	b.await("end of the verify", verified)
	close(stop)
	if n := <-wrote; n == 0 {
		t.Error("no write while the copies are compared")
	}
	c.release()
	if err := b.Verify(0, 78*8, 1000); err != nil {
		t.Fatal(err)
	}
	a.await("end of the second verify", verified) // nothing else differs
	if err := a.InvalidateRemote(0); err != nil {
		t.Fatal(err)
	}
	a.await("resync", inSync)
	b.await("resync", inSync)
	if err := a.Secondary(); err != nil {
		t.Fatal(err)
	}
	assertEqualDisks(t, a, b)
}

// damage flips a byte of a node's disk behind its back.
func damage(t *testing.T, n *node, off int64) {
	t.Helper()
	f, err := os.OpenFile(n.cfg.Volumes[0].Disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var x [1]byte
	if _, err := f.ReadAt(x[:], off); err != nil {
		t.Fatal(err)
	}
	x[0] ^= 1
	if _, err := f.WriteAt(x[:], off); err != nil {
		t.Fatal(err)
	}
}

func TestVerifyWithoutAlgorithm(t *testing.T) {
	a, _ := syncedPair(t, nil)
	err := a.Verify(0, 0, 0)
	var refused *replication.StateError
	if !errors.As(err, &refused) || refused.Code != replication.SSNoVerifyAlg {
		t.Errorf("got %v, want %v", err, replication.SSNoVerifyAlg)
	}
}

// What an algorithm's name that nobody knows gets.
func TestUnknownAlgorithm(t *testing.T) {
	a, _ := newPair(t, nil)
	for _, set := range []func(*replication.NetOptions){
		func(n *replication.NetOptions) { n.DataIntegrityAlg = "crc32" },
		func(n *replication.NetOptions) { n.VerifyAlg = "crc32" },
		func(n *replication.NetOptions) { n.CsumsAlg = "crc32" },
	} {
		cfg := a.cfg
		set(&cfg.Net)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), `"crc32": not supported, take crc32c`) {
			t.Errorf("got %v", err)
		}
	}
}

// Damaged data are told from sound ones, by the digest that the sender has put
// in front of the copy that it sent.
func TestIntegrity(t *testing.T) {
	from, to := tcpPair(t)
	o, err := newOut(&sock{TCPConn: from}, func() patience { return patience{} })
	if err != nil {
		t.Fatal(err)
	}
	o.onSent = func(uint64, bool) {}
	data := pattern(3, 8192)
	const sumSize = 32
	head := drbd.AppendHeader100(nil, drbd.Header{Command: drbd.CmdData, Length: uint32(24 + sumSize + len(data))})
	head = append(drbd.Data{Sector: 24}.Append(head), make([]byte, sumSize)...)
	o.file(head, data, "sha256")
	want := bytes.Clone(data)
	clear(data) // the caller's memory may change once it is filed
	o.flush()
	var in integrity
	protocol := drbd.ProtocolPacket{Protocol: drbd.ProtocolC, IntegrityAlg: "sha256"}.Append(nil)
	if err := in.observe(drbd.Header{Command: drbd.CmdProtocol}, protocol); err != nil || in.sumSize != sumSize {
		t.Fatalf("digest of %d bytes, %v", in.sumSize, err)
	}
	got := make([]byte, len(head)+len(data))
	if _, err := io.ReadFull(to, got); err != nil {
		t.Fatal(err)
	}
	copy(in.want[:], got[len(head)-sumSize:])
	p := &packet{header: drbd.Header{Command: drbd.CmdData}, fixed: got[drbd.HeaderSize100:][:24], data: got[len(head):]}
	if err := in.check(p); err != nil || !bytes.Equal(p.data, want) {
		t.Fatalf("sound data: %v", err)
	}
	p.data[4711] ^= 4
	err = in.check(p)
	if reasonOf(err, drbd.BrokenPipe) != drbd.ProtocolFailure || !strings.Contains(err.Error(), "P_DATA: sha256 digest of 8192 bytes at sector 24") {
		t.Errorf("damaged data: %v", err)
	}
}

// BenchmarkIntegrity is the cost of data-integrity-alg for a write of 4 KiB at
// depth 1, both nodes in one process.
func BenchmarkIntegrity(b *testing.B) {
	for _, alg := range []string{"", "crc32c", "sha1", "sha256"} {
		b.Run("alg="+alg, func(b *testing.B) {
			x, y := newPair(b, func(c *Config) { c.Net.DataIntegrityAlg = alg })
			x.up()
			y.up()
			x.await("connection", isConnected)
			if err := x.Primary(true); err != nil {
				b.Fatal(err)
			}
			x.await("first sync", inSync)
			c := x.open()
			data := blockdev.AlignedBuffer(4096)
			b.SetBytes(int64(len(data)))
			for i := 0; b.Loop(); i++ {
				c.write(int64(i%2000)*4096, data)
			}
		})
	}
}

// BenchmarkVerify is an online verify of a whole volume, both nodes in one process.
func BenchmarkVerify(b *testing.B) {
	x, y := newPair(b, func(c *Config) { c.Net.VerifyAlg, c.Net.MaxBuffers = "crc32c", 8000 })
	x.up()
	y.up()
	x.await("connection", isConnected)
	if err := x.Primary(true); err != nil {
		b.Fatal(err)
	}
	x.await("first sync", inSync)
	y.await("first sync", inSync)
	b.SetBytes(x.Volume(0).Size())
	for b.Loop() {
		if err := y.Verify(0, 0, 0); err != nil {
			b.Fatal(err)
		}
		for isVerifying := true; isVerifying; {
			s := y.Status()
			isVerifying = s.volume(0).Conn == drbd.VerifyS
			runtime.Gosched()
		}
	}
}

// With data-integrity-alg there is no P_ZEROES; zeroes arrive all the same, also
// those that are not to be unmapped.
func TestZeroesWithIntegrity(t *testing.T) {
	a, b := syncedPair(t, func(c *Config) { c.Net.DataIntegrityAlg = "md5" })
	c := a.open()
	c.write(0, pattern(1, 1<<20))
	for i, noUnmap := range []bool{false, true} {
		r := &blockdev.Request{Op: blockdev.OpZero, Offset: int64(64+256*i) << 10, Length: 128 << 10, NoUnmap: noUnmap, Sink: c.s}
		a.Volume(0).Submit([]*blockdev.Request{r})
		if err := c.s.wait(r); err != nil {
			t.Errorf("zeroes, not to be unmapped %v: %v", noUnmap, err)
		}
		if !isZero(c.read(r.Offset, int(r.Length))) {
			t.Errorf("zeroes, not to be unmapped %v: read back something else", noUnmap)
		}
	}
	c.finish(b)
}
