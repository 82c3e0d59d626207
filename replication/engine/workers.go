package engine

import "sync"

// diskWorkers is the most goroutines that wait for one volume's disk in the
// clients' stead: O_DIRECT, durable writes, reads for the peer. They are
// started as needed and stay until the engine closes.
const diskWorkers = 32

// ioQueue is the queue in front of a volume's workers, and the list of what
// they have finished. It is bounded by the core's tables. Results are combined:
// one worker at a time steps all that have piled up, so that under load many
// share one lock, one write to the peer and one write of replies.
type ioQueue struct {
	mu        sync.Mutex
	cond      *sync.Cond
	ops       []localIO
	head      int
	idle      int
	workers   int
	closed    bool
	done      []ioResult
	spare     []ioResult
	combining bool
}

type ioResult struct {
	op  localIO
	err error
}

// queue hands op to a worker.
func (v *Volume) queue(op localIO) {
	q := &v.ioq
	q.mu.Lock()
	q.ops = append(q.ops, op)
	switch {
	case q.idle > 0:
		q.cond.Signal()
	case q.workers < diskWorkers && !q.closed:
		q.workers++
		v.e.background.Add(1)
		go v.worker()
	}
	q.mu.Unlock()
}

// next waits for an operation; false means that the engine closes.
func (q *ioQueue) next() (op localIO, ok bool) {
	for q.head == len(q.ops) {
		if q.closed {
			return op, false
		}
		q.idle++
		q.cond.Wait()
		q.idle--
	}
	op = q.ops[q.head]
	q.ops[q.head] = localIO{}
	if q.head++; q.head == len(q.ops) {
		q.ops, q.head = q.ops[:0], 0
	}
	return op, true
}

// close lets the workers end once the queue is empty.
func (q *ioQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.cond.Broadcast()
	q.mu.Unlock()
}

func (v *Volume) worker() {
	defer v.e.background.Done()
	q := &v.ioq
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		op, ok := q.next()
		if !ok {
			return
		}
		q.mu.Unlock()
		err := v.do(&op)
		q.mu.Lock()
		q.done = append(q.done, ioResult{op, err})
		if !q.combining {
			v.combine()
		}
	}
}

// combine steps all results until none is left; called and left with the
// queue's lock held.
func (v *Volume) combine() {
	q, e := &v.ioq, v.e
	q.combining = true
	for len(q.done) > 0 {
		results := q.done
		q.done, q.spare = q.spare[:0], nil
		q.mu.Unlock()
		b := e.newBatch()
		e.mu.Lock()
		for i := range results {
			e.localDone(b, &results[i].op, results[i].err)
		}
		e.mu.Unlock()
		e.finish(b)
		e.freeBatch(b)
		clear(results)
		q.mu.Lock()
		q.spare = results[:0]
	}
	q.combining = false
}
