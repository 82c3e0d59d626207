package control

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// FuzzFrame: no stream of frames makes the decoders panic or take more memory than
// a small multiple of what came, and what is decoded encodes to the same again.
func FuzzFrame(f *testing.F) {
	beat := beatHeader{seq: 7, stamp: 1, echo: 2, held: 3, version: 4, hasPayload: true}.append(nil)
	request := requestHeader{id: 9, limit: time.Second, method: "status"}.append(nil)
	f.Add(appendFrame(nil, frameBeat, beat, []byte("payload")))
	f.Add(appendFrame(nil, frameRequest, request, []byte("{}")))
	f.Add(appendFrame(appendFrame(nil, frameAnswer, make([]byte, 9), []byte("x")), framePart, make([]byte, 8)))
	f.Add(appendFrame(nil, frameHello, []byte(`{"min":1,"max":2,"node":"a","session":"s"}`)))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 2})
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := bytes.NewReader(stream)
		var buf []byte
		for {
			kind, body, err := readFrame(r, buf, maxFrame)
			if err != nil {
				var wrong *ProtocolError
				if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.As(err, &wrong) {
					t.Fatalf("error %v", err)
				}
				return
			}
			if cap(body) > 4*len(stream)+128<<10 {
				t.Fatalf("%d bytes were taken for a stream of %d", cap(body), len(stream))
			}
			buf = body
			checkFrame(t, kind, body)
		}
	})
}

func checkFrame(t *testing.T, kind frameKind, body []byte) {
	switch kind {
	case frameBeat:
		if h, payload, err := decodeBeat(body); err == nil && !bytes.Equal(append(h.append(nil), payload...), body) {
			t.Errorf("heartbeat %+v is not what was read", h)
		}
	case frameRequest:
		h, rest, err := decodeRequest(body)
		if err == nil && (h.method == "" || len(h.method) > maxMethod || !bytes.HasSuffix(body, rest)) {
			t.Errorf("request %+v", h)
		}
	case framePart, frameAnswer:
		if _, failed, rest, err := decodeReply(kind, body); err == nil && (len(rest) > MaxBody || failed && kind == framePart) {
			t.Errorf("answer of %d bytes", len(rest))
		}
	case frameHello:
		if h, err := decodeHello(body); err == nil && (h.Node == "" || h.Min < 1 || h.Max < h.Min) {
			t.Errorf("greeting %+v", h)
		}
	default:
	}
}

// FuzzToken: a token is what String made, or is refused with a sentence.
func FuzzToken(f *testing.F) {
	f.Add(Token{
		Cluster: "c", ClusterID: "i", Node: "n", Addresses: []netip.AddrPort{netip.MustParseAddrPort("[fd00::1]:7790")},
		CA: Fingerprint(nil), ID: strings.Repeat("0", 16), Secret: strings.Repeat("a", 32), Expires: time.Unix(1, 0).UTC(),
	}.String())
	f.Add("pollux1.e30")
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := ParseToken(text)
		if err != nil {
			if !strings.Contains(err.Error(), "copy the whole line") {
				t.Errorf("error %v", err)
			}
			return
		}
		again, err := ParseToken(tok.String())
		if err != nil || again.String() != tok.String() {
			t.Errorf("%+v was read back as %+v, %v", tok, again, err)
		}
	})
}
