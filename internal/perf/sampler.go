package perf

// Tuning of our own.
const (
	// gap is how often, in ns, one client's requests of one kind are looked at,
	// unless that is less than one of every. A sample costs a microsecond with warm
	// caches and some with cold ones: with a gap of 0.5 ms it was 2 % of the CPU of
	// a replicated write at depth 1, and at depth 32.
	gap int64 = 2e6
	// quiet is the silence, in ns, after which a client starts anew with each request.
	quiet = gap
)

// A Sampler picks the requests of one client, or peer, that are measured. It is
// for one goroutine. The zero value picks none.
type Sampler struct {
	v     *Volume
	kinds [Dirs]stride
	last  int64 // Now of the last batch
	chaos uint32
}

type stride struct {
	left  int   // until the next that is picked
	drawn int   // that left began with
	every int   // on the average
	last  int64 // when one was picked
}

// NewSampler returns a Sampler for requests of v, which may be nil.
func (v *Volume) NewSampler() Sampler {
	if v == nil {
		return Sampler{}
	}
	s := Sampler{v: v, chaos: 2463534242}
	for i := range s.kinds {
		s.kinds[i] = stride{left: 1, drawn: 1, every: 1}
	}
	return s
}

// Volume is where the Sampler's requests are counted, nil if it picks none.
func (s *Sampler) Volume() *Volume { return s.v }

// Batch is called once before the requests that were read together, at this Now.
func (s *Sampler) Batch(now int64) {
	if now-s.last > quiet {
		for i := range s.kinds {
			k := &s.kinds[i]
			s.v.count(Dir(i), k.drawn-k.left)
			k.left, k.drawn, k.every = 1, 1, 1
		}
	}
	s.last = now
}

// Pick reports whether a request of the last Batch is to be measured.
func (s *Sampler) Pick(d Dir) bool {
	k := &s.kinds[d]
	k.left--
	return k.left == 0 && s.picked(d)
}

// picked draws the next one.
func (s *Sampler) picked(d Dir) bool {
	k := &s.kinds[d]
	s.v.count(d, k.drawn)
	if since := s.last - k.last; since > 0 {
		k.every = int(min(max(int64(k.every)*gap/since, 1), int64(s.v.every)))
	} else {
		k.every = s.v.every
	}
	k.last = s.last
	k.drawn = 1
	if k.every > 1 { // any place in a batch is as likely
		s.chaos ^= s.chaos << 13
		s.chaos ^= s.chaos >> 17
		s.chaos ^= s.chaos << 5
		k.drawn = 1 + int(s.chaos%uint32(2*k.every-1))
	}
	k.left = k.drawn
	return true
}

func (v *Volume) count(d Dir, n int) {
	if n > 0 {
		v.requests[d].Add(uint64(n))
	}
}
