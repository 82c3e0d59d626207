package hatest

// An item is something that is going to happen.
type item struct {
	at  int64
	seq uint64
	f   func()
}

type eventQueue []item

func (q eventQueue) less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}

func (q *eventQueue) push(it item) {
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

func (q *eventQueue) pop() item {
	h := *q
	it, n := h[0], len(h)-1
	h[0], h[n] = h[n], item{}
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
