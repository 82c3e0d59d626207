package drbd_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/protocol/drbd/wiretest"
)

// A stream is what one direction of a data socket has told so far.
type stream struct {
	features  *drbd.Features
	integrity string
	challenge []byte
}

// A replay follows the packets of one capture and knows what decides their form.
type replay struct {
	t       *testing.T
	events  []wiretest.Event
	streams map[string]*stream // by connection and sender
	counts  map[drbd.Command]int
	rules   map[string]int // how often each rule was tried
	nodes   map[string]*nodeStory
	session *session
	command map[string]string // the last one on each node
}

func (r *replay) stream(conn int, from string) *stream {
	key := from + string(rune('0'+conn))
	if r.streams[key] == nil {
		r.streams[key] = &stream{}
	}
	return r.streams[key]
}

// agreed is the outcome of the feature exchange on a data socket; before it, and
// on meta sockets, the newest version without features.
func (r *replay) agreed(e wiretest.Event) (version int, flags uint32) {
	from, to := r.stream(e.Conn, e.From).features, r.stream(e.Conn, e.To).features
	if from == nil || to == nil {
		return drbd.MaxVersion, 0
	}
	version, flags, err := drbd.Agree(*from, *to)
	if err != nil {
		r.t.Fatalf("line %d: %v", e.Line, err)
	}
	return version, flags
}

// TestWire decodes every packet of every capture, encodes it again byte for byte
// and checks what it says: against the rules of drbd84-protocol, earlier packets,
// the configuration, what the operator did, and what the nodes say of themselves.
func TestWire(t *testing.T) {
	total, rules := make(map[drbd.Command]int), make(map[string]int)
	for _, name := range wiretest.Names(t) {
		t.Run(name, func(t *testing.T) {
			r := &replay{
				t: t, events: wiretest.Load(t, name), streams: map[string]*stream{}, counts: total, rules: rules,
				nodes: map[string]*nodeStory{"A": newNodeStory(), "B": newNodeStory()}, session: newSession(), command: map[string]string{},
			}
			for _, e := range r.events {
				r.event(e)
			}
			r.ended()
		})
	}
	for _, name := range ruleNames {
		if rules[name] == 0 {
			t.Errorf("no packet was held against the rule %q", name)
		}
		delete(rules, name)
	}
	for name := range rules {
		t.Errorf("the rule %q is not in the list", name)
	}
	for _, cmd := range []drbd.Command{ // no capture has those: drbd84-protocol, README of the captures
		drbd.CmdWSame, drbd.CmdDelayProbe, drbd.CmdNegDReply, drbd.CmdNegRSDReply, drbd.CmdRSCancel,
	} {
		if total[cmd] != 0 {
			t.Errorf("%d packets %v: the list of what is missing is out of date", total[cmd], cmd)
		}
		total[cmd] = 1
	}
	total[drbd.CmdTerm] = 1 // no DRBD sends it
	for cmd := range drbd.CmdConnectionFeatures {
		if drbd.FixedLen(cmd) >= 0 && total[cmd] == 0 {
			t.Errorf("no capture has a %v", cmd)
		}
	}
}

func (r *replay) packet(e wiretest.Event) {
	r.t.Helper()
	h, err := e.DecodeHeader()
	if err != nil {
		r.t.Fatalf("line %d: %v", e.Line, err)
	}
	r.counts[h.Command]++
	if int(h.Length) != e.Length {
		r.t.Errorf("line %d: %v announces %d bytes, has %d", e.Line, h.Command, h.Length, e.Length)
	}
	again := drbd.AppendHeader100(nil, h)
	if len(e.Header) == drbd.HeaderSize80 {
		again = drbd.AppendHeader80(nil, h.Command, e.Length)
	}
	if !bytes.Equal(again, e.Header) {
		r.t.Errorf("line %d: header %x encodes as %x", e.Line, e.Header, again)
	}
	version, flags := r.agreed(e)
	wsame := flags&drbd.FeatureWSame != 0
	if version >= drbd.MinVersion {
		if err := drbd.CheckLength(h, wsame, e.Socket); err != nil {
			r.t.Errorf("line %d: %v", e.Line, err)
		}
	}
	p, rest, err := drbd.Decode(h, e.Payload, wsame)
	if err != nil {
		r.t.Errorf("line %d: %v", e.Line, err)
		return
	}
	if again := append(p.Append(nil), rest...); !bytes.Equal(again, e.Payload) {
		r.t.Errorf("line %d: %v\n%x encodes as\n%x", e.Line, h.Command, e.Payload, again)
	}
	r.meaning(e, h, p, rest)
}

// meaning checks what a packet says in connection with earlier ones.
func (r *replay) meaning(e wiretest.Event, h drbd.Header, p drbd.Packet, rest []byte) {
	s := r.stream(e.Conn, e.From)
	switch h.Command { // the others stand for themselves
	case drbd.CmdConnectionFeatures:
		// The last greeting of v01-versions finds no common version.
		if f := p.(*drbd.Features); f.Max >= 86 {
			s.features = f
		}
	case drbd.CmdProtocol, drbd.CmdProtocolUpdate:
		s.integrity = p.(*drbd.ProtocolPacket).IntegrityAlg
	case drbd.CmdAuthChallenge:
		s.challenge = rest
	case drbd.CmdAuthResponse:
		r.auth(e, rest)
	case drbd.CmdData, drbd.CmdDataReply, drbd.CmdRSDataReply:
		rest = r.data(e, h, s.integrity, rest)
	}
	r.greetingOf(e, h, p)
	r.traffic(e, h, p, rest)
}

// data checks the digest of what a packet brings, and returns the data alone.
func (r *replay) data(e wiretest.Event, h drbd.Header, alg string, rest []byte) []byte {
	n := 0
	if alg != "" {
		d, err := drbd.NewDigest(alg)
		if err != nil {
			r.t.Fatal(err)
		}
		n = d.Size()
		d.Write(rest[n:])
		if got := d.Sum(nil); e.Whole() && !bytes.Equal(got, rest[:n]) {
			r.t.Errorf("line %d: %s of the data is %x, the packet has %x", e.Line, alg, got, rest[:n])
		}
	}
	if size, err := drbd.DataSize(h, n); err != nil || int(size) != e.Length-24-n {
		r.t.Errorf("line %d: data size %d, %v, want %d", e.Line, size, err, e.Length-24-n)
	}
	return rest[n:]
}

func (r *replay) auth(e wiretest.Event, response []byte) {
	alg, secret := wiretest.Option(r.events, "cram-hmac-alg"), wiretest.Option(r.events, "shared-secret")
	got, err := drbd.CheckAuthResponse(alg, secret, r.stream(e.Conn, e.To).challenge, response)
	want := drbd.AuthOK
	if secret != "FooFunFactory" {
		r.t.Fatalf("line %d: the capture's secret is %q", e.Line, secret)
	}
	if e.From == "B" && r.t.Name() == "TestWire/s11-auth-wrong" {
		want = drbd.AuthRefused // B's secret is BarFunFactory
	}
	if got != want || err != nil {
		r.t.Errorf("line %d: verdict %d, %v, want %d", e.Line, got, err, want)
	}
}

// TestWireBitmaps receives every bitmap of every capture, checks it against the
// number of bits that its sender had announced and sends it again: our packets
// are the kernel's, byte for byte.
func TestWireBitmaps(t *testing.T) {
	bitmaps := make(map[string]int)
	for _, name := range wiretest.Names(t) {
		t.Run(name, func(t *testing.T) {
			events := wiretest.Load(t, name)
			useRLE := wiretest.Option(events, "use-rle") != "no"
			size := make(map[uint16]drbd.Sector)
			inFlight := make(map[[2]any]*received)
			for _, e := range events {
				if e.Kind != wiretest.Packet || !e.Whole() {
					continue
				}
				h, err := e.DecodeHeader()
				if err != nil {
					t.Fatal(err)
				}
				switch h.Command { // only these matter here
				case drbd.CmdSizes:
					var s drbd.Sizes
					if err := s.Decode(e.Payload); err != nil {
						t.Fatal(err)
					}
					if s.CSize != 0 {
						size[h.Volume] = s.CSize
					}
				case drbd.CmdBitmap, drbd.CmdCompressedBitmap:
					key := [2]any{e.From, h.Volume}
					if inFlight[key] == nil {
						inFlight[key] = newReceived((uint64(size[h.Volume]) + 7) / 8)
					}
					if inFlight[key].packet(t, e, h.Command) {
						inFlight[key].resend(t, e.Line, useRLE)
						delete(inFlight, key)
						bitmaps[name]++
					}
				}
			}
			if len(inFlight) != 0 {
				t.Errorf("%d bitmaps are not complete", len(inFlight))
			}
		})
	}
	names := []string{
		"s05-bitmap-plain-ab", "s05-bitmap-plain-ba", "s05-bitmap-rle-ab", "s05-bitmap-rle-ba",
		"s06-bigbitmap-mixed", "s06-bigbitmap-plain", "s06-bigbitmap-rle",
	}
	for _, name := range names {
		if bitmaps[name] < 2 {
			t.Errorf("%s: %d bitmaps, want one in each direction", name, bitmaps[name])
		}
	}
}

// received is a bitmap of a capture and the packets that brought it.
type received struct {
	bits     *naiveBits
	receiver *drbd.BitmapReceiver
	packets  []bitmapPacket
}

func newReceived(n uint64) *received {
	b := newNaiveBits(n)
	return &received{bits: b, receiver: drbd.NewBitmapReceiver(b)}
}

func (r *received) packet(t *testing.T, e wiretest.Event, cmd drbd.Command) (done bool) {
	r.packets = append(r.packets, bitmapPacket{cmd, e.Payload})
	done, err := r.receiver.Receive(cmd, e.Payload)
	if err != nil {
		t.Fatalf("line %d: %v", e.Line, err)
	}
	return done
}

func (r *received) resend(t *testing.T, line int, useRLE bool) {
	got := sendAll(r.bits, useRLE)
	same := func(a, b bitmapPacket) bool { return a.cmd == b.cmd && bytes.Equal(a.payload, b.payload) }
	if !slices.EqualFunc(got, r.packets, same) {
		t.Errorf("line %d: the bitmap is sent as\n%v\nthe kernel's packets are\n%v", line, got, r.packets)
	}
}
