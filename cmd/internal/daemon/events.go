package daemon

import (
	"sync"
)

// A hub tells subscribers which resources have changed. Announcing never
// blocks and never queues more than one mark per resource and subscriber, so
// that a slow reader costs nothing: it looks at the newest status when it
// gets to it. The zero value is ready; safe for concurrent use.
type hub struct {
	mu   sync.Mutex
	subs map[*subscriber]struct{}
}

// A subscriber collects the names of changed resources for one event stream.
type subscriber struct {
	only string        // the one resource it wants, or ""
	wake chan struct{} // holds one token while dirty isn't empty

	mu    sync.Mutex
	dirty map[string]struct{}
}

// subscribe starts collecting for one resource, or for all with "".
func (h *hub) subscribe(only string) *subscriber {
	s := &subscriber{only: only, wake: make(chan struct{}, 1), dirty: map[string]struct{}{}}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.subs == nil {
		h.subs = map[*subscriber]struct{}{}
	}
	h.subs[s] = struct{}{}
	return s
}

func (h *hub) unsubscribe(s *subscriber) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.subs, s)
}

// changed marks a resource for all who want to know. It may be called with
// any lock held.
func (h *hub) changed(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		if s.only == "" || s.only == name {
			s.mark(name)
		}
	}
}

func (s *subscriber) mark(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirty[name] = struct{}{}
	select {
	case s.wake <- struct{}{}:
	default: // a token is there already
	}
}

// take returns the marked names and forgets them.
func (s *subscriber) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.dirty))
	for n := range s.dirty {
		names = append(names, n)
	}
	clear(s.dirty)
	return names
}
