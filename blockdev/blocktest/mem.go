package blocktest

import (
	"fmt"
	"math/rand/v2"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/blockdev"
)

// sectorSize is what a power failure leaves whole or not at all, in bytes.
const sectorSize = 512

// versionsKept bounds the memory of a sector that is written over and over
// without a sync.
const versionsKept = 4

// Mem is a disk in memory with a write cache: writes go to the volatile image,
// Sync and WriteFUA make them durable. It is safe for concurrent use.
type Mem struct {
	mu        sync.Mutex
	volatile  []byte
	durable   []byte
	unsynced  map[int64][][]byte // by sector: what was written since the last sync, oldest first
	faults    []*Fault
	hook      func(Access)
	blockSize int
	isDirect  bool
	isClosed  bool
}

// Kind is a kind of access to a Mem.
type Kind uint8

// Kinds of access.
const (
	Read Kind = iota + 1
	Write
	WriteFUA
	Zero
	Sync
)

func (k Kind) String() string {
	return [...]string{"none", "read", "write", "durable write", "zero", "sync"}[k]
}

// An Access is one call of a Device's method.
type Access struct {
	Kind        Kind
	Off, Length int64 // bytes; 0 and the disk's size for Sync
}

// A Fault makes accesses fail.
type Fault struct {
	Kind  Kind
	After int   // that many accesses of Kind succeed first
	Times int   // that many fail then; 0: all
	Err   error // nil: EIO
	// Off and Length limit the fault to accesses that touch the range; Length 0
	// means the whole disk.
	Off, Length int64
	// Torn makes a failing write leave its first sectors, and half of the next.
	Torn bool
}

// NewMem returns a disk of size zero bytes, all durable. size is a multiple of
// 512.
func NewMem(size int64) *Mem {
	if size < 0 || size%sectorSize != 0 {
		panic(fmt.Sprintf("blocktest: size %d is not a multiple of %d", size, sectorSize))
	}
	return &Mem{
		volatile: make([]byte, size), durable: make([]byte, size),
		unsynced: make(map[int64][][]byte), blockSize: sectorSize,
	}
}

// SetDirect makes the disk claim to bypass the page cache.
func (m *Mem) SetDirect(isDirect bool) { m.isDirect = isDirect }

// SetBlockSize makes the disk claim a logical block size, 512 or 4096.
func (m *Mem) SetBlockSize(bytes int) { m.blockSize = bytes }

// Inject adds a fault; faults are tried in the order of their injection.
func (m *Mem) Inject(f Fault) {
	if f.Err == nil {
		f.Err = unix.EIO
	}
	m.mu.Lock()
	m.faults = append(m.faults, &f)
	m.mu.Unlock()
}

// ClearFaults takes all faults back.
func (m *Mem) ClearFaults() {
	m.mu.Lock()
	m.faults = nil
	m.mu.Unlock()
}

// SetHook has f called before each access, without the disk's lock: to watch
// orders, to block, or to take a CrashClone at a chosen point.
func (m *Mem) SetHook(f func(Access)) {
	m.mu.Lock()
	m.hook = f
	m.mu.Unlock()
}

// enter checks an access; it returns with the lock held if there is no error.
// A torn write's fault is returned with the error.
func (m *Mem) enter(a Access, isChange bool) (*Fault, error) {
	m.mu.Lock()
	if hook := m.hook; hook != nil {
		m.mu.Unlock()
		hook(a)
		m.mu.Lock()
	}
	fail := func(err error) error {
		return &blockdev.IOError{Op: a.Kind.String(), Path: m.String(), Offset: a.Off, Length: a.Length, Err: err}
	}
	size := int64(len(m.volatile))
	switch {
	case m.isClosed:
		m.mu.Unlock()
		return nil, fail(blockdev.ErrClosed)
	case a.Off < 0 || a.Length < 0 || a.Off > size || a.Length > size-a.Off:
		m.mu.Unlock()
		if isChange {
			return nil, fail(unix.ENOSPC)
		}
		return nil, fail(unix.EINVAL)
	}
	for _, f := range m.faults {
		if f.Kind != a.Kind || f.Length > 0 && (a.Off >= f.Off+f.Length || f.Off >= a.Off+a.Length) {
			continue
		}
		if f.After > 0 {
			f.After--
			continue
		}
		if f.Times < 0 {
			continue
		}
		if f.Times > 0 {
			f.Times--
			if f.Times == 0 {
				f.Times = -1 // used up
			}
		}
		err := fail(f.Err)
		if !f.Torn {
			if a.Kind == Sync {
				m.forget()
			}
			m.mu.Unlock()
			f = nil
		}
		return f, err
	}
	return nil, nil
}

// forget does what Linux does when writeback fails: the pages count as clean,
// a later sync succeeds and the data is lost. Code that retries a sync is
// found out by a CrashClone.
func (m *Mem) forget() { clear(m.unsynced) }

// ReadAt implements blockdev.Device.
func (m *Mem) ReadAt(p []byte, off int64) (int, error) {
	if _, err := m.enter(Access{Read, off, int64(len(p))}, false); err != nil {
		return 0, err
	}
	defer m.mu.Unlock()
	return copy(p, m.volatile[off:]), nil
}

// WriteAt implements blockdev.Device.
func (m *Mem) WriteAt(p []byte, off int64) (int, error) {
	f, err := m.enter(Access{Write, off, int64(len(p))}, true)
	if f != nil {
		n := len(p) / 2
		m.store(p[:n], off)
		m.mu.Unlock()
		return n, err
	}
	if err != nil {
		return 0, err
	}
	defer m.mu.Unlock()
	m.store(p, off)
	return len(p), nil
}

// WriteFUA implements blockdev.Device.
func (m *Mem) WriteFUA(p []byte, off int64) error {
	f, err := m.enter(Access{WriteFUA, off, int64(len(p))}, true)
	if f != nil {
		m.store(p[:len(p)/2], off)
		m.mu.Unlock()
		return err
	}
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	m.store(p, off)
	for s := off / sectorSize; s*sectorSize < off+int64(len(p)); s++ {
		copy(m.durable[s*sectorSize:(s+1)*sectorSize], m.volatile[s*sectorSize:])
		delete(m.unsynced, s)
	}
	return nil
}

// Zero implements blockdev.Device.
func (m *Mem) Zero(off, length int64, _ bool) error {
	f, err := m.enter(Access{Zero, off, length}, true)
	if f != nil {
		m.store(make([]byte, length/2), off)
		m.mu.Unlock()
		return err
	}
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	m.store(make([]byte, length), off)
	return nil
}

// store changes the volatile image and remembers each sector's new contents.
func (m *Mem) store(p []byte, off int64) {
	if len(p) == 0 {
		return
	}
	copy(m.volatile[off:], p)
	for s := off / sectorSize; s*sectorSize < off+int64(len(p)); s++ {
		v := append(m.unsynced[s], append([]byte(nil), m.volatile[s*sectorSize:(s+1)*sectorSize]...))
		if len(v) > versionsKept {
			v = v[1:]
		}
		m.unsynced[s] = v
	}
}

// Sync implements blockdev.Device.
func (m *Mem) Sync() error {
	m.mu.Lock()
	size := int64(len(m.volatile))
	m.mu.Unlock()
	f, err := m.enter(Access{Sync, 0, size}, false)
	if f != nil {
		m.forget()
		m.mu.Unlock()
		return err
	}
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	for s := range m.unsynced {
		copy(m.durable[s*sectorSize:(s+1)*sectorSize], m.volatile[s*sectorSize:])
	}
	clear(m.unsynced)
	return nil
}

// CrashClone returns the disk as a power failure now may leave it: what was
// synced, and of each sector written since then, by rng, the old contents or
// one of the new. The clone has no faults and no hook. m goes on unchanged.
func (m *Mem) CrashClone(rng *rand.Rand) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := NewMem(int64(len(m.durable)))
	c.blockSize, c.isDirect = m.blockSize, m.isDirect
	copy(c.durable, m.durable)
	for s := int64(0); s*sectorSize < int64(len(m.durable)); s++ { // in order: rng must not depend on the map's
		versions := m.unsynced[s]
		if len(versions) == 0 {
			continue
		}
		if i := rng.IntN(len(versions) + 1); i > 0 {
			copy(c.durable[s*sectorSize:], versions[i-1])
		}
	}
	copy(c.volatile, c.durable)
	return c
}

// TearSector makes a sector of the disk half old and half noise, as a drive
// that does not keep its promise of whole sectors leaves it.
func (m *Mem) TearSector(sector int64, rng *rand.Rand) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.durable[sector*sectorSize : (sector+1)*sectorSize]
	for i := len(b) / 2; i < len(b); i++ {
		b[i] = byte(rng.Uint32())
	}
	copy(m.volatile[sector*sectorSize:], b)
	delete(m.unsynced, sector)
}

// Durable returns a copy of what a power failure now would surely leave
// wherever nothing unsynced was written.
func (m *Mem) Durable() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]byte(nil), m.durable...)
}

// Bytes returns a copy of what reads see.
func (m *Mem) Bytes() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]byte(nil), m.volatile...)
}

// Unsynced is the number of sectors written and not yet durable.
func (m *Mem) Unsynced() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.unsynced)
}

// Size implements blockdev.Device.
func (m *Mem) Size() int64 { return int64(len(m.volatile)) }

// BlockSize implements blockdev.Device.
func (m *Mem) BlockSize() int { return m.blockSize }

// Direct implements blockdev.Device.
func (m *Mem) Direct() bool { return m.isDirect }

// String names the disk in errors.
func (m *Mem) String() string { return "memory disk" }

// Close implements blockdev.Device. The images stay readable for the test.
func (m *Mem) Close() error {
	m.mu.Lock()
	m.isClosed = true
	m.mu.Unlock()
	return nil
}

// Reopen returns the disk as the next process finds it: the page cache
// survives, faults and hook do not.
func (m *Mem) Reopen() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &Mem{
		volatile: m.volatile, durable: m.durable, unsynced: m.unsynced,
		blockSize: m.blockSize, isDirect: m.isDirect,
	}
	m.isClosed = true
	return c
}
