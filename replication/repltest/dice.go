package repltest

// dice is a source of randomness that costs nothing to seed: whatever happens
// in a simulation draws from a seed of its own, so that taking one thing away
// changes nothing of what the others draw.
type dice struct{ state uint64 }

// mix is splitmix64 over several numbers.
func mix(parts ...uint64) uint64 {
	h := uint64(0x5851f42d4c957f2d)
	for _, p := range parts {
		d := dice{h ^ p}
		h = d.next()
	}
	return h
}

// mixName turns a name into a number for mix (FNV-1a).
func mixName(name string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	return h
}

func (d *dice) next() uint64 {
	d.state += 0x9e3779b97f4a7c15
	z := d.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// pick is one of 0 to n-1; without dice it is 0.
func (d *dice) pick(n int) int { return int(d.jitter(int64(n))) }

// jitter is pick for times.
func (d *dice) jitter(n int64) int64 {
	if d == nil {
		return 0
	}
	return int64(d.next() >> 1 % uint64(n))
}

// chance is true with probability p; without dice never.
func (d *dice) chance(p float64) bool {
	return d != nil && float64(d.next()>>11) < p*(1<<53)
}
