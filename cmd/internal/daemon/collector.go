package daemon

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

// gcRoomBytes is what may at least be allocated between two collections, whatever
// is in use (our own): a limit that leaves less has the collector run all the time,
// and each write that allocates, as with TLS, pay for it. With 4 MiB the peak under
// full load is 4 MiB higher, with 2 it is not. limitStep is what limits are rounded to.
const (
	gcRoomBytes = 2 << 20
	limitStep   = 1 << 20
)

// A memoryLimit keeps Go's soft limit at what the node may hold, or, when more is in
// use than that leaves, at what is in use and gcRoomBytes.
type memoryLimit struct {
	mu      sync.Mutex
	want    int64 // bytes, of tuneMemory
	set     int64 // bytes
	samples []metrics.Sample
}

var goLimit memoryLimit

// limitFor is the memory limit, bytes, for a node that may hold want, with live bytes
// on the heap and other bytes of Go's own outside of it.
func limitFor(want, live, other int64) int64 {
	need := live + other + gcRoomBytes
	if need <= want {
		return want
	}
	return (need + limitStep - 1) &^ (limitStep - 1) // each change stops the world for a moment
}

// allow sets what the node may hold. Collections adapt the limit from then on.
func (m *memoryLimit) allow(bytes int64) {
	m.mu.Lock()
	isFirst := m.samples == nil
	if isFirst {
		for _, name := range []string{
			"/gc/heap/live:bytes", "/memory/classes/total:bytes", "/memory/classes/heap/released:bytes",
			"/memory/classes/heap/free:bytes", "/memory/classes/heap/objects:bytes",
		} {
			m.samples = append(m.samples, metrics.Sample{Name: name})
		}
	}
	m.want = bytes
	m.mu.Unlock()
	m.adapt()
	if isFirst {
		runtime.SetFinalizer(new(collection), (*collection).ended)
	}
}

// adapt sets the limit if another is due.
func (m *memoryLimit) adapt() {
	m.mu.Lock()
	defer m.mu.Unlock()
	metrics.Read(m.samples)
	value := func(i int) int64 { return int64(m.samples[i].Value.Uint64()) }
	limit := limitFor(m.want, value(0), value(1)-value(2)-value(3)-value(4))
	if limit != m.set {
		debug.SetMemoryLimit(limit)
		m.set = limit
	}
}

// A collection is garbage, which the collector tells of whenever it has run.
type collection [4]uint64

func (c *collection) ended() {
	goLimit.adapt()
	runtime.SetFinalizer(c, (*collection).ended)
}

// tuneMemory sets the garbage collector's limit for a node with resources that
// hold storageBytes. GOGC and GOMEMLIMIT in the environment win.
func tuneMemory(resources int, storageBytes uint64) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		goLimit.allow(heapBaseBytes + int64(storageBytes>>30)*heapPerGiBBytes + int64(max(resources-fewResources, 0))*heapPerResourceBytes)
	}
}
