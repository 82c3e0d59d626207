package metacli

import (
	"bytes"
	"compress/bzip2"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// samples are images and sessions of the real drbdmeta (9.22.0, minor and device
// as they were: the device is called lv0).
const samples = "../../../replication/meta/testdata"

// A session is a command that drbdmeta was given, and what it answered.
type session struct {
	args           []string
	code           int
	stdout, stderr string
}

var sessionStart = regexp.MustCompile(`(?m)^\$ drbdmeta (.*)\nexit=(\d+)\n`)

func readSessions(t *testing.T, name string) []session {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(samples, name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	var list []session
	at := sessionStart.FindAllStringSubmatchIndex(text, -1)
	for i, m := range at {
		end := len(text)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		s := session{args: strings.Fields(text[m[2]:m[3]])}
		if s.code, err = strconv.Atoi(text[m[4]:m[5]]); err != nil {
			t.Fatal(err)
		}
		rest, out, _ := strings.Cut("\n"+text[m[1]:end], "\n--- stdout\n")
		s.stdout = out
		s.stderr = strings.TrimPrefix(rest, "\n--- stderr\n")
		if s.stderr != "" && s.stderr != "\n" && !strings.HasSuffix(s.stderr, "\n") {
			s.stderr += "\n"
		}
		list = append(list, s)
	}
	if len(list) == 0 {
		t.Fatalf("%s: no session", name)
	}
	return list
}

func unpack(t *testing.T, name, to string) {
	t.Helper()
	if testing.Short() && (strings.HasPrefix(name, "m04") || strings.HasPrefix(name, "m06") || strings.HasPrefix(name, "m07")) {
		t.Skip("an image of 200 MiB or more")
	}
	in, err := os.Open(filepath.Join(samples, name+".img.bz2"))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	r, buf, size := bzip2.NewReader(in), make([]byte, 64<<10), int64(0)
	for {
		n, err := io.ReadFull(r, buf)
		if bytes.Trim(buf[:n], "\x00") != nil { // holes stay holes
			if _, err := out.WriteAt(buf[:n], size); err != nil {
				t.Fatal(err)
			}
		}
		size += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// question is what drbdmeta asks where we have seen that only metadata of the same
// kind is there; extent is how much of a bitmap is cleared, which we do for all of it.
var (
	question = regexp.MustCompile(`(?s)md_offset.*?==> This might destroy existing data! <==\n|\nDo you want to proceed\?\n\*\*\* confirmation forced via --force option \*\*\*\n`)
	extent   = regexp.MustCompile(`initializing bitmap \(\d+ .B\)`)
)

func spoken(text string) string {
	return strings.TrimSpace(extent.ReplaceAllString(question.ReplaceAllString(text, ""), "initializing bitmap"))
}

// check compares an answer of ours with drbdmeta's: the status and what it prints
// are the same; where it refuses we may say more, and must say at least that.
func (s session) check(t *testing.T, got result) {
	t.Helper()
	if got.code != s.code {
		t.Errorf("%v: exit status %d, drbdmeta %d\n%s%s", s.args, got.code, s.code, got.stdout, got.stderr)
	}
	if diff := cmp.Diff(spoken(comparableDump(s.stdout)), spoken(comparableDump(got.stdout))); diff != "" {
		t.Errorf("%v: stdout (-drbdmeta +polluxmeta)\n%s", s.args, diff)
	}
	if s.code != 0 && strings.Contains(s.stderr, noMetadata) != strings.Contains(got.stderr, noMetadata) && strings.TrimSpace(s.stderr) != "" && !strings.Contains(s.stderr, "strange") {
		t.Errorf("%v: stderr %q, drbdmeta %q", s.args, got.stderr, s.stderr)
	}
	if diff := cmp.Diff(spoken(s.stderr), spoken(got.stderr)); s.code == 0 && diff != "" {
		t.Errorf("%v: stderr (-drbdmeta +polluxmeta)\n%s", s.args, diff)
	}
}

// TestCorpusSessions: each image of the real drbdmeta, and each command that it was
// given then: we answer alike.
func TestCorpusSessions(t *testing.T) {
	for _, tt := range []struct {
		image    string // "" is a blank disk of 8 MiB
		sessions []string
	}{
		{"m01-v08-internal-fresh", []string{".dump-md", ".gi"}},
		{"m02-v08-internal-bits", []string{".dump-md", ".gi"}},
		{"m03-v08-external-flexible", []string{".dump-md", ".gi"}},
		{"m04-v08-external-indexed", []string{".dump-md", ".gi"}},
		{"m05-v08-al-stripes", []string{".dump-md", ".gi"}},
		{"m06-v08-al-hot", []string{".dump-md", ".gi"}},
		{"m07-v08-al-applied", []string{".dump-md", ".gi"}},
		{"", []string{"m11-bad-no-magic.dump-md", "m11-bad-no-magic.gi"}},
		{"m12-bad-bm-offset", []string{".dump-md", ".gi"}},
		{"m13-bad-md-size", []string{".dump-md", ".gi"}},
	} {
		t.Run(strings.Join(append([]string{tt.image}, tt.sessions...), " "), func(t *testing.T) {
			var all []session
			for _, name := range tt.sessions {
				all = append(all, readSessions(t, tt.image+name)...)
			}
			disk := filepath.Join(t.TempDir(), "lv0")
			if tt.image != "" {
				unpack(t, tt.image, disk)
			} else if err := os.Rename(makeFile(t, 8<<20), disk); err != nil {
				t.Fatal(err)
			}
			t.Chdir(filepath.Dir(disk))
			for _, s := range all {
				s.check(t, run(t, Env{}, s.args...))
			}
		})
	}
}

// TestCorpusWritten: what drbdmeta was told to write, written by us: the image is
// the same byte for byte. m06's apply-al makes m07.
func TestCorpusWritten(t *testing.T) {
	for _, tt := range []struct {
		from     string // image to begin with; "" is a blank one
		size     int64
		sessions []string
		image    string // that must come out; "" for refusals
	}{
		{"", 8 << 20, []string{"m01-v08-internal-fresh.create"}, "m01-v08-internal-fresh"},
		{"", 40 << 20, []string{"m02-v08-internal-bits.create", "m02-v08-internal-bits.restore"}, "m02-v08-internal-bits"},
		{"", 1 << 20, []string{"m03-v08-external-flexible.create", "m03-v08-external-flexible.restore"}, "m03-v08-external-flexible"},
		{"", 256 << 20, []string{"m04-v08-external-indexed.create"}, "m04-v08-external-indexed"},
		{"", 8 << 20, []string{"m05-v08-al-stripes.create"}, "m05-v08-al-stripes"},
		{"m06-v08-al-hot", 0, []string{"m07-v08-al-applied.create"}, "m07-v08-al-applied"},
		{"", 64 << 10, []string{"m15-bad-too-small.create"}, ""},
		{"m01-v08-internal-fresh", 0, []string{"m17-overwrite-refused.create"}, "m01-v08-internal-fresh"},
		{"m01-v08-internal-fresh", 0, []string{"m19-state-commands.commands"}, ""},
	} {
		t.Run(strings.Join(tt.sessions, " "), func(t *testing.T) {
			dir := t.TempDir()
			disk, want := filepath.Join(dir, "lv0"), filepath.Join(dir, "want")
			if tt.from != "" {
				unpack(t, tt.from, disk)
			} else if err := os.Rename(makeFile(t, tt.size), disk); err != nil {
				t.Fatal(err)
			}
			if tt.image != "" {
				unpack(t, tt.image, want)
			}
			var all []session
			for _, name := range tt.sessions {
				all = append(all, readSessions(t, name)...)
				if input := strings.TrimSuffix(name, ".restore"); input != name {
					b, err := os.ReadFile(filepath.Join(samples, input+".restore-input.txt"))
					if err == nil {
						err = os.WriteFile(filepath.Join(dir, "r.txt"), b, 0o600)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
			}
			t.Chdir(dir)
			for _, s := range all {
				s.check(t, run(t, Env{}, s.args...))
			}
			if tt.image != "" {
				mustEqualFiles(t, want, disk)
			}
		})
	}
}

// TestOracleReadsOurs: the real drbdmeta reads what we restored from its own
// images as it reads the images.
func TestOracleReadsOurs(t *testing.T) {
	tool := needOracle(t)
	for _, tt := range []struct{ image, index string }{
		{"m01-v08-internal-fresh", "internal"},
		{"m02-v08-internal-bits", "internal"},
		{"m03-v08-external-flexible", "flex-external"},
		{"m04-v08-external-indexed", "1"},
		{"m05-v08-al-stripes", "internal"},
		{"m07-v08-al-applied", "internal"},
	} {
		t.Run(tt.image, func(t *testing.T) {
			dir := t.TempDir()
			theirs, mine, text := filepath.Join(dir, "theirs"), filepath.Join(dir, "mine"), filepath.Join(dir, "md.txt")
			unpack(t, tt.image, theirs)
			fi, err := os.Stat(theirs)
			if err != nil {
				t.Fatal(err)
			}
			want := drbdmeta(t, tool, theirs, tt.index, "dump-md")
			if err := os.WriteFile(text, []byte(ours(t, theirs, tt.index, "dump-md").stdout), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(mine, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(mine, fi.Size()); err != nil {
				t.Fatal(err)
			}
			if r := ours(t, mine, tt.index, "restore-md", text); r.code != 0 {
				t.Fatalf("%+v", r)
			}
			got := drbdmeta(t, tool, mine, tt.index, "dump-md")
			if got.code != 0 || want.code != 0 {
				t.Fatalf("drbdmeta: %+v\n%+v", want, got)
			}
			if diff := cmp.Diff(comparableDump(want.stdout), comparableDump(got.stdout)); diff != "" {
				t.Errorf("dump by drbdmeta (-its image +ours)\n%s", diff)
			}
			for _, command := range []string{"get-gi", "show-gi", "dstate", "apply-al"} {
				a, b := drbdmeta(t, tool, theirs, tt.index, command), drbdmeta(t, tool, mine, tt.index, command)
				if diff := cmp.Diff(a, b, cmp.AllowUnexported(result{})); diff != "" {
					t.Errorf("%s by drbdmeta (-its image +ours)\n%s", command, diff)
				}
			}
		})
	}
}
