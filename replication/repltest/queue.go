package repltest

// An Item is something that is going to happen.
type Item struct {
	At  int64
	Seq uint64 // of two at one time the lower goes first
	F   func()
}

// Queue holds items by the time at which they happen: the agenda of a simulation.
// The zero value is empty.
type Queue []Item

func (q Queue) less(i, j int) bool {
	return q[i].At < q[j].At || q[i].At == q[j].At && q[i].Seq < q[j].Seq
}

// Push adds an item.
func (q *Queue) Push(it Item) {
	*q = append(*q, it)
	h := *q
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if !h.less(i, up) {
			break
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
}

// Pop takes the first item out; there must be one.
func (q *Queue) Pop() Item {
	h := *q
	it, n := h[0], len(h)-1
	h[0], h[n] = h[n], Item{}
	h = h[:n]
	for i := 0; ; {
		first := 2*i + 1
		if first >= n {
			break
		}
		if second := first + 1; second < n && h.less(second, first) {
			first = second
		}
		if !h.less(first, i) {
			break
		}
		h[i], h[first] = h[first], h[i]
		i = first
	}
	*q = h
	return it
}
