package load

import (
	"math/rand/v2"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/bench/result"
)

// places says where each operation of one connection goes, and whether it
// reads. It stays inside its range, on multiples of the block from its start.
type places struct {
	rng         *rand.Rand
	random      bool
	readPercent int // 0 to 100
	base        int64
	stride      int64
	places      int64 // of the whole range; of this connection's stretch if sequential
	next        int64 // place, if sequential
}

// newPlaces is connection n's view. A sequential workload is as many streams as
// there are connections, each over a stretch of its own, round and round.
func newPlaces(s *Spec, n int) *places {
	w := s.Workload
	p := &places{
		rng: rand.New(rand.NewPCG(s.Seed, uint64(n))), random: w.Pattern == result.PatternRandom,
		base: s.OffsetBytes, stride: s.stride(), places: s.SizeBytes / s.stride(),
	}
	switch w.Op {
	case result.OpRead:
		p.readPercent = 100
	case result.OpMixed:
		p.readPercent = w.ReadPercent
	}
	if !p.random {
		p.places /= int64(w.Connections)
		p.base += int64(n) * p.places * p.stride
	}
	return p
}

// take returns the next operation's offset in bytes.
func (p *places) take() (offset int64, isRead bool) {
	switch {
	case p.readPercent == 100:
		isRead = true
	case p.readPercent > 0:
		isRead = p.rng.IntN(100) < p.readPercent
	}
	at := p.next
	if p.random {
		at = p.rng.Int64N(p.places)
	} else if p.next++; p.next == p.places {
		p.next = 0
	}
	return p.base + at*p.stride, isRead
}

// noiseBytes is how much different payload there is (our own): more than what
// caches of the CPU keep would make the client dearer than the servers.
const noiseBytes = 4 << 20

// payloads hands out noise.
type payloads struct {
	noise []byte // noiseBytes and one block more
}

// newPayloads allocates noise on whole pages, as O_DIRECT wants it; free it
// when nothing uses it any more.
func newPayloads(seed uint64, block int) (*payloads, error) {
	noise, err := unix.Mmap(-1, 0, noiseBytes+block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	key := [32]byte{}
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	_, _ = rand.NewChaCha8(key).Read(noise) // it never fails
	return &payloads{noise: noise}, nil
}

func (p *payloads) free() error { return unix.Munmap(p.noise) }

// cut returns n bytes of noise, at a multiple of 4 KiB in memory.
func (p *payloads) cut(rng *rand.Rand, n int) []byte {
	at := rng.IntN(noiseBytes/4096+1) * 4096
	return p.noise[at : at+n : at+n]
}
