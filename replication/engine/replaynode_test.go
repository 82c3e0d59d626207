package engine

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/protocol/drbd/wiretest"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// captured is a capture's configuration for one of its nodes.
func captured(t *testing.T, events []wiretest.Event, crash bool) Config {
	t.Helper()
	opt := func(name string) string { return wiretest.Option(events, name) }
	head := wiretest.Config(events)
	n := replication.DefaultNetOptions()
	if i := strings.LastIndex(head, " protocol "); i >= 0 {
		n.Protocol = head[i+10] // the last one counts
	}
	n.SockCheckMS = 20
	n.PingTimeoutMS = 3000 // nothing depends on it where no node dies
	if crash {
		n.PingIntMS, n.PingTimeoutMS = 1000, 5000 // the dead node is found by it
	}
	n.UseRLE = opt("use-rle") != "no"
	n.CramHMACAlg, n.SharedSecret = opt("cram-hmac-alg"), opt("shared-secret")
	n.DataIntegrityAlg, n.VerifyAlg, n.CsumsAlg = opt("data-integrity-alg"), opt("verify-alg"), opt("csums-alg")
	n.AllowTwoPrimaries = opt("allow-two-primaries") == "yes"
	policies := map[string]uint32{"": 0, "discard-zero-changes": replication.SBDiscardZeroChanges, "discard-secondary": replication.SBDiscardSecondary}
	n.AfterSB0P, n.AfterSB1P = policies[opt("after-sb-0pri")], policies[opt("after-sb-1pri")]
	if opt("on-congestion") == "pull-ahead" {
		n.OnCongestion, n.CongestionFill = replication.CongestionPullAhead, 128 // 64k
	}
	d := replication.DefaultDiskOptions()
	d.CPlanAhead = 0
	if v := opt("resync-rate"); v != "" {
		d.ResyncRateKiB = rate(t, v)
	}
	if opt("c-min-rate") == "0" {
		d.CMinRateKiB = 0
	}
	if g := opt("rs-discard-granularity"); g != "" {
		v, err := strconv.Atoi(g)
		if err != nil {
			t.Fatal(err)
		}
		d.RSDiscardGranularity = uint32(v)
	}
	level := zerolog.Disabled
	if os.Getenv("REPLAY_LOG") != "" {
		level = zerolog.DebugLevel
	}
	c := Config{
		Resource: "r0", Net: n, BootID: "boot-1",
		Log: zerolog.New(zerolog.ConsoleWriter{Out: os.Stderr, NoColor: true}).Level(level),
	}
	for v := range strings.Count(head, "device /dev/drbd") {
		c.Volumes = append(c.Volumes, VolumeConfig{Number: v, Minor: v, Device: fmt.Sprintf("/dev/drbd%d", v), MetaIndex: -1, Options: d})
	}
	return c
}

func rate(t *testing.T, text string) uint32 {
	t.Helper()
	unit := 1
	if n, ok := strings.CutSuffix(text, "M"); ok {
		unit, text = 1024, n
	}
	v, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("resync-rate: %v", err)
	}
	return uint32(v * unit)
}

// addresses gives a replay two ports of its own. The engine's is the higher one:
// of two data sockets it keeps that which the peer opened.
func (c *Config) addresses(t *testing.T) {
	t.Helper()
	ports := freePorts(t, 2)
	slices.Sort(ports)
	slices.Reverse(ports)
	c.Local = netip.MustParseAddrPort(fmt.Sprintf("127.0.0.1:%d", ports[0]))
	c.Peer = netip.MustParseAddrPort(fmt.Sprintf("127.0.0.1:%d", ports[1]))
}

// A start is what a node's metadata hold when a capture begins.
type start struct {
	uuids   meta.UUIDs
	flags   meta.Flags
	bits    *meta.Bitmap // nil is none
	sectors drbd.Sector  // usable
}

// begin finds out with what a node begins: from its own words before anything
// was done to it, or else from its peer's, since both began alike.
func begin(t *testing.T, events []wiretest.Event, me string, volume uint16) start {
	t.Helper()
	s := start{flags: meta.MDFConsistent | meta.MDFWasUpToDate | meta.MDFALClean}
	known, sizes := false, map[string]drbd.Sector{}
	for _, node := range []string{me, otherNode(me)} {
		touched := false
		for _, e := range events {
			if e.From != node {
				continue
			}
			if e.Kind == wiretest.Command && changesUUIDs(e.Text) {
				touched = true
			}
			gi, ok := wiretest.ParseGI(e.Text)
			if ok && e.Kind == wiretest.Note && uint16(gi.Volume) == volume && !touched && !known {
				known = true
				s.uuids = meta.UUIDs{Current: gi.Current &^ 1, Bitmap: gi.Bitmap, History: gi.History}
				if !gi.Consistent && node == me {
					s.flags = meta.MDFALClean
				}
			}
			if e.Kind != wiretest.Packet {
				continue
			}
			h, err := e.DecodeHeader()
			if err != nil || h.Volume != volume {
				continue
			}
			switch h.Command { // only these say it
			case drbd.CmdUUIDs:
				var u drbd.UUIDs
				if err := u.Decode(e.Payload); err != nil {
					t.Fatal(err)
				}
				if !touched && !known {
					known = true
					s.uuids = meta.UUIDs{Current: u.Current &^ 1, Bitmap: u.Bitmap, History: u.History}
				}
				if touched && !known && u.Bitmap != 0 { // it began a generation, its bitmap UUID is what it had
					known = true
					s.uuids = meta.UUIDs{Current: u.Bitmap &^ 1, History: u.History}
				}
				if node == me && u.DirtyBits > 0 && !touched && s.bits == nil && u.Bitmap != 0 {
					s.bits = firstBitmap(t, events, me, volume, sizes[me])
				}
			case drbd.CmdSizes:
				var z drbd.Sizes
				if err := z.Decode(e.Payload); err != nil {
					t.Fatal(err)
				}
				if sizes[node] == 0 {
					sizes[node] = z.DSize
				}
			}
		}
	}
	if s.sectors = sizes[me]; s.sectors == 0 {
		s.sectors = sizes[otherNode(me)]
	}
	if s.sectors == 0 { // they never come so far
		s.sectors = 16304
	}
	if s.uuids.Current == meta.UUIDJustCreated {
		s.flags = meta.MDFALClean
	}
	return s
}

func otherNode(n string) string {
	if n == "A" {
		return "B"
	}
	return "A"
}

func changesUUIDs(command string) bool {
	for _, w := range []string{"primary", "poke", "new-current", "invalidate"} {
		if strings.Contains(command, w) {
			return true
		}
	}
	return false
}

// firstBitmap is the first bitmap that a node sends.
func firstBitmap(t *testing.T, events []wiretest.Event, node string, volume uint16, size drbd.Sector) *meta.Bitmap {
	t.Helper()
	b := meta.NewBitmap(size)
	r := drbd.NewBitmapReceiver(b)
	for _, e := range events {
		if e.Kind != wiretest.Packet || e.From != node {
			continue
		}
		h, err := e.DecodeHeader()
		if err != nil || h.Volume != volume || h.Command != drbd.CmdBitmap && h.Command != drbd.CmdCompressedBitmap {
			continue
		}
		done, err := r.Receive(h.Command, e.Payload)
		if err != nil {
			t.Fatal(err)
		}
		if done {
			return b
		}
	}
	t.Fatalf("no bitmap of %s in the capture", node)
	return nil
}

// create makes the disk that s describes.
func (s *start) create(t *testing.T, path string) {
	t.Helper()
	size := int64(0)
	for mib := int64(1); ; mib++ {
		l, err := meta.NewLayout(meta.Internal, 0, mib<<20, mib<<20, 1, 8)
		if err == nil && l.Usable >= s.sectors {
			size = mib << 20
			break
		}
	}
	createDisk(t, path, size)
	dev, err := blockdev.Open(path, blockdev.Options{Exclusive: true})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	l, err := meta.NewLayout(meta.Internal, 0, size, size, 1, 8)
	if err != nil {
		t.Fatal(err)
	}
	if l.Usable != s.sectors {
		t.Fatalf("%d MiB give %d sectors, the capture has %d", size>>20, l.Usable, s.sectors)
	}
	sb, _, err := meta.ReadSuperblock(dev, l)
	if err != nil {
		t.Fatal(err)
	}
	if s.uuids.Current != meta.UUIDJustCreated { // else it never was connected
		sb.LASize = s.sectors
	}
	sb.UUIDs, sb.Flags = s.uuids, s.flags
	if err := meta.WriteSuperblock(dev, l, sb); err != nil {
		t.Fatal(err)
	}
	if s.bits == nil {
		return
	}
	var page [meta.BlockSize]byte
	for p := range s.bits.Pages() {
		s.bits.EncodePage(p, page[:])
		if _, err := dev.WriteAt(page[:], l.Bitmap+int64(p)*meta.BlockSize); err != nil {
			t.Fatal(err)
		}
	}
}

// start brings the engine up on its disks, attached and StandAlone.
func (r *replayed) start() {
	e, err := New(r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	if wiretest.Option(r.events, "on-io-error") != "" {
		e.openDevice = func(path string, o blockdev.Options) (blockdev.Device, error) {
			dev, err := blockdev.Open(path, o)
			return &faulty{Device: dev, faults: &r.faults}, err
		}
	}
	r.eng = e
	for _, v := range r.cfg.Volumes {
		if err := e.Attach(v.Number); err != nil {
			r.t.Fatal(err)
		}
	}
	if wiretest.Option(r.events, "fencing") == "resource-only" { // the two have met since the attach: it did not count
		r.cfg.Volumes = slices.Clone(r.cfg.Volumes)
		for i := range r.cfg.Volumes {
			r.cfg.Volumes[i].Options.Fencing = replication.FencingResourceOnly
		}
		if err := e.Reconfigure(r.cfg); err != nil {
			r.t.Fatal(err)
		}
	}
	e.Started()
}

// setUp names the node and its state directory.
func (r *replayed) setUp() {
	dir := r.t.TempDir()
	r.cfg.StateDir = filepath.Join(dir, "state")
	if err := os.Mkdir(r.cfg.StateDir, 0o755); err != nil {
		r.t.Fatal(err)
	}
	r.cfg.Node, r.cfg.PeerName = r.me, otherNode(r.me)
	r.faults.below = 1 << 50
}

// setUpDisk makes the disk of volume i.
func (r *replayed) setUpDisk(i int, s start) {
	v := &r.cfg.Volumes[i]
	v.Disk = filepath.Join(filepath.Dir(r.cfg.StateDir), fmt.Sprintf("%d.img", i))
	s.create(r.t, v.Disk)
	r.image[uint16(v.Number)] = make([]byte, s.sectors.Bytes())
	r.size[uint16(v.Number)] = s.sectors
}

// command gives the engine what the operator gave the kernel; it does not wait
// for the end.
func (r *replayed) command(e wiretest.Event) {
	rows, isPoke := wiretest.Pokes(e.Text)
	if strings.Contains(e.Text, "adjust") && len(r.adjust) > 0 {
		r.adjust[0](&r.cfg.Net)
		r.adjust = r.adjust[1:]
	}
	f := func() error { return r.drbdadm(e.Text) }
	if isPoke {
		r.rows = rows
		f = func() error { return r.poke(rows) }
	}
	done := make(chan error, 1)
	r.running = &running{event: e, done: done}
	go func() { done <- f() }()
}

// drbdadm runs one command of the administrator.
func (r *replayed) drbdadm(text string) error {
	e := r.eng
	words := strings.Fields(text)
	has := func(option string) bool { return strings.Contains(text, option) }
	verb := words[1]
	switch {
	case strings.Contains(words[0], "drbdsetup"):
		return r.options(words)
	case has("dmsetup"):
		r.faults.set(has("error"), has("error"), has("error"))
		return nil
	case has("resize"):
		verb = "resize"
	}
	ctx, cancel := context.WithTimeout(context.Background(), replayTime)
	defer cancel()
	switch verb {
	case "adjust":
		if err := e.Reconfigure(r.cfg); err != nil {
			return err
		}
		return e.Connect(ConnectOptions{})
	case "up", "connect":
		return e.Connect(ConnectOptions{DiscardMyData: has("--discard-my-data"), Tentative: has("--tentative")})
	case "disconnect":
		return e.Disconnect(false)
	case "down":
		return e.Disconnect(false)
	case "primary":
		return e.Primary(has("--force"))
	case "secondary":
		return e.Secondary()
	case "attach":
		return e.Attach(0)
	case "detach":
		return e.Detach(ctx, 0, false)
	case "outdate":
		return e.Outdate()
	case "invalidate":
		return e.Invalidate(0)
	case "invalidate-remote":
		return e.InvalidateRemote(0)
	case "pause-sync":
		return e.PauseSync(0)
	case "resume-sync":
		return e.ResumeSync(0)
	case "verify":
		return e.Verify(0, 0, 0)
	case "new-current-uuid":
		return e.NewCurrentUUID(0, has("--clear-bitmap"))
	case "resize":
		size := uint64(0)
		if has("--size=12M") {
			size = 12 << 11
		}
		return e.Resize(0, size, has("--assume-clean"), false)
	}
	return fmt.Errorf("a replay does not know the command %q", text)
}

// options changes what net-options and disk-options change.
func (r *replayed) options(words []string) error {
	cfg := r.cfg
	cfg.Volumes = append([]VolumeConfig(nil), cfg.Volumes...)
	for _, w := range words {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "--protocol":
			cfg.Net.Protocol = value[0]
		case "--data-integrity-alg":
			cfg.Net.DataIntegrityAlg = value
		case "--verify-alg":
			cfg.Net.VerifyAlg = value
		case "--csums-alg":
			cfg.Net.CsumsAlg = value
		case "--after-sb-0pri":
			cfg.Net.AfterSB0P = replication.SBDiscardZeroChanges
		case "--resync-rate":
			cfg.Volumes[0].Options.ResyncRateKiB = rate(r.t, value)
		}
	}
	r.newCfg = &cfg
	return r.eng.Reconfigure(cfg)
}

// largestWrite is the largestWrite write of the guest's block layer, in bytes.
const largestWrite = 512 << 10

// poke does what the program poke did in the guest: it opens the volume for
// each command, and waits for each row.
func (r *replayed) poke(rows [][]wiretest.Poke) error {
	s := newSink()
	opened := map[int]func(){}
	defer func() {
		for _, release := range opened {
			release()
		}
	}()
	for _, row := range rows {
		var reqs []*blockdev.Request
		for _, p := range row {
			if p.Below {
				if err := r.pokeBelow(p); err != nil {
					return err
				}
				continue
			}
			v := r.eng.Volume(p.Volume)
			if opened[p.Volume] == nil {
				release, err := v.Open("poke")
				if err != nil {
					return err
				}
				opened[p.Volume] = release
			}
			q := &blockdev.Request{Offset: p.Offset, Length: uint32(p.Length), Sink: s}
			switch p.Op {
			case 'w', 'W':
				q.Op, q.FUA, q.Data = blockdev.OpWrite, p.Op == 'W', bytes.Repeat([]byte{p.Fill}, int(p.Length))
				if q.Length > largestWrite { // the guest's kernel cuts it
					half := *q
					half.Length, half.Data = largestWrite, q.Data[:largestWrite]
					q.Offset, q.Length, q.Data = q.Offset+largestWrite, q.Length-largestWrite, q.Data[largestWrite:]
					reqs = append(reqs, &half)
					v.Submit([]*blockdev.Request{&half})
				}
			case 'r':
				q.Op, q.Data = blockdev.OpRead, make([]byte, p.Length)
			case 'f':
				q.Op = blockdev.OpFlush
			case 'd':
				q.Op = blockdev.OpTrim
			case 'z':
				q.Op, q.NoUnmap = blockdev.OpZero, true
			case 'p':
				q.Op = blockdev.OpZero
			}
			reqs = append(reqs, q)
			v.Submit([]*blockdev.Request{q})
		}
		for _, q := range reqs {
			s.wait(q) //nolint:errcheck // poke reports a failure and goes on
		}
	}
	return nil
}

func (r *replayed) pokeBelow(p wiretest.Poke) error {
	f, err := os.OpenFile(r.cfg.Volumes[p.Volume].Disk, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(bytes.Repeat([]byte{p.Fill}, int(p.Length)), p.Offset)
	return err
}
