package takeover

import (
	"compress/bzip2"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/replication/meta"
)

// image unpacks one of the images that the real drbdmeta made.
func image(t *testing.T, name string) string {
	t.Helper()
	in, err := os.Open("../../../replication/meta/testdata/" + name + ".img.bz2")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	path := filepath.Join(t.TempDir(), "disk")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, bzip2.NewReader(in)); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func dataDisk(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDisk: what is said of the metadata that DRBD leaves, in all its places.
func TestDisk(t *testing.T) {
	for _, tt := range []struct {
		image string
		v     conf.Volume // Disk or MetaDisk is filled in
		want  []string    // "VERDICT TEXT" of the findings, as far as given
		do    string      // in the last finding's
	}{
		{"m01-v08-internal-fresh", conf.Volume{}, []string{
			"ok v08, internal: Inconsistent; data generation 0000000000000004", "ok shut down cleanly", "note it has never been connected",
		}, ""},
		{"m02-v08-internal-bits", conf.Volume{}, []string{
			"ok v08, internal: Consistent, and up to date when it was last used; data generation 94B8C5A19F10E5A4", "ok shut down cleanly", "note 840 KiB are marked out of sync already",
		}, ""},
		{"m03-v08-external-flexible", conf.Volume{MetaDisk: "m", MetaIndex: -1}, []string{
			"ok v08, flex-external: Consistent", "ok shut down cleanly", "note 4.0 MiB are marked out of sync",
		}, ""},
		{"m04-v08-external-indexed", conf.Volume{MetaDisk: "m", MetaIndex: 1}, []string{"ok v08, indexed: Inconsistent", "ok shut down cleanly"}, ""},
		{"m05-v08-al-stripes", conf.Volume{}, []string{"ok v08, internal: Inconsistent", "ok shut down cleanly"}, ""},
		{"m06-v08-al-hot", conf.Volume{}, []string{
			"ok v08, internal: Consistent, and up to date when it was last used; data generation AAAABBBBCCCCDDDF",
			"note this node went down while it was writing: its activity log names 4 extents, 16 MiB, which will be marked out of sync",
		}, ""},
		{"m07-v08-al-applied", conf.Volume{}, []string{
			"ok v08, internal: Consistent", "note this node was Primary when it went down; its activity log is applied already", "note 16 MiB are marked out of sync",
		}, ""},
		{"m08-v09-internal-fresh", conf.Volume{Minor: 3}, []string{"WRONG metadata at byte 8384572: v09 metadata found"}, "polluxmeta 3 v08 "},
		{"m09-v09-3peers", conf.Volume{}, []string{"WRONG metadata"}, "a full sync"},
		{"m12-bad-bm-offset", conf.Volume{}, []string{"WRONG metadata at byte 8384588: bm_offset is 1 sectors, want -72"}, "drbdadm apply-al r0"},
		{"m13-bad-md-size", conf.Volume{}, []string{"WRONG metadata"}, "drbdadm invalidate r0"},
		{"m18-v08-grown", conf.Volume{}, []string{"WRONG metadata at byte"}, "drbdadm check-resize r0"},
	} {
		t.Run(tt.image, func(t *testing.T) {
			t.Parallel()
			v, path := tt.v, image(t, tt.image)
			before, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if v.Disk = path; v.MetaDisk != "" {
				v.Disk, v.MetaDisk = dataDisk(t, 1<<30), path
			}
			fs := Machine{Root: t.TempDir()}.Disk("r0", v)
			if len(fs) < 1+len(tt.want) || fs[0].Verdict != OK {
				t.Fatalf("%+v", fs)
			}
			for i, want := range tt.want {
				if got := fmt.Sprintf("%v %s", fs[i+1].Verdict, fs[i+1].Text); !strings.HasPrefix(got, want) {
					t.Errorf("finding %d: %s, want %s", i+1, got, want)
				}
			}
			if do := strings.Join(fs[len(fs)-1].Do, "\n"); !strings.Contains(do, tt.do) {
				t.Errorf("advice %q, want %q in it", do, tt.do)
			}
			if after, err := os.Stat(path); err != nil || after.ModTime() != before.ModTime() {
				t.Error("the image was changed by looking at it")
			}
		})
	}
}

// TestDiskStates: what a superblock can say beside where it is.
func TestDiskStates(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(sb *meta.Superblock)
		want string
	}{
		{"full sync", func(sb *meta.Superblock) { sb.Flags |= meta.MDFFullSync }, "note a full sync is pending"},
		{"Inconsistent", func(sb *meta.Superblock) { sb.Flags &^= meta.MDFConsistent }, "note this copy is Inconsistent"},
		{"grown", func(sb *meta.Superblock) { sb.LASize = 8192 }, "note the volume uses 4 MiB of 8.0 MiB"},
		{"shrunk", func(sb *meta.Superblock) { sb.LASize = 16320 }, "WRONG device shrunk: 16320 sectors were in use"},
		{"as drbd.ko leaves it", func(sb *meta.Superblock) { sb.Unclean = true; sb.Flags &^= meta.MDFALClean }, "ok not marked clean, as drbd.ko leaves it"},
		{"a term", func(sb *meta.Superblock) { sb.Term = meta.TermRecord{Seq: 1, Term: 7, Promised: 8} }, "ok a record of term 7, promised 8"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := image(t, "m01-v08-internal-fresh")
			d, err := OpenDevices(conf.Volume{Disk: path}, false)
			if err != nil {
				t.Fatal(err)
			}
			sb, _, err := meta.ReadSuperblock(d.Meta, d.Layout)
			if err != nil {
				t.Fatal(err)
			}
			sb.LASize, sb.Flags = d.Layout.Usable, sb.Flags|meta.MDFConsistent|meta.MDFWasUpToDate
			tt.edit(&sb)
			if err := meta.WriteSuperblock(d.Meta, d.Layout, sb); err != nil {
				t.Fatal(err)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			var all []string
			for _, f := range (Machine{}).Disk("r0", conf.Volume{Disk: path}) {
				all = append(all, fmt.Sprintf("%v %s", f.Verdict, f.Text))
			}
			if text := strings.Join(all, "\n"); !strings.Contains(text, tt.want) {
				t.Errorf("%s\nwant %s", text, tt.want)
			}
		})
	}
	t.Run("foreign bytes", func(t *testing.T) {
		path := image(t, "m01-v08-internal-fresh")
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{1}, 8<<20-4096+1000); err != nil {
			t.Fatal(err)
		}
		f.Close()
		fs := Machine{}.Disk("r0", conf.Volume{Disk: path})
		if last := fs[len(fs)-1]; last.Verdict != Note || !strings.Contains(last.Text, "reserved bytes are not empty") {
			t.Errorf("%+v", fs)
		}
	})
	t.Run("held", func(t *testing.T) {
		path := image(t, "m01-v08-internal-fresh")
		d, err := OpenDevices(conf.Volume{Disk: path}, false)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		fs := Machine{}.Disk("r0", conf.Volume{Disk: path})
		if !AnyWrong(fs) || !strings.HasSuffix(fs[0].Text, "is in use") || !strings.HasPrefix(fs[0].Do[0], "drbdadm down r0") {
			t.Errorf("%+v", fs)
		}
	})
}

func TestParseProcAddr(t *testing.T) {
	for in, want := range map[string]string{
		"0100007F:1E6D":                         "127.0.0.1:7789",
		"00000000:0016":                         "0.0.0.0:22",
		"00000000000000000000000001000000:1E6D": "[::1]:7789",
		"0000000000000000FFFF00001F01010A:1E6D": "[::ffff:10.1.1.31]:7789",
	} {
		if got, ok := parseProcAddr(in); !ok || got != netip.MustParseAddrPort(want) {
			t.Errorf("%s = %v, %v, want %s", in, got, ok, want)
		}
	}
	for _, in := range []string{"", "0100007F", "0100007F:", "0100:1E6D", "0100007G:1E6D", strings.Repeat("0", 40) + ":1"} {
		if got, ok := parseProcAddr(in); ok {
			t.Errorf("%q was taken for %v", in, got)
		}
	}
}
