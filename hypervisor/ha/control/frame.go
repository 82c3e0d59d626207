package control

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"
)

// Bounds of what comes over a connection. Our own: a Beat of 200 services is some
// 40 KiB, the answer to a status request a few times that.
const (
	MaxBody      = 1 << 20 // of a request, of each part of an answer, of a payload
	maxFrame     = MaxBody + 256
	maxHello     = 16 << 10  // of any frame until the peer has said who it is
	maxClusterFn = 256 << 10 // of cluster.toml; conf has the same bound
	maxMethod    = 32
	headerSize   = 5
)

// A frame is a length of four bytes (of what follows behind the kind, big-endian),
// the kind, and that many bytes. Numbers in it are big-endian.
type frameKind byte

const (
	frameHello   frameKind = 1 // JSON of hello, the first one of each side
	frameBeat    frameKind = 2 // beatHeader, then the payload if it is a new one
	frameRequest frameKind = 3 // requestHeader, then the body
	framePart    frameKind = 4 // number of the request (8), then the body: more will come
	frameAnswer  frameKind = 5 // number of the request (8), 0 or 1 for an error (1), then the body or the error's text
	frameCluster frameKind = 6 // a newer cluster.toml
	frameBye     frameKind = 7 // why the sender closes the connection
)

// A ProtocolError is a peer that sends what it must not. The connection ends.
type ProtocolError struct{ What string }

func (e *ProtocolError) Error() string { return "breaks the protocol: " + e.What }

func protocolErrorf(format string, args ...any) error {
	return &ProtocolError{What: fmt.Sprintf(format, args...)}
}

// appendFrame appends a frame with the parts of its body.
func appendFrame(dst []byte, kind frameKind, body ...[]byte) []byte {
	n := 0
	for _, b := range body {
		n += len(b)
	}
	dst = append(binary.BigEndian.AppendUint32(dst, uint32(n)), byte(kind))
	for _, b := range body {
		dst = append(dst, b...)
	}
	return dst
}

// readFrame reads a frame of at most limit bytes; buf is used if it is large
// enough. The memory that is taken is never more than a small multiple of what came.
func readFrame(r io.Reader, buf []byte, limit int) (frameKind, []byte, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n, kind := int(binary.BigEndian.Uint32(h[:])), frameKind(h[4])
	if n > limit {
		return 0, nil, protocolErrorf("frame %d of %d bytes, at most %d are allowed", kind, n, limit)
	}
	const step = 64 << 10
	buf = buf[:0]
	for len(buf) < n {
		old := len(buf)
		if add := min(n-old, step); cap(buf)-old < add {
			grown := make([]byte, old, max(2*cap(buf), old+add))
			copy(grown, buf)
			buf = grown
		}
		buf = buf[:min(n, cap(buf))]
		if _, err := io.ReadFull(r, buf[old:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, nil, err
		}
	}
	return kind, buf, nil
}

// beatHeader leads each heartbeat.
//
//	0  sequence number of the beat on this link, grows by one each keepalive
//	8  sender's clock in ns when it was made
//	16 receiver's clock in its newest beat, 0 if none came; with
//	24 the ns for which the sender has had that
//	32 version of the payload
//	40 1 if the payload follows
type beatHeader struct {
	seq, stamp, echo, held, version uint64
	hasPayload                      bool
}

const beatSize = 41

func (h beatHeader) append(dst []byte) []byte {
	for _, v := range []uint64{h.seq, h.stamp, h.echo, h.held, h.version} {
		dst = binary.BigEndian.AppendUint64(dst, v)
	}
	if h.hasPayload {
		return append(dst, 1)
	}
	return append(dst, 0)
}

func decodeBeat(b []byte) (beatHeader, []byte, error) {
	if len(b) < beatSize || b[40] > 1 {
		return beatHeader{}, nil, protocolErrorf("heartbeat of %d bytes", len(b))
	}
	u := func(n int) uint64 { return binary.BigEndian.Uint64(b[n:]) }
	h := beatHeader{seq: u(0), stamp: u(8), echo: u(16), held: u(24), version: u(32), hasPayload: b[40] == 1}
	if !h.hasPayload && len(b) > beatSize {
		return h, nil, protocolErrorf("heartbeat with %d bytes behind it", len(b)-beatSize)
	}
	if len(b)-beatSize > MaxBody {
		return h, nil, protocolErrorf("heartbeat with a payload of %d bytes, at most %d are allowed", len(b)-beatSize, MaxBody)
	}
	return h, b[beatSize:], nil
}

// requestHeader leads each request: number (8), time limit in ms (4), length of
// the method's name (1), the name.
type requestHeader struct {
	id     uint64
	limit  time.Duration
	method string
}

func (h requestHeader) append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, h.id)
	dst = binary.BigEndian.AppendUint32(dst, uint32(min(max(h.limit.Milliseconds(), 1), 1<<31)))
	return append(append(dst, byte(len(h.method))), h.method...)
}

func decodeRequest(b []byte) (requestHeader, []byte, error) {
	if len(b) < 13 {
		return requestHeader{}, nil, protocolErrorf("request of %d bytes", len(b))
	}
	n := int(b[12])
	if n == 0 || n > maxMethod || len(b) < 13+n {
		return requestHeader{}, nil, protocolErrorf("request with a name of %d bytes", n)
	}
	h := requestHeader{
		id:     binary.BigEndian.Uint64(b),
		limit:  time.Duration(binary.BigEndian.Uint32(b[8:])) * time.Millisecond,
		method: string(b[13 : 13+n]),
	}
	if len(b)-13-n > MaxBody {
		return h, nil, protocolErrorf("request %q of %d bytes, at most %d are allowed", h.method, len(b)-13-n, MaxBody)
	}
	return h, b[13+n:], nil
}

// decodeReply reads the part of an answer (kind framePart) or its end.
func decodeReply(kind frameKind, b []byte) (id uint64, failed bool, body []byte, err error) {
	head := 8
	if kind == frameAnswer {
		head = 9
	}
	if len(b) < head || len(b)-head > MaxBody || kind == frameAnswer && b[8] > 1 {
		return 0, false, nil, protocolErrorf("answer of %d bytes", len(b))
	}
	return binary.BigEndian.Uint64(b), kind == frameAnswer && b[8] == 1, b[head:], nil
}
