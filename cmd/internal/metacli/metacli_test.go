package metacli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/blockdev"
)

type result struct {
	code           int
	stdout, stderr string
}

// run runs polluxmeta 97 v08 with the rest of the command line.
func run(t testing.TB, env Env, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if env.Stdin == nil {
		env.Stdin = strings.NewReader("")
	}
	env.Args = append([]string{"polluxmeta"}, args...)
	env.Stdout, env.Stderr, env.Host = &stdout, &stderr, "alpha"
	env.Now = func() time.Time { return time.Date(2026, 11, 21, 8, 53, 28, 0, time.UTC) }
	code := Run(env)
	return result{code, stdout.String(), stderr.String()}
}

func makeFile(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func poke(t testing.TB, path string, at int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// extImage has the superblock of an ext2 of so many blocks of 1 KiB.
func extImage(t testing.TB, size int64, blocks uint16) string {
	path := makeFile(t, size)
	poke(t, path, 1024+4, []byte{byte(blocks), byte(blocks >> 8)})
	poke(t, path, 1024+56, []byte{0x53, 0xef})
	return path
}

func TestCommandLine(t *testing.T) {
	img := makeFile(t, 8<<20)
	for _, tt := range []struct {
		args   string
		code   int
		stderr string
	}{
		{"97 v05 IMG internal dstate", 20, "Unknown format 'v05'.\n"},
		{"97 v09 IMG internal dstate", 20, "format 'v09' is not supported: Pollux uses v08, the format of DRBD 8.4\n"},
		{"97 v08 IMG", 20, "Too few arguments for format\n"},
		{"97", 20, "Too few arguments\n"},
		{"97 v08 IMG internal", 20, "command missing\n"},
		{"97 v08 IMG internal bogus", 20, "Unknown command 'bogus'.\n"},
		{"97 v08 IMG inter dump-md", 20, "'inter' is not a valid index number.\n"},
		{"97 v08 IMG 256 dump-md", 20, "'256' is not a valid index number.\n"},
		{"97 v08 IMG/none internal dump-md", 20, "open(IMG/none) failed: IMG/none: not a directory\n"},
		{"97 v08 IMG internal dstate --bogus", 20, "polluxmeta: unrecognized option '--bogus'\n"},
		{"97 v08 IMG internal create-md --al-stripes", 20, "polluxmeta: option '--al-stripes' requires an argument\n"},
		{"97 v08 IMG internal create-md --al-stripes=x", 20, "polluxmeta: option '--al-stripes': 'x' is not a number\n"},
		{"97 v08 IMG internal create-md --al-stripes 0", 10, "invalid (too small) al-stripe* settings\n"},
		{"97 v08 IMG internal create-md --al-stripe-size-kB 6", 10, "invalid (too small) al-stripe* settings\n"},
		{"97 v08 IMG internal create-md --al-stripes 100000000 --al-stripe-size-kB 400", 10, "invalid (too large) al-stripe* settings\n"},
		{"97 v08 IMG internal dump-md", 1, "No valid meta data found\n"},
		{"97 v08 IMG internal apply-al", 1, "No valid meta data found\n"},
		{"97 v08 IMG internal dstate extra", 1, "Ignoring additional arguments\nNo valid meta data found\n"},
		{"97 v08 IMG internal set-gi", 10, "Required Argument missing\n"},
		{"97 v08 IMG internal wipe-md", 0, "There appears to be no drbd meta data to wipe out?\n"},
		{"97 v08 IMG internal check-resize", 1, "No valid meta data found\nIMG has 8388608 bytes. If it was resized while down, give it its old size again,\ndump-md into a file, resize, restore-md from that file.\n"},
		{"97 v08 IMG internal verify-dump IMG/none", 20, "open of 'IMG/none' failed.\nopen IMG/none: not a directory\n"},
		{"97 v08 IMG internal restore-md", 10, "Parse error in line 1: 'version' expected; end of file encountered\n"},
		{"97 v08 IMG 0 create-md", 10, "Device too small: expecting meta data block at\nbyte offset 0, but IMG is only 8388608 bytes.\n"},
	} {
		got := run(t, Env{}, strings.Fields(strings.ReplaceAll(tt.args, "IMG", img))...)
		got.stderr = strings.ReplaceAll(got.stderr, img, "IMG")
		if diff := cmp.Diff(tt.stderr, got.stderr); got.code != tt.code || diff != "" && !strings.Contains(tt.args, "none internal") {
			t.Errorf("%s: exit code %d, want %d (-want +got)\n%s", tt.args, got.code, tt.code, diff)
		}
	}
	if got := run(t, Env{}, "--help"); got.code != 0 || !strings.Contains(got.stdout, "create-md [--peer-max-bio-size {val}]") {
		t.Errorf("--help: %+v", got)
	}
	if got := run(t, Env{}); got.code != ExitUsage || !strings.Contains(got.stderr, "USAGE") {
		t.Errorf("no arguments: %+v", got)
	}
}

func TestCreateRefuses(t *testing.T) {
	small := makeFile(t, 64<<10)
	if got := run(t, Env{}, "0", "v08", small, "internal", "create-md", "--force"); got.code != ExitArgument ||
		!strings.HasPrefix(got.stderr, small+" is only 65536 bytes. That's not enough.\n") {
		t.Errorf("too small: %+v", got)
	}

	// A file system that fills the device: refused even with --force.
	full := extImage(t, 8<<20, 8192)
	for _, args := range [][]string{{"create-md"}, {"create-md", "--force"}} {
		got := run(t, Env{}, append([]string{"0", "v08", full, "internal"}, args...)...)
		want := result{code: ExitFilesystem, stdout: `md_offset 8384512
al_offset 8351744
bm_offset 8347648

Found ext2 filesystem
        8192 kB data area apparently used
        8152 kB left usable by current configuration

Device size would be truncated, which
would corrupt data and result in
'access beyond end of device' errors.
You need to either
   * use external meta data (recommended)
   * shrink that filesystem first
   * zero out the device (destroy the filesystem)
Operation refused.

`}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(result{})); diff != "" {
			t.Errorf("%v (-want +got)\n%s", args, diff)
		}
	}
	if got := run(t, Env{}, "0", "v08", full, "flex-external", "create-md", "--force"); got.code != ExitFilesystem {
		t.Errorf("flex-external over a file system: %+v", got)
	}
	before, err := os.ReadFile(full)
	if err != nil {
		t.Fatal(err)
	}
	if got := run(t, Env{}, "0", "v08", full, "internal", "create-md", "--force", "--ignore-sanity-checks"); got.code != 0 {
		t.Errorf("--ignore-sanity-checks: %+v", got)
	}
	after, err := os.ReadFile(full)
	if err != nil || !bytes.Equal(before[:8347648], after[:8347648]) {
		t.Errorf("data was touched (%v)", err)
	}

	// One that leaves room: only a person or --force may say so.
	room := extImage(t, 8<<20, 4096)
	if got := run(t, Env{}, "0", "v08", room, "internal", "create-md"); got.code != ExitRefused ||
		!strings.HasSuffix(got.stderr, "Do you want to proceed?\nstdin not a TTY, not waiting for confirmation\n") {
		t.Errorf("room left, no terminal: %+v", got)
	}
	if got := run(t, Env{IsTerminal: true, Stdin: strings.NewReader("no\n")}, "0", "v08", room, "internal", "create-md"); got.code != ExitRefused {
		t.Errorf("room left, answered no: %+v", got)
	}
	if got := run(t, Env{IsTerminal: true, Stdin: strings.NewReader("yes\n")}, "0", "v08", room, "internal", "create-md"); got.code != 0 {
		t.Errorf("room left, answered yes: %+v", got)
	}

	// Some data, of no known kind.
	data := makeFile(t, 8<<20)
	poke(t, data, 100000, []byte("data"))
	if got := run(t, Env{}, "0", "v08", data, "internal", "create-md"); got.code != ExitRefused || !strings.Contains(got.stdout, "Found some data") {
		t.Errorf("some data: %+v", got)
	}
	tail := makeFile(t, 8<<20)
	poke(t, tail, 8<<20-6000, []byte("data"))
	if got := run(t, Env{}, "0", "v08", tail, "internal", "create-md"); got.code != ExitRefused {
		t.Errorf("data where the metadata goes: %+v", got)
	}
}

func TestCreateOverMetadata(t *testing.T) {
	img := makeFile(t, 8<<20)
	if got := run(t, Env{}, "0", "v08", img, "internal", "create-md"); got.code != 0 ||
		got.stdout != "initializing activity log\nWriting meta data...\nNew drbd meta data block successfully created.\n" ||
		got.stderr != "initializing bitmap (4 KB) to all zero\n" {
		t.Fatalf("%+v", got)
	}
	got := run(t, Env{}, "0", "v08", img, "internal", "create-md")
	got.stderr = strings.ReplaceAll(got.stderr, img, "lv0")
	want := result{ExitRefused, "Operation cancelled.\n", `You want me to create a v08 style flexible-size internal meta data block.
There appears to be a v08 flexible-size internal meta data block
already in place on lv0 at byte offset 8384512

Do you really want to overwrite the existing meta-data?
stdin not a TTY, not waiting for confirmation
`}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(result{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got := run(t, Env{}, "--force", "0", "v08", img, "internal", "create-md"); got.code != 0 {
		t.Errorf("--force: %+v", got)
	}
	// v09 metadata is recognised, too.
	poke(t, img, 8384512+60, []byte{0x83, 0x74, 0x02, 0x6d})
	if got := run(t, Env{}, "0", "v08", img, "internal", "create-md"); got.code != ExitRefused || !strings.Contains(got.stderr, "There appears to be a v09 flexible-size internal meta data block") {
		t.Errorf("over v09: %+v", got)
	}
	if got := run(t, Env{}, "0", "v08", img, "internal", "wipe-md"); got.code != ExitRefused || !strings.Contains(got.stderr, "v09 meta data found") {
		t.Errorf("wipe v09: %+v", got)
	}
	if got := run(t, Env{}, "0", "v08", img, "internal", "dump-md"); got.code != ExitRefused || !strings.Contains(got.stderr, "v09 metadata found; Pollux uses v08") {
		t.Errorf("dump v09: %+v", got)
	}
}

// Slots of an indexed device beside each other. As with drbdmeta, slot 0 is
// "some data" at the beginning of the device to a later create-md of another.
func TestCreateSlots(t *testing.T) {
	img := makeFile(t, 256<<20)
	for _, tt := range []struct {
		args string
		code int
	}{
		{"1 create-md", ExitDone},
		{"0 create-md", ExitDone},
		{"1 create-md", ExitRefused},
		{"0 create-md", ExitRefused},
		{"1 wipe-md --force", ExitDone},
		{"1 create-md", ExitRefused},
		{"1 create-md --force", ExitDone},
		{"0 dstate", ExitDone},
	} {
		if got := run(t, Env{}, append([]string{"0", "v08", img}, strings.Fields(tt.args)...)...); got.code != tt.code {
			t.Errorf("%s: want exit %d: %+v", tt.args, tt.code, got)
		}
	}
}

// The recorded session of drbdmeta, m19.
func TestStateCommands(t *testing.T) {
	img := makeFile(t, 8<<20)
	fresh := "0000000000000004:0000000000000000:0000000000000000:0000000000000000"
	id := "1234567890123456:0000000000000000:0000000000000000:0000000000000000"
	for i, tt := range []struct {
		args string
		want result
	}{
		{"create-md", result{0, "initializing activity log\nWriting meta data...\nNew drbd meta data block successfully created.\n", "initializing bitmap (4 KB) to all zero\n"}},
		{"outdate", result{5, "", "Device is inconsistent.\n"}},
		{"set-gi 0x1234567890123456:0x0:0x0:0x0:1:1:0:0:0:0:0 --force", result{0, "previously " + fresh + ":0:0:0:0:0:0:0\nset GI to  " + id + ":1:1:0:0:0:0:0\n", "\nWrite new GI to disk?\n*** confirmation forced via --force option ***\n"}},
		{"get-gi", result{0, id + ":1:1:0:0:0:0:0\n", ""}},
		{"outdate", result{}},
		{"get-gi", result{0, id + ":1:0:0:0:0:0:0\n", ""}},
		{"dstate", result{0, "Outdated\n", ""}},
		{"invalidate", result{}},
		{"get-gi", result{0, id + ":0:0:0:0:1:0:0\n", ""}},
		{"dstate", result{0, "Inconsistent\n", ""}},
		{"check-resize", result{}},
		{"apply-al", result{}},
		{"wipe-md", result{1, "Operation cancelled.\n", "\nDo you really want to wipe out the DRBD meta data?\nstdin not a TTY, not waiting for confirmation\n"}},
		{"wipe-md --force", result{0, "Wiping meta data...\nDRBD meta data block successfully wiped out.\n", "\nDo you really want to wipe out the DRBD meta data?\n*** confirmation forced via --force option ***\n"}},
		{"dump-md", result{1, "", "No valid meta data found\n"}},
		{"wipe-md --force", result{0, "", "There appears to be no drbd meta data to wipe out?\n"}},
	} {
		got := run(t, Env{}, append([]string{"0", "v08", img, "internal"}, strings.Fields(tt.args)...)...)
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(result{})); diff != "" {
			t.Errorf("%d: %s (-want +got)\n%s", i, tt.args, diff)
		}
	}
}

func TestDeviceInUse(t *testing.T) {
	img := makeFile(t, 8<<20)
	d, err := blockdev.Open(img, blockdev.Options{Exclusive: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // nothing was written
	for _, command := range []string{"create-md", "dump-md"} {
		if got := run(t, Env{}, "/dev/drbd7", "v08", img, "internal", command); got.code != ExitUsage || !strings.HasPrefix(got.stderr, "Device '7' is configured!\n") {
			t.Errorf("%s: %+v", command, got)
		}
	}
}

func TestUncleanDump(t *testing.T) {
	img := makeFile(t, 8<<20)
	run(t, Env{}, "0", "v08", img, "internal", "create-md")
	poke(t, img, 8384512+60, []byte{0x83, 0x74, 0x02, 0x6c})
	const warn = "Found meta data is \"unclean\", please apply-al first\n"
	if got := run(t, Env{}, "0", "v08", img, "internal", "dump-md"); got != (result{1, "", warn}) {
		t.Errorf("%+v", got)
	}
	got := run(t, Env{}, "0", "v08", img, "internal", "dump-md", "--force")
	if got.code != 0 || got.stderr != warn || !strings.Contains(got.stdout, "\nThis_is_an_unclean_meta_data_dump.") {
		t.Errorf("%+v", got)
	}
	if !strings.HasPrefix(got.stdout, "# DRBD meta data dump\n# 2026-11-21 08:53:28 +0000 [1795251208]\n# alpha> polluxmeta 0 v08 ") {
		t.Errorf("head: %s", got.stdout)
	}
	if got := run(t, Env{Stdin: strings.NewReader(got.stdout)}, "0", "v08", img, "internal", "restore-md", "-", "--force"); got.code != ExitArgument || !strings.Contains(got.stderr, "Parse error in line 8: this is the dump of unclean meta data") {
		t.Errorf("restore: %+v", got)
	}
}

func ExampleRun() {
	img := filepath.Join(os.TempDir(), fmt.Sprintf("polluxmeta-example-%d.img", os.Getpid()))
	if err := os.WriteFile(img, make([]byte, 1<<20), 0o600); err != nil {
		panic(err)
	}
	defer func() { _ = os.Remove(img) }() // scratch
	var out bytes.Buffer
	for _, command := range []string{"create-md", "dstate"} {
		out.Reset()
		Run(Env{Args: []string{"polluxmeta", "0", "v08", img, "internal", command}, Stdout: &out, Stderr: io.Discard, Now: time.Now})
	}
	fmt.Print(out.String())
	// Output: Inconsistent
}
