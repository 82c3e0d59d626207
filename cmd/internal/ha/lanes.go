package ha

import "sync"

// lanes run functions: those of one lane one after the other, in the order they
// were given, those of different lanes at the same time. An idle lane costs
// nothing. The zero value is ready; safe for concurrent use.
type lanes struct {
	mu    sync.Mutex
	queue map[string][]func() // behind the one that runs; present while one runs
	wg    sync.WaitGroup
}

// do appends f to a lane.
func (l *lanes) do(lane string, f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.queue == nil {
		l.queue = map[string][]func(){}
	}
	waiting, busy := l.queue[lane]
	if busy {
		l.queue[lane] = append(waiting, f)
		return
	}
	l.queue[lane] = nil
	l.wg.Add(1)
	go l.run(lane, f)
}

func (l *lanes) run(lane string, f func()) {
	defer l.wg.Done()
	for f != nil {
		f()
		f = l.next(lane)
	}
}

func (l *lanes) next(lane string) func() {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.queue[lane]
	if len(q) == 0 {
		delete(l.queue, lane)
		return nil
	}
	l.queue[lane] = q[1:]
	return q[0]
}

// wait returns when all that was given to do has run.
func (l *lanes) wait() { l.wg.Wait() }
