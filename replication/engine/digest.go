package engine

import (
	"bytes"
	"fmt"
	"hash"
	"sync"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// look is what the core wants to know of data that are read for it: a digest,
// or whether they are nothing but zeroes. The worker that reads finds it out,
// so that nothing is hashed under the resource's lock.
type look struct {
	digester
	wantZero bool
	allZero  bool
}

// at looks at the data.
func (l *look) at(data []byte) {
	if l.h != nil {
		l.digest(data)
	}
	if l.wantZero {
		l.allZero = isZero(data)
	}
}

// lookFor is what the core wants of a read for the peer, nil if nothing.
func (e *Engine) lookFor(a *replication.Action) *look {
	if a.DigestAlg == "" && !a.WantZero {
		return nil
	}
	l := e.looks.get(a.DigestAlg)
	l.wantZero = a.WantZero
	return l
}

// digester is the state of a hash and its last result, for one user at a time.
type digester struct {
	alg  string
	h    hash.Hash // nil if alg is ""
	size int       // bytes of sum in use
	sum  [drbd.MaxDigestSize]byte
}

// set makes d a digester of alg. The configuration and the handshake let no
// unknown name pass.
func (d *digester) set(alg string) {
	if err := d.try(alg); err != nil {
		panic(fmt.Sprintf("engine: %v", err))
	}
}

// try is set for a name that nobody has looked at yet.
func (d *digester) try(alg string) error {
	if d.alg == alg {
		return nil
	}
	d.alg, d.h = alg, nil
	if alg == "" {
		return nil
	}
	h, err := drbd.NewDigest(alg)
	d.h = h
	return err
}

// digest hashes data into sum[:size].
func (d *digester) digest(data []byte) {
	d.h.Reset()
	d.h.Write(data)
	d.size = len(d.h.Sum(d.sum[:0]))
}

// looks keeps idle ones, with their hash states.
type looks struct {
	mu   sync.Mutex
	idle []*look
}

// looksIdle is as many as there are workers of two volumes.
const looksIdle = 2 * diskWorkers

func (s *looks) get(alg string) *look {
	s.mu.Lock()
	var l *look
	if n := len(s.idle); n > 0 {
		l = s.idle[n-1]
		s.idle = s.idle[:n-1]
	}
	s.mu.Unlock()
	if l == nil {
		l = new(look)
	}
	l.set(alg)
	l.size, l.wantZero, l.allZero = 0, false, false
	return l
}

func (s *looks) put(l *look) {
	if l == nil {
		return
	}
	s.mu.Lock()
	if len(s.idle) < looksIdle {
		s.idle = append(s.idle, l)
	}
	s.mu.Unlock()
}

var zeroes [4096]byte

// isZero reports whether b is nothing but zeroes.
func isZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeroes))
		if !bytes.Equal(b[:n], zeroes[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}
