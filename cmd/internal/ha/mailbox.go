package ha

import "sync"

// A mailbox takes what workers have to tell the one goroutine that steps the core.
// Posting never blocks: its length is bounded by the orders under way and by the
// objects that are watched. The zero value is not ready; use newMailbox.
type mailbox struct {
	mu    sync.Mutex
	items []func()
	wake  chan struct{} // holds one token while items isn't empty
}

func newMailbox() *mailbox { return &mailbox{wake: make(chan struct{}, 1)} }

func (b *mailbox) post(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.items = append(b.items, f)
	select {
	case b.wake <- struct{}{}:
	default: // a token is there already
	}
}

func (b *mailbox) take() []func() {
	b.mu.Lock()
	defer b.mu.Unlock()
	items := b.items
	b.items = nil
	return items
}
