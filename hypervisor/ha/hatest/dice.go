package hatest

// dice is a source of randomness that costs nothing to seed. Whatever draws has
// a seed of its own, an event one of its time: to take one thing away from a
// history changes nothing of what the others draw.
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

func (d *dice) next() uint64 {
	d.state += 0x9e3779b97f4a7c15
	z := d.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// pick is one of 0 to n-1; without dice it is 0.
func (d *dice) pick(n int) int {
	if d == nil {
		return 0
	}
	return int(d.next() >> 1 % uint64(n))
}

// between is a time from low to high.
func (d *dice) between(low, high int64) int64 {
	if d == nil || high <= low {
		return low
	}
	return low + int64(d.next()>>1%uint64(high-low))
}

// chance is true with probability p; without dice never.
func (d *dice) chance(p float64) bool {
	return d != nil && float64(d.next()>>11) < p*(1<<53)
}
