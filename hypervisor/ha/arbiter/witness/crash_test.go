package witness

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

var errPower = errors.New("the power is off")

// crashDir is a directory in memory that knows what of it is on the medium, and
// fails for good at its nth operation.
type crashDir struct {
	inodes map[string]*inode // as programs see it
	stable map[string]*inode // names that are on the medium
	left   int               // operations until the power goes
	rng    *rand.Rand
}

type inode struct {
	data   []byte
	stable []byte // on the medium for sure
}

func newCrashDir(seed uint64) *crashDir {
	return &crashDir{inodes: map[string]*inode{}, stable: map[string]*inode{}, left: 1 << 30, rng: rand.New(rand.NewPCG(seed, 1))}
}

func (d *crashDir) step() error {
	d.left--
	if d.left < 0 {
		return errPower
	}
	return nil
}

func (d *crashDir) ReadFile(name string) ([]byte, error) {
	n := d.inodes[name]
	if n == nil {
		return nil, fs.ErrNotExist
	}
	return bytes.Clone(n.data), d.step()
}

func (d *crashDir) Open(name string) (file, error) { return &crashFile{d, d.inodes[name]}, d.step() }

func (d *crashDir) Create(name string) (file, error) {
	if err := d.step(); err != nil {
		return nil, err
	}
	n := &inode{}
	d.inodes[name] = n
	return &crashFile{d, n}, nil
}

func (d *crashDir) Rename(from, to string) error {
	if err := d.step(); err != nil {
		return err
	}
	d.inodes[to] = d.inodes[from]
	delete(d.inodes, from)
	return nil
}

func (d *crashDir) SyncDir() error {
	if err := d.step(); err != nil {
		return err
	}
	d.stable = maps.Clone(d.inodes)
	return nil
}

// restart is the directory after the crash. After a loss of power what was not
// synced may be there, in part, or not; after a kill all of it is.
func (d *crashDir) restart(isPower bool) *crashDir {
	r := newCrashDir(d.rng.Uint64())
	names := d.inodes
	if isPower && d.rng.IntN(2) == 0 {
		names = d.stable
	}
	for name, n := range names {
		data := bytes.Clone(n.data)
		if isPower {
			data = d.torn(n)
		}
		r.inodes[name] = &inode{data: data, stable: bytes.Clone(data)}
	}
	r.stable = maps.Clone(r.inodes)
	return r
}

// torn keeps what was synced, and of the rest any pages, zeros where one is missing.
func (d *crashDir) torn(n *inode) []byte {
	if len(n.data) < len(n.stable) || !bytes.HasPrefix(n.data, n.stable) {
		return bytes.Clone([][]byte{n.data, n.stable}[d.rng.IntN(2)])
	}
	const page = 64
	out := bytes.Clone(n.data[:len(n.stable)+d.rng.IntN(len(n.data)-len(n.stable)+1)])
	for at := len(n.stable); at < len(out); at += page {
		if d.rng.IntN(3) == 0 {
			clear(out[at:min(at+page, len(out))])
		}
	}
	return out
}

type crashFile struct {
	d *crashDir
	n *inode
}

func (f *crashFile) Write(b []byte) (int, error) {
	if err := f.d.step(); err != nil {
		n := f.d.rng.IntN(len(b) + 1) // as far as it came
		f.n.data = append(f.n.data, b[:n]...)
		return n, err
	}
	f.n.data = append(f.n.data, b...)
	return len(b), nil
}

func (f *crashFile) Truncate(size int64) error {
	if err := f.d.step(); err != nil {
		return err
	}
	f.n.data = f.n.data[:size:size]
	return nil
}

func (f *crashFile) Sync() error {
	if err := f.d.step(); err != nil {
		return err
	}
	f.n.stable = bytes.Clone(f.n.data)
	return nil
}

func (f *crashFile) Close() error { return nil }

// history is what a store was asked to make durable, and what it said.
type history struct {
	acked  map[string]arbiter.Record
	asked  map[string][]arbiter.Record // not acknowledged, possible
	number int
}

// work opens the store and changes records until n changes are made or an
// operation fails. The log grows beyond its bound again and again.
func (h *history) work(t *testing.T, d *crashDir, n int) (opened bool) {
	t.Helper()
	s, err := openStore(d)
	if err != nil {
		if !errors.Is(err, errPower) {
			t.Fatalf("after a crash: %v", err)
		}
		return false
	}
	defer s.close() //nolint:errcheck // in memory
	h.check(t, s)
	s.live = 1 // so that it is written anew often, small as it is
	for range n {
		h.number++
		name := fmt.Sprintf("r%d", h.number%3)
		rec := arbiter.Record{Resource: name, Term: uint64(h.number), Owner: "a", InSync: []string{"a", "b"}, Generation: uint64(h.number) << 8}
		if err := s.commit(entry{Records: []arbiter.Record{rec}, TTLMS: int64(h.number)}); err != nil {
			h.asked[name] = append(h.asked[name], rec)
			return true
		}
		h.acked[name] = rec
		delete(h.asked, name)
		if s.size > 2000 {
			if err := s.rewrite(); err != nil {
				return true
			}
		}
	}
	return true
}

// check compares what a store has with what was answered: never less, and nothing
// that was not asked for.
func (h *history) check(t *testing.T, s *store) {
	t.Helper()
	for name, want := range h.acked {
		got := s.records[name]
		if got.Term == want.Term {
			continue
		}
		if !slices.ContainsFunc(h.asked[name], func(r arbiter.Record) bool { return r.Term == got.Term }) {
			t.Fatalf("%s: term %d was acknowledged, %d is there", name, want.Term, got.Term)
		}
	}
	// What is there counts from now on: it may have been shown to somebody.
	for name, got := range s.records {
		if got.Generation != got.Term<<8 {
			t.Fatalf("%s: %+v was never asked for", name, got)
		}
		h.acked[name] = got
	}
	h.asked = map[string][]arbiter.Record{}
}

// TestCrashPoints stops the store at each of its operations, by a kill and by a
// loss of power, several times in a row.
func TestCrashPoints(t *testing.T) {
	for _, isPower := range []bool{false, true} {
		t.Run(fmt.Sprintf("power=%v", isPower), func(t *testing.T) {
			whole := newCrashDir(1)
			full := &history{acked: map[string]arbiter.Record{}, asked: map[string][]arbiter.Record{}}
			full.work(t, whole, 60)
			ops := 1<<30 - whole.left
			if ops < 120 {
				t.Fatalf("only %d operations: the scenario is too small", ops)
			}
			for n := range ops {
				for seed := range uint64(8) {
					d := newCrashDir(seed<<32 | uint64(n))
					h := &history{acked: map[string]arbiter.Record{}, asked: map[string][]arbiter.Record{}}
					for _, left := range []int{n, int(seed) + 1, int(seed) + 3} { // and again, while it recovers
						d.left = left
						h.work(t, d, 60)
						d = d.restart(isPower)
					}
					if !h.work(t, d, 10) {
						t.Fatalf("operation %d, seed %d: it does not open", n, seed)
					}
				}
			}
		})
	}
}

// A disk that fails once: the claim is not answered as done, nothing is granted
// on top of it, and the store goes on when the disk does.
func TestDiskErrors(t *testing.T) {
	d := newCrashDir(1)
	s, err := openStore(d)
	if err != nil {
		t.Fatal(err)
	}
	rec := func(term uint64) entry {
		return entry{Records: []arbiter.Record{{Resource: "r", Term: term, Owner: "a", InSync: []string{"a"}}}}
	}
	if err := s.commit(rec(1)); err != nil {
		t.Fatal(err)
	}
	for left := range 6 { // each operation of a commit and of writing anew
		d.left = left
		if err := s.commit(rec(99)); err == nil && left < 2 {
			t.Fatalf("%d operations: no error", left)
		} else if err != nil && s.records["r"].Term == 99 {
			t.Fatal("what failed is in force")
		}
		d.left = 1 << 30
		term := uint64(100 + left)
		if err := s.commit(rec(term)); err != nil {
			t.Fatalf("the disk is well again: %v", err)
		}
		again, err := openStore(d.restart(true))
		if err != nil || again.records["r"].Term != term {
			t.Errorf("after a restart: %+v, %v", again, err)
		}
	}
}

// A log that has lost what it had is not served, and not changed.
func TestDamagedLog(t *testing.T) {
	d := newCrashDir(1)
	s, err := openStore(d)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if err := s.commit(entry{Records: []arbiter.Record{{Resource: "r", Term: uint64(i + 1)}}}); err != nil {
			t.Fatal(err)
		}
	}
	good := bytes.Clone(d.inodes[logName].data)
	lines := bytes.SplitAfter(good, []byte("\n"))
	for name, text := range map[string][]byte{
		"is damaged, and good ones follow": bytes.Replace(bytes.Clone(good), []byte(`"term":2`), []byte(`"term":9`), 1),
		"lines are missing":                slices.Concat(lines[0], lines[1], lines[3], lines[4]),
		"line 2 is damaged":                slices.Concat(lines[0], make([]byte, 50), []byte("\n"), lines[3], lines[4]),
	} {
		d.inodes[logName] = &inode{data: bytes.Clone(text)}
		if _, err := openStore(d); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %q", err, name)
		}
		if !bytes.Equal(d.inodes[logName].data, text) {
			t.Errorf("%s: it was changed", name)
		}
	}
	for cut := range len(lines[4]) { // a torn end is no damage
		d.inodes[logName] = &inode{data: bytes.Clone(good[:len(good)-len(lines[4])+cut])}
		s, err := openStore(d)
		if err != nil || s.records["r"].Term != 4 {
			t.Fatalf("cut after %d bytes of the last line: %v", cut, err)
		}
		if err := s.commit(entry{Records: []arbiter.Record{{Resource: "r", Term: 7}}}); err != nil {
			t.Fatal(err)
		}
		if s, err := openStore(d); err != nil || s.records["r"].Term != 7 {
			t.Fatalf("behind a cut end: %v", err)
		}
	}
}

// FuzzLog: no log makes the reader panic, and what is read and written anew is
// read the same.
func FuzzLog(f *testing.F) {
	line, err := appendLine(nil, 1, entry{Records: []arbiter.Record{{Resource: "r", Term: 3, Owner: "a"}}, TTLMS: 6000})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	f.Add(append(bytes.Clone(line), "2 00000000 {}"...))
	f.Add([]byte("1 \n\n \n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		state, ttl, _, good, err := parseLog(text)
		if err != nil {
			return
		}
		if good < 0 || good > int64(len(text)) {
			t.Fatalf("%d bytes of %d count", good, len(text))
		}
		again, ttl2, _, _, err := parseLog(text[:good])
		if err != nil || ttl2 != ttl || len(again) != len(state) {
			t.Errorf("the good part gives %d records, %v; the whole %d, %v", len(again), ttl2, len(state), ttl)
		}
	})
}
