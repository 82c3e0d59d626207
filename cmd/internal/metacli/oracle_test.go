package metacli

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// These tests compare polluxmeta with the real drbdmeta, which works on plain
// files if it's forced to. Minor 97 must not be in use.

func needOracle(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("drbdmeta")
	if err != nil {
		path = "/usr/sbin/drbdmeta"
		_, err = os.Stat(path)
	}
	if err == nil && os.Geteuid() != 0 {
		err = errors.New("drbdmeta keeps its locks where only root may write")
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("the oracle is missing: %v", err)
		}
		t.Skipf("the oracle is missing: %v", err)
	}
	return path
}

// drbdmeta runs drbdmeta --force 97 v08 and drops what it says about plain files.
func drbdmeta(t testing.TB, tool string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(tool, append([]string{"--force", "97", "v08"}, args...)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// Without a driver the tool guesses the newest; we want what 8.4 gets.
	cmd.Env = append(os.Environ(), "DRBD_DRIVER_VERSION_OVERRIDE=8.4.11", "LC_ALL=C", "TZ=UTC")
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatalf("%v: %v", exit, err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), plainFile.ReplaceAllString(stderr.String(), "")}
}

var plainFile = regexp.MustCompile(`(?m)^(ioctl\(.*|.* using pwrite)\n`)

func ours(t testing.TB, args ...string) result {
	t.Helper()
	return run(t, Env{}, append([]string{"--force", "97", "v08"}, args...)...)
}

func copyFile(t testing.TB, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy.img")
	if out, err := exec.Command("cp", "--sparse=always", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v %s", err, out)
	}
	return to
}

// mustEqualFiles compares two sparse files, looking only where one has data.
func mustEqualFiles(t testing.TB, want, got string) {
	t.Helper()
	var files [2]*os.File
	for i, path := range []string{want, got} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }() // only read
		files[i] = f
	}
	const chunk = 1 << 20
	a, b := make([]byte, chunk), make([]byte, chunk)
	for off := nextData(t, files, 0); off >= 0; off = nextData(t, files, off+chunk) {
		off -= off % chunk
		n, err := files[0].ReadAt(a, off)
		m, err2 := files[1].ReadAt(b, off)
		if n != m || err != nil && !errors.Is(err, io.EOF) || err2 != nil && !errors.Is(err2, io.EOF) {
			t.Fatalf("at %d: %d bytes, %v; %d bytes, %v", off, n, err, m, err2)
		}
		for i := 0; i < n; i += 16 {
			if end := min(n, i+16); !bytes.Equal(a[i:end], b[i:end]) {
				t.Errorf("files differ at %d: %x, want %x", off+int64(i), b[i:end], a[i:end])
				return
			}
		}
	}
}

// nextData is the first place at or after off where a file has data, or -1.
func nextData(t testing.TB, files [2]*os.File, off int64) int64 {
	t.Helper()
	next := int64(-1)
	for _, f := range files {
		at, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if next < 0 || at < next {
			next = at
		}
	}
	return next
}

var (
	dumpHead  = regexp.MustCompile(`(?m)\A# DRBD meta data dump\n#.*\n#.*\n`)
	dumpFlags = regexp.MustCompile(`flags 0x[0-9A-F]{8};`) // always 0 in 9.22.0, a fault
)

func comparableDump(s string) string {
	return dumpFlags.ReplaceAllString(dumpHead.ReplaceAllString(s, ""), "flags;")
}

var placements = []struct {
	name   string
	index  string
	size   int64
	create []string
}{
	{"internal 1 GiB", "internal", 2097152 * 512, nil},
	{"internal 1 GiB and a sector", "internal", 2097153 * 512, nil},
	{"internal 5 MiB, odd", "internal", 5<<20 + 3*512, nil},
	{"internal smallest", "internal", 68 << 10, nil},
	{"internal, exactly 8 bitmap blocks", "internal", 1 << 30, []string{"--al-stripes", "4", "--al-stripe-size-kB", "64"}},
	{"internal 1 TiB", "internal", 1 << 40, nil},
	{"flexible 1 MiB", "flex-external", 1 << 20, nil},
	{"flexible 3 MiB, odd", "flex-external", 3<<20 + 512, []string{"--peer-max-bio-size", "131072"}},
	{"flexible, striped", "flex-external", 4 << 20, []string{"--al-stripes", "3", "--al-stripe-size-kB", "20"}},
	{"indexed 0", "0", 256 << 20, nil},
	{"indexed 1", "1", 256 << 20, nil},
}

func TestOracleCreate(t *testing.T) {
	tool := needOracle(t)
	for _, tt := range placements {
		t.Run(tt.name, func(t *testing.T) {
			theirs, mine := makeFile(t, tt.size), makeFile(t, tt.size)
			if r := drbdmeta(t, tool, append([]string{theirs, tt.index, "create-md"}, tt.create...)...); r.code != 0 {
				t.Fatalf("drbdmeta: %+v", r)
			}
			if r := ours(t, append([]string{mine, tt.index, "create-md"}, tt.create...)...); r.code != 0 {
				t.Fatalf("polluxmeta: %+v", r)
			}
			mustEqualFiles(t, theirs, mine)
			for _, command := range []string{"get-gi", "show-gi", "dstate"} {
				if diff := cmp.Diff(drbdmeta(t, tool, mine, tt.index, command), ours(t, theirs, tt.index, command), cmp.AllowUnexported(result{})); diff != "" {
					t.Errorf("%s (-drbdmeta +polluxmeta)\n%s", command, diff)
				}
			}
		})
	}
}

// fill puts a superblock and a bitmap with all kinds of runs in place.
func fill(t testing.TB, path, index string, rng *rand.Rand) {
	t.Helper()
	edit(t, path, index, func(d blockdev.Device, l meta.Layout, sb *meta.Superblock) {
		sb.LASize = l.Usable
		if index != "internal" {
			sb.LASize = min(sb.LASize, drbd.Sector(3000000+rng.IntN(9)))
		}
		sb.UUIDs = meta.UUIDs{Current: rng.Uint64(), Bitmap: rng.Uint64(), History: [2]uint64{rng.Uint64(), 5}}
		sb.DeviceUUID, sb.PeerMaxBio = rng.Uint64(), 1<<20
		sb.Flags = meta.Flags(rng.Uint32()&0x7f) | meta.MDFALClean
		b := meta.NewBitmap(sb.LASize)
		for range 300 {
			first := rng.Uint64N(b.Bits())
			b.Set(first, min(b.Bits()-1, first+rng.Uint64N(1<<(rng.IntN(14)+1))))
		}
		page := make([]byte, meta.BlockSize)
		for _, p := range b.DirtyPages(nil) {
			b.EncodePage(p, page)
			b.MarkClean(p)
			if _, err := d.WriteAt(page, l.Bitmap+int64(p)*meta.BlockSize); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func edit(t testing.TB, path, index string, f func(d blockdev.Device, l meta.Layout, sb *meta.Superblock)) {
	t.Helper()
	d, err := blockdev.Open(path, blockdev.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := command{dev: d}
	if err := c.parseIndex(index); err != nil {
		t.Fatal(err)
	}
	l, err := c.newLayout(1, 8)
	if err != nil {
		t.Fatal(err)
	}
	sb, l, err := meta.ReadSuperblock(d, l)
	if err != nil {
		t.Fatal(err)
	}
	f(d, l, &sb)
	if err := meta.WriteSuperblock(d, l, sb); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOracleDumpAndRestore(t *testing.T) {
	tool := needOracle(t)
	for i, tt := range placements {
		if tt.size > 1<<31 {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			img := makeFile(t, tt.size)
			if r := ours(t, append([]string{img, tt.index, "create-md"}, tt.create...)...); r.code != 0 {
				t.Fatalf("%+v", r)
			}
			fill(t, img, tt.index, rand.New(rand.NewPCG(1, uint64(i))))
			theirs, mine := drbdmeta(t, tool, img, tt.index, "dump-md"), ours(t, img, tt.index, "dump-md")
			if theirs.code != 0 || mine.code != 0 {
				t.Fatalf("%+v\n%+v", theirs, mine)
			}
			if diff := cmp.Diff(comparableDump(theirs.stdout), comparableDump(mine.stdout)); diff != "" {
				t.Errorf("dump (-drbdmeta +polluxmeta)\n%s", diff)
			}
			for _, command := range []string{"get-gi", "show-gi", "dstate"} {
				if diff := cmp.Diff(drbdmeta(t, tool, img, tt.index, command), ours(t, img, tt.index, command), cmp.AllowUnexported(result{})); diff != "" {
					t.Errorf("%s (-drbdmeta +polluxmeta)\n%s", command, diff)
				}
			}
			text := filepath.Join(t.TempDir(), "dump.txt")
			if err := os.WriteFile(text, []byte(mine.stdout), 0o600); err != nil {
				t.Fatal(err)
			}
			// By both tools: all as it was. On a device without metadata
			// drbdmeta leaves the activity log uninitialised; we don't.
			byThem := makeFile(t, tt.size)
			if r := ours(t, append([]string{byThem, tt.index, "create-md"}, tt.create...)...); r.code != 0 {
				t.Fatalf("%+v", r)
			}
			byUs := makeFile(t, tt.size)
			if r := drbdmeta(t, tool, byThem, tt.index, "restore-md", text); r.code != 0 {
				t.Errorf("drbdmeta restore-md: %+v", r)
			}
			if r := ours(t, byUs, tt.index, "restore-md", text); r.code != 0 {
				t.Errorf("polluxmeta restore-md: %+v", r)
			}
			mustEqualFiles(t, byThem, byUs)
			if r := ours(t, byUs, tt.index, "dump-md"); comparableDump(r.stdout) != comparableDump(mine.stdout) {
				t.Errorf("restored metadata differs\n%s", cmp.Diff(mine.stdout, r.stdout))
			}
		})
	}
}

func TestOracleApplyAL(t *testing.T) {
	tool := needOracle(t)
	for _, tt := range []struct {
		name         string
		index        string
		size         int64
		create       []string
		slots        int
		transactions int
		flags        meta.Flags
		lasize       drbd.Sector // 0: all that is usable
		base, step   meta.Extent // extents base, base+step, ... are written to
	}{
		{"one", "internal", 1 << 30, nil, 1237, 1, meta.MDFPrimaryInd, 0, 25, 1},
		{"up to the partial last extent", "internal", 1 << 30, nil, 1237, 3, meta.MDFPrimaryInd, 0, 250, 1},
		{"last extent of a full bitmap", "flex-external", 1 << 20, nil, 1237, 1, meta.MDFPrimaryInd, 2097152, 255, 1},
		{"beyond the bitmap", "flex-external", 1 << 20, nil, 1237, 4, meta.MDFPrimaryInd, 2097152, 250, 2},
		{"partial last extent, small", "flex-external", 1 << 20, nil, 1237, 3, meta.MDFPrimaryInd, 8192*2 + 100, 0, 1},
		{"wrapped ring", "internal", 1 << 30, nil, 67, 29, meta.MDFPrimaryInd | meta.MDFConsistent, 0, 3, 5},
		{"wrapped ring, striped", "internal", 1 << 30, []string{"--al-stripes", "4", "--al-stripe-size-kB", "8"}, 67, 29, meta.MDFPrimaryInd, 0, 3, 5},
		{"Secondary", "internal", 1 << 30, nil, 67, 5, meta.MDFConsistent, 0, 3, 5},
		{"nothing in the log", "internal", 1 << 30, nil, 67, 0, meta.MDFPrimaryInd, 0, 0, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mine := makeFile(t, tt.size)
			if r := ours(t, append([]string{mine, tt.index, "create-md"}, tt.create...)...); r.code != 0 {
				t.Fatalf("%+v", r)
			}
			edit(t, mine, tt.index, func(d blockdev.Device, l meta.Layout, sb *meta.Superblock) {
				sb.Flags, sb.Unclean, sb.LASize = tt.flags, true, tt.lasize
				if tt.lasize == 0 {
					sb.LASize = l.Usable
				}
				writeLog(t, d, l, tt.slots, tt.transactions, tt.base, tt.step)
			})
			theirs := copyFile(t, mine)
			r, m := drbdmeta(t, tool, theirs, tt.index, "apply-al"), ours(t, mine, tt.index, "apply-al")
			if diff := cmp.Diff(r, m, cmp.AllowUnexported(result{})); diff != "" {
				t.Errorf("(-drbdmeta +polluxmeta)\n%s", diff)
			}
			mustEqualFiles(t, theirs, mine)
		})
	}
}

func writeLog(t testing.TB, d blockdev.Device, l meta.Layout, slots, transactions int, base, step meta.Extent) {
	t.Helper()
	al := meta.NewActivityLog(slots, l.Stripes, l.StripeSize4k)
	block := make([]byte, meta.BlockSize)
	for i := range transactions {
		e := base + meta.Extent(i)*step
		if _, err := al.Begin(e, e); err != nil {
			t.Fatal(err)
		}
		at, _ := al.Transaction(block)
		if _, err := d.WriteAt(block, l.RingBlock(at)); err != nil {
			t.Fatal(err)
		}
		al.Committed()
		al.End(e, e)
	}
}

func TestOracleStateCommands(t *testing.T) {
	tool := needOracle(t)
	mine := makeFile(t, 8<<20)
	if r := ours(t, mine, "internal", "create-md"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	theirs := copyFile(t, mine)
	for _, command := range []string{
		"outdate", "set-gi 1:2:3:4:1:1:1:1:0:1:1", "show-gi", "dstate", "outdate", "show-gi", "set-gi 5:6", "set-gi ::::1:1:1:1",
		"get-gi", "invalidate", "show-gi", "outdate", "set-gi ::::1:1:0:0:0:1:0", "dstate", "show-gi", "apply-al", "check-resize", "wipe-md", "wipe-md", "get-gi",
	} {
		args := append([]string{"internal"}, strings.Fields(command)...)
		r := drbdmeta(t, tool, append([]string{theirs}, args...)...)
		m := ours(t, append([]string{mine}, args...)...)
		if r.stderr == "" {
			m.stderr = "" // we say why where it's silent
		}
		if diff := cmp.Diff(r, m, cmp.AllowUnexported(result{})); diff != "" {
			t.Errorf("%s (-drbdmeta +polluxmeta)\n%s", command, diff)
		}
		mustEqualFiles(t, theirs, mine)
	}
}

// What the term record relies on: drbdmeta takes a superblock that has one, and
// zeroes it whenever it writes the superblock. (drbd.ko does the same:
// scripts/lab/superblock-facts.) Our own commands keep it.
func TestOracleTermRecord(t *testing.T) {
	tool := needOracle(t)
	const size = 64 << 20
	rec := meta.TermRecord{Seq: 5, NameHash: meta.NameHash("r0"), CurrentUUID: 0x1111111111111110, Term: 7, Promised: 8}
	const gi = "1111111111111110:0:0:0:1:1:0:0:0:0"
	img := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(img, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, size); err != nil {
		t.Fatal(err)
	}
	mustRun := func(r result) {
		t.Helper()
		if r.code != 0 {
			t.Fatalf("status %d: %s%s", r.code, r.stdout, r.stderr)
		}
	}
	mustRun(drbdmeta(t, tool, img, "internal", "create-md"))
	mustRun(drbdmeta(t, tool, img, "internal", "set-gi", gi))
	dump := filepath.Join(t.TempDir(), "md")
	// plant puts rec into img as Pollux would, unclean as after a crash.
	plant := func(path string) {
		t.Helper()
		withSuperblock(t, path, func(sb *meta.Superblock) { sb.Term, sb.Unclean = rec, true; sb.Flags &^= meta.MDFALClean })
	}
	record := func(path string) (got meta.TermRecord) {
		t.Helper()
		withSuperblock(t, path, func(sb *meta.Superblock) { got = sb.Term })
		return got
	}
	for _, tt := range []struct {
		name          string
		args          []string
		writes, keeps bool // the superblock; ours keeps the record
	}{
		{"dstate", []string{"dstate"}, false, true},
		{"get-gi", []string{"get-gi"}, false, true},
		{"apply-al", []string{"apply-al"}, true, true},
		{"dump-md", []string{"dump-md"}, false, true},
		{"outdate", []string{"outdate"}, true, true},
		{"set-gi", []string{"set-gi", gi}, true, true},
		{"restore-md", []string{"restore-md", dump}, true, false},
		{"create-md", []string{"create-md"}, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			plant(img)
			before := copyFile(t, img)
			if tt.name != "apply-al" {
				mustRun(drbdmeta(t, tool, before, "internal", "apply-al"))
				withSuperblock(t, before, func(sb *meta.Superblock) { sb.Term = rec })
			}
			mine := copyFile(t, before)
			r := drbdmeta(t, tool, append([]string{before, "internal"}, tt.args...)...)
			mustRun(r)
			if tt.name == "dump-md" {
				if err := os.WriteFile(dump, []byte(r.stdout), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want := rec
			if tt.writes {
				want = meta.TermRecord{}
			}
			if got := record(before); got != want {
				t.Errorf("drbdmeta left the record %+v, want %+v", got, want)
			}
			mustRun(ours(t, append([]string{mine, "internal"}, tt.args...)...))
			if want = rec; !tt.keeps {
				want = meta.TermRecord{}
			}
			if got := record(mine); got != want {
				t.Errorf("polluxmeta left the record %+v, want %+v", got, want)
			}
		})
	}
}

// withSuperblock lets f change the superblock of an image with internal metadata.
func withSuperblock(t testing.TB, path string, f func(*meta.Superblock)) {
	t.Helper()
	d, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	info, err := d.Stat()
	if err != nil {
		t.Fatal(err)
	}
	l, err := meta.NewLayout(meta.Internal, 0, info.Size(), 0, 1, 8)
	if err != nil {
		t.Fatal(err)
	}
	sb, l, err := meta.ReadSuperblock(d, l)
	if err != nil {
		t.Fatal(err)
	}
	f(&sb)
	if err := meta.WriteSuperblock(d, l, sb); err != nil {
		t.Fatal(err)
	}
}
