package meta

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/protocol/drbd"
)

func layoutFor(t testing.TB, d *memDevice, p Placement, index int) Layout {
	t.Helper()
	data, meta := d.size, int64(0)
	if p != Internal {
		data, meta = 0, d.size
	}
	l, err := NewLayout(p, index, data, meta, 1, 8)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func readText(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// section returns what a command printed to stdout, from a recorded session.
func section(t testing.TB, session, command string, n int) string {
	t.Helper()
	for _, part := range strings.Split("\n"+session, "\n$ ") {
		head, rest, _ := strings.Cut(part, "\n")
		if !strings.HasSuffix(head, " "+command) {
			continue
		}
		if n--; n >= 0 {
			continue
		}
		_, out, ok := strings.Cut(rest, "--- stdout\n")
		if !ok {
			t.Fatalf("%s has no output", head)
		}
		return strings.TrimSuffix(out, "\n")
	}
	t.Fatalf("no command %q", command)
	return ""
}

var dumpHeader = regexp.MustCompile(`(?m)^# \d{4}-.*\n# alpha> .*\n`)

// flags 0 is a fault of the tool that made the samples.
var dumpFlags = regexp.MustCompile(`flags 0x[0-9A-F]{8};`)

func comparableDump(s string) string {
	return dumpFlags.ReplaceAllString(dumpHeader.ReplaceAllString(s, ""), "flags;")
}

// The images made by the real tool load and read as it says they do.
func TestSamples(t *testing.T) {
	for _, tt := range []struct {
		name  string
		p     Placement
		index int
		dump  string // name of the dump if not the image's
		nth   int    // of the commands in the session
	}{
		{"m01-v08-internal-fresh", Internal, 0, "", 0},
		{"m02-v08-internal-bits", Internal, 0, "", 0},
		{"m03-v08-external-flexible", FlexExternal, 0, "", 0},
		{"m04-v08-external-indexed", Indexed, 0, "m04-v08-external-indexed.index0", 0},
		{"m04-v08-external-indexed", Indexed, 1, "m04-v08-external-indexed.index1", 1},
		{"m05-v08-al-stripes", Internal, 0, "", 0},
		{"m06-v08-al-hot", Internal, 0, "", 0},
		{"m07-v08-al-applied", Internal, 0, "", 0},
	} {
		t.Run(fmt.Sprintf("%s %d", tt.name, tt.index), func(t *testing.T) {
			d := sample(t, tt.name)
			l := layoutFor(t, d, tt.p, tt.index)
			sb, l, err := ReadSuperblock(d, l)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := Dump(&got, d, l, DumpInfo{Date: "2026-11-21", Host: "alpha", Command: "x"}); err != nil {
				t.Fatal(err)
			}
			dump := tt.dump
			if dump == "" {
				dump = tt.name
			}
			want := readText(t, dump+".dump")
			if diff := cmp.Diff(comparableDump(want), comparableDump(got.String())); diff != "" {
				t.Errorf("dump (-want +got)\n%s", diff)
			}
			session := readText(t, tt.name+".gi.txt")
			if diff := cmp.Diff(section(t, session, "get-gi", tt.nth), GetGI(sb)); diff != "" {
				t.Errorf("get-gi (-want +got)\n%s", diff)
			}
			if diff := cmp.Diff(section(t, session, "show-gi", tt.nth), strings.TrimSuffix(ShowGI(sb), "\n")); diff != "" {
				t.Errorf("show-gi (-want +got)\n%s", diff)
			}
			if diff := cmp.Diff(section(t, session, "dstate", tt.nth), DState(sb.Flags).String()); diff != "" {
				t.Errorf("dstate (-want +got)\n%s", diff)
			}
			_, b, err := Load(d, l)
			if sb.Unclean {
				if !errors.Is(err, ErrUnclean) {
					t.Errorf("Load of unclean metadata: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if set := fmt.Sprintf("# bits-set %d;", b.Weight()); !strings.Contains(want, set) {
				t.Errorf("%s is not in the dump", set)
			}
		})
	}
}

// The AL sample, applied here, is byte for byte what the real tool made of it.
func TestApplyALSample(t *testing.T) {
	d, want := sample(t, "m06-v08-al-hot"), sample(t, "m07-v08-al-applied")
	l := layoutFor(t, d, Internal, 0)
	got, err := ApplyAL(d, l)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Applied{Hot: []Extent{0, 3, 7, 48}, NewBits: 4096}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	mustEqualDevices(t, want, d)
	again, err := ApplyAL(d, l)
	if err != nil || !again.WasClean {
		t.Errorf("once more: %+v, %v", again, err)
	}
}

func mustEqualDevices(t testing.TB, want, got *memDevice) {
	t.Helper()
	a, b := make([]byte, BlockSize), make([]byte, BlockSize)
	for off := int64(0); off+BlockSize <= want.size; off += BlockSize {
		if want.pages[off/BlockSize] == nil && got.pages[off/BlockSize] == nil {
			continue
		}
		if _, err := want.ReadAt(a, off); err != nil {
			t.Fatal(err)
		}
		if _, err := got.ReadAt(b, off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Fatalf("block at %d differs (-want +got)\n%s", off, cmp.Diff(a, b))
		}
	}
}

// Damaged and foreign metadata is refused with the reason.
func TestSamplesRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		want string
		is   error // wrapped sentinel
	}{
		{"", "no valid meta data found", ErrNoMetadata}, // m11: an empty device
		{"m12-bad-bm-offset", "bm_offset is 1 sectors, want -72", nil},
		{"m13-bad-md-size", "md_size_sect is 9 sectors, want 80", nil},
		{"m08-v09-internal-fresh", "v09 metadata found", nil}, // m14, the other way round
		{"m09-v09-3peers", "v09 metadata found", nil},
		{"m18-v08-grown", "no valid meta data found", ErrNoMetadata}, // not at the new end
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newMemDevice(8 << 20)
			if tt.name != "" {
				d = sample(t, tt.name)
			}
			_, _, err := Load(d, layoutFor(t, d, Internal, 0))
			c, ok := errors.AsType[*CorruptError](err)
			if !ok || !strings.Contains(c.What, tt.want) {
				t.Fatalf("got %v, want a CorruptError with %q", err, tt.want)
			}
			if sb := d.size - BlockSize; c.Offset < sb || c.Offset >= d.size {
				t.Errorf("offset %d is not in the superblock at %d", c.Offset, sb)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v does not wrap %v", err, tt.is)
			}
		})
	}
	d := sample(t, "m10-v07-internal")
	found, err := DetectContent(d, d.size)
	if err != nil || len(found) != 1 || found[0].Name != "v07 internal meta data" {
		t.Errorf("v07: %+v, %v", found, err)
	}
	block := make([]byte, BlockSize)
	if _, err := d.ReadAt(block, found[0].Offset); err != nil {
		t.Fatal(err)
	}
	if v, ok := errors.AsType[*VersionError](decodeError(block)); !ok || v.Version != "v07" {
		t.Errorf("v07 superblock: %v", decodeError(block))
	}
}

func decodeError(block []byte) error {
	_, err := DecodeSuperblock(block)
	return err
}

// A dump restores to the same metadata, and the same text again.
func TestRestoreSamples(t *testing.T) {
	for _, tt := range []struct {
		name, input string
		p           Placement
	}{
		{"m02-v08-internal-bits", "m02-v08-internal-bits.restore-input.txt", Internal},
		{"m03-v08-external-flexible", "m03-v08-external-flexible.restore-input.txt", FlexExternal},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := sample(t, tt.name)
			parsed, err := ParseDump(strings.NewReader(readText(t, tt.input)))
			if err != nil {
				t.Fatal(err)
			}
			got := newMemDevice(want.size)
			l := layoutFor(t, got, tt.p, 0)
			if err := Restore(got, l, parsed); err != nil {
				t.Fatal(err)
			}
			mustEqualDevices(t, want, got)
			var text bytes.Buffer
			if err := Dump(&text, got, l, DumpInfo{}); err != nil {
				t.Fatal(err)
			}
			parsed, err = ParseDump(&text)
			if err != nil {
				t.Fatal(err)
			}
			again := newMemDevice(want.size)
			if err := Restore(again, l, parsed); err != nil {
				t.Fatal(err)
			}
			mustEqualDevices(t, want, again)
		})
	}
}

func TestParseDumpRefuses(t *testing.T) {
	const good = `version "v08"; uuid { 1; 2; 3; 4; flags 0x11; } la-size-sect 8; bm-byte-per-bit 4096; device-uuid 0; bm { 0x1; }`
	if _, err := ParseDump(strings.NewReader(good)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ from, to, want string }{
		{"version", "verzion", "line 1: 'version' expected; got 'verzion'"},
		{"v08", "v09", "dump of format \"v09\""},
		{"uuid {", "This_is_an_unclean_meta_data_dump._Don't_trust_the_bitmap.\nuuid {", "unclean"},
		{"4096", "512", "only 4096 is known"},
		{"0x1;", "600 times 0x1;", "bitmap is longer than that of 8 sectors"},
		{"0x1;", "0x1;\n$", "line 2: invalid input character '\\x24' [$]"},
		{"flags 0x11", "flags 0x100000011", "does not fit 32 bits"},
		{"}", "", "'}' expected; got 'la-size-sect'"},
		{`"v08"`, `"v08`, "string without closing quote"},
		{"bm {", "al-stripes 1; bm {", "'bm' expected"},
	} {
		if tt.from == "bm {" {
			tt.to = "al-stripe 1; bm {"
		}
		_, err := ParseDump(strings.NewReader(strings.Replace(good, tt.from, tt.to, 1)))
		p, ok := errors.AsType[*ParseError](err)
		if !ok || !strings.Contains(p.Error(), tt.want) {
			t.Errorf("%q: got %v, want %q", tt.to, err, tt.want)
		}
	}
}

func TestStateCommands(t *testing.T) {
	d := newMemDevice(8 << 20)
	l := layoutFor(t, d, Internal, 0)
	if err := Create(d, l, CreateOptions{DeviceUUID: 7}); err != nil {
		t.Fatal(err)
	}
	state := func() string {
		sb, _, err := ReadSuperblock(d, l)
		if err != nil {
			t.Fatal(err)
		}
		return GetGI(sb)[68:] + " " + DState(sb.Flags).String()
	}
	set := func(f Flags) {
		if err := change(d, l, func(sb *Superblock) error {
			sb.Flags = f
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := Outdate(d, l); !errors.Is(err, ErrInconsistent) {
		t.Errorf("Outdate of Inconsistent: %v", err)
	}
	set(MDFConsistent | MDFWasUpToDate | MDFPeerOutdated)
	if got := state(); got != "1:1:0:0:0:1:0 UpToDate" {
		t.Error(got)
	}
	if err := Outdate(d, l); err != nil || state() != "1:0:0:0:0:1:0 Outdated" {
		t.Errorf("Outdate: %v, %s", err, state())
	}
	if err := Invalidate(d, l); err != nil || state() != "0:0:0:0:1:1:0 Inconsistent" {
		t.Errorf("Invalidate: %v, %s", err, state())
	}
	if err := Wipe(d, l); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ReadSuperblock(d, l); !errors.Is(err, ErrNoMetadata) {
		t.Errorf("after Wipe: %v", err)
	}
}

func TestSetGI(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"1:2:3:4:1:1:1:1:1:1:1", "0000000000000001:0000000000000002:0000000000000003:0000000000000004:1:1:1:1:1:1:1"},
		{"0x5:0xABCDEF", "0000000000000005:0000000000ABCDEF:0000000000000000:0000000000000000:0:0:0:0:0:0:0"},
		{"::::1", "0000000000000004:0000000000000000:0000000000000000:0000000000000000:1:0:0:0:0:0:0"},
		{"xx", "'xx' is not a number."},
		{"::::2", "'2' for a flag, 0 or 1 expected"},
		{strings.Repeat(":", 11), `":::::::::::" has 12 fields, at most 11 are known`},
	} {
		sb := Superblock{UUIDs: UUIDs{Current: 4}}
		got := ""
		if err := SetGI(&sb, tt.in); err != nil {
			got = err.Error()
		} else {
			got = GetGI(sb)
		}
		if got != tt.want {
			t.Errorf("SetGI(%q): got %s, want %s", tt.in, got, tt.want)
		}
	}
}

// crashPoints runs op on copies of the device from start, with the power
// failing at every step, and gives what comes up after each to check.
func crashPoints(t *testing.T, start func() *memDevice, op func(*memDevice) error, check func(t *testing.T, step int, d *memDevice)) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	for step := 0; ; step++ {
		for variant := range 4 {
			d := start()
			d.left, d.tear = step, 512*rng.IntN(9)
			err := op(d)
			if err == nil {
				return
			}
			if !errors.Is(err, errPower) {
				t.Fatalf("step %d: %v", step, err)
			}
			keep := func() bool { return rng.IntN(2) == 0 }
			switch variant {
			case 0:
				keep = func() bool { return false }
			case 1:
				keep = func() bool { return true }
			}
			check(t, step, d.crash(keep))
		}
	}
}

// Power failures in apply-al: it can be repeated, and no mark is ever lost.
func TestApplyALCrashPoints(t *testing.T) {
	want := sample(t, "m07-v08-al-applied")
	l := layoutFor(t, want, Internal, 0)
	image := sample(t, "m06-v08-al-hot")
	crashPoints(t,
		func() *memDevice { return image.crash(func() bool { return true }) },
		func(d *memDevice) error { _, err := ApplyAL(d, l); return err },
		func(t *testing.T, step int, d *memDevice) {
			// The superblock itself is one write of 96 bytes in one sector.
			if _, err := ApplyAL(d, l); err != nil {
				t.Fatalf("step %d: again: %v", step, err)
			}
			mustEqualDevices(t, want, d)
		})
}

// The same with a ring that has wrapped, whose order of initialising matters.
func TestApplyALCrashPointsWrapped(t *testing.T) {
	start := func() *memDevice {
		d := newMemDevice(1 << 30)
		l := layoutFor(t, d, Internal, 0)
		if err := Create(d, l, CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		al := NewActivityLog(67, 1, 8)
		block := make([]byte, BlockSize)
		for i := range 21 {
			e := Extent(i * 7)
			if _, err := al.Begin(e, e); err != nil {
				t.Fatal(err)
			}
			at, _ := al.Transaction(block)
			if _, err := d.WriteAt(block, l.RingBlock(at)); err != nil {
				t.Fatal(err)
			}
			al.Committed()
		}
		err := change(d, l, func(sb *Superblock) error {
			sb.LASize, sb.Unclean, sb.Flags = l.Usable, true, MDFConsistent|MDFPrimaryInd
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	image := start()
	l := layoutFor(t, image, Internal, 0)
	want := start()
	if did, err := ApplyAL(want, l); err != nil || len(did.Hot) != 21 {
		t.Fatalf("%+v, %v", did, err)
	}
	crashPoints(t,
		func() *memDevice { return image.crash(func() bool { return true }) },
		func(d *memDevice) error { _, err := ApplyAL(d, l); return err },
		func(t *testing.T, step int, d *memDevice) {
			if _, err := ApplyAL(d, l); err != nil {
				t.Fatalf("step %d: again: %v", step, err)
			}
			mustEqualDevices(t, want, d)
		})
}

// A crash in create-md never leaves old identity with a new bitmap.
func TestCreateCrashPoints(t *testing.T) {
	old := sample(t, "m02-v08-internal-bits")
	l := layoutFor(t, old, Internal, 0)
	_, before, err := Load(old, l)
	if err != nil {
		t.Fatal(err)
	}
	crashPoints(t,
		func() *memDevice { return old.crash(func() bool { return true }) },
		func(d *memDevice) error { return Create(d, l, CreateOptions{}) },
		func(t *testing.T, step int, d *memDevice) {
			sb, b, err := Load(d, l)
			switch {
			case errors.Is(err, ErrNoMetadata):
			case err != nil:
				t.Fatalf("step %d: %v", step, err)
			case sb.UUIDs.Current == UUIDJustCreated && sb.Flags == MDFALClean:
			case b.Weight() != before.Weight():
				t.Fatalf("step %d: old superblock with %d of %d bits", step, b.Weight(), before.Weight())
			}
		})
}

// A damaged log that is needed stops apply-al, and nothing has been written.
func TestApplyALDamaged(t *testing.T) {
	spoil := func(f Flags, drop Flags) (*memDevice, Layout) {
		d := sample(t, "m06-v08-al-hot")
		l := layoutFor(t, d, Internal, 0)
		err := change(d, l, func(sb *Superblock) error {
			sb.Flags = sb.Flags&^drop | f
			if drop != 0 {
				sb.UUIDs.Bitmap = 0 // nor tracked anything
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for k := range 2 {
			if _, err := d.WriteAt([]byte{1}, l.RingBlock(k)+1000); err != nil {
				t.Fatal(err)
			}
		}
		d.writes = 0
		return d, l
	}
	d, l := spoil(0, 0)
	_, err := ApplyAL(d, l)
	if c, ok := errors.AsType[*CorruptError](err); !ok || c.Offset != l.AL || d.writes != 0 {
		t.Errorf("got %v after %d writes, want a CorruptError at %d and none", err, d.writes, l.AL)
	}
	for name, f := range map[string][2]Flags{
		"all bits count as set": {MDFFullSync, 0},
		"log disabled":          {MDFALDisabled, 0},
		"was not Primary":       {0, MDFPrimaryInd},
	} {
		d, l := spoil(f[0], f[1])
		if _, err := ApplyAL(d, l); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		sb, b, err := Load(d, l)
		if err != nil || !sb.Clean() {
			t.Fatalf("%s: %v", name, err)
		}
		if all := f[0] != 0; all != (b.Weight() == b.Bits()) {
			t.Errorf("%s: %d of %d bits set", name, b.Weight(), b.Bits())
		}
	}
}

func TestLoadShrunk(t *testing.T) {
	d := sample(t, "m03-v08-external-flexible")
	l, err := NewLayout(FlexExternal, 0, 1<<29, d.size, 1, 8) // the data device has half its size
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = Load(d, l)
	if s, ok := errors.AsType[*ShrunkError](err); !ok || s.Agreed != 2097152 || s.Usable != 1048576 {
		t.Errorf("got %v", err)
	}
}

func TestLayoutRefuses(t *testing.T) {
	for _, tt := range []struct {
		p                   Placement
		index               int
		data, meta          int64
		stripes, stripeSize int
		small               bool
	}{
		{Internal, 0, 65536, 0, 1, 8, true},
		{FlexExternal, 0, 0, 1<<20 - 512, 1, 8, true},
		{Indexed, 2, 0, 256 << 20, 1, 8, true},
		{Indexed, 256, 0, 1 << 40, 1, 8, false},
		{Indexed, 0, 0, 1 << 40, 2, 8, false},
		{Internal, 0, 1 << 30, 0, 1, 7, false},
		{Internal, 0, 1 << 30, 0, -1, -8, false},
		{Internal, 0, 1 << 40, 0, 1 << 22, 2, false},
		{Internal, 0, -1, 0, 1, 8, false},
	} {
		l, err := NewLayout(tt.p, tt.index, tt.data, tt.meta, tt.stripes, tt.stripeSize)
		if err == nil || errors.Is(err, ErrTooSmall) != tt.small {
			t.Errorf("%+v: %+v, %v", tt, l, err)
		}
	}
}

func TestDetectContent(t *testing.T) {
	const size = 64 << 20
	put := func(at int64, s string) func(*memDevice) {
		return func(d *memDevice) {
			if _, err := d.WriteAt([]byte(s), at); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct {
		want string
		do   func(*memDevice)
	}{
		{"xfs filesystem 8192", put(0, "XFSB\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x02")},
		{"btrfs filesystem 4096", put(65536+0x40, "_BHRfS_M"+strings.Repeat("\x00", 0x28)+"\x00\x10\x00\x00\x00\x00\x00\x00")},
		{"ext2 filesystem 4096", func(d *memDevice) { put(1024+4, "\x04")(d); put(1024+56, "\x53\xef")(d) }},
		{"swap space 8192", func(d *memDevice) { put(1028, "\x01")(d); put(4086, "SWAPSPACE2")(d) }},
		{"LVM2 physical volume 65536", func(d *memDevice) {
			put(512, "LABELONE")(d)
			put(512+20, "\x20\x00\x00\x00LVM2 001")(d)
			put(512+64, "\x00\x00\x01")(d)
		}},
		{"LUKS encrypted device 0", put(0, "LUKS\xba\xbe")},
		{"Linux RAID member 0", put(4096, "\xfc\x4e\x2b\xa9")},
		{"Linux RAID member 0", put(size-65536, "\xfc\x4e\x2b\xa9")},
		{"NTFS filesystem 4096", func(d *memDevice) { put(3, "NTFS    \x00\x02")(d); put(40, "\x07")(d) }},
		{"FAT filesystem 1024", func(d *memDevice) { put(11, "\x00\x02")(d); put(19, "\x02\x00")(d); put(54, "FAT16   ")(d) }},
		{"GPT partition table 4096", func(d *memDevice) { put(512, "EFI PART")(d); put(512+32, "\x07")(d) }},
		{"DOS partition table 2048", func(d *memDevice) {
			put(446, "\x80\x00\x00\x00\x83\x00\x00\x00\x01\x00\x00\x00\x03")(d)
			put(510, "\x55\xaa")(d)
		}},
		{"JFS filesystem 0", put(32768, "JFS1")},
		{"ZFS member 0", put(131072+1024, "\x0c\xb1\xba")},
		{"v08 external meta data 0", func(d *memDevice) {
			if err := Create(d, layoutFor(t, d, FlexExternal, 0), CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}},
		{"v08 flexible-size internal meta data 0", func(d *memDevice) {
			if err := Create(d, layoutFor(t, d, Internal, 0), CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		d := newMemDevice(size)
		tt.do(d)
		found, err := DetectContent(d, size)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range found {
			got = append(got, fmt.Sprintf("%s %d", f.Name, f.UsedBytes))
		}
		if !slices.Equal(got, []string{tt.want}) {
			t.Errorf("got %q, want %q", got, tt.want)
		}
		if blank, err := Blank(d, size, layoutFor(t, d, Internal, 0)); blank && !strings.Contains(tt.want, "RAID") {
			t.Errorf("%s: counts as blank (%v)", tt.want, err)
		}
	}
	for _, tiny := range []int64{0, 512, 4096, 5000} {
		d := newMemDevice(tiny)
		if found, err := DetectContent(d, tiny); err != nil || found != nil {
			t.Errorf("%d bytes: %v, %v", tiny, found, err)
		}
	}
}

func TestExtentBits(t *testing.T) {
	first, last := ExtentsOf(8191, 1024)
	if first != 0 || last != 1 {
		t.Errorf("ExtentsOf = %d, %d", first, last)
	}
	if f, l := Extent(33).Bits(); f != 33*1024 || l != 34*1024-1 || Extent(33).Page() != 1 || PageOf(f) != 1 {
		t.Errorf("Bits = %d, %d, page %d", f, l, Extent(33).Page())
	}
	if BitOf(17) != 2 || Bit(2).Sector() != 16 || BitmapBytes(drbd.Sector(8*bitsPerPage+1)) != 2*BlockSize {
		t.Error("units")
	}
}

func TestShowGIRole(t *testing.T) {
	for f, want := range map[Flags]string{
		0:                                 "flags: Secondary, StandAlone, Inconsistent\n",
		MDFCrashedPrimary | MDFConsistent: "flags: crashed Secondary, StandAlone, Outdated\n",
		MDFCrashedPrimary | MDFPrimaryInd | MDFConnectedInd: "flags: crashed Primary, Connected, Inconsistent\n",
	} {
		if got := ShowGI(Superblock{Flags: f}); !strings.Contains(got, want) {
			t.Errorf("%v: want %s, got\n%s", f, want, got)
		}
	}
}
