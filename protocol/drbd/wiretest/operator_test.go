package wiretest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPokes(t *testing.T) {
	for _, tt := range []struct {
		command string
		want    [][]Poke
	}{
		{"poke /dev/drbd0 w 8k 4k 11 f", [][]Poke{{{Op: 'w', Offset: 8192, Length: 4096, Fill: 0x11}}, {{Op: 'f'}}}},
		{"poke /dev/drbd1 P 2 1m 512 aa 0", [][]Poke{{
			{Volume: 1, Op: 'w', Offset: 1 << 20, Length: 512, Fill: 0xaa}, {Volume: 1, Op: 'w', Offset: 1 << 20, Length: 512, Fill: 0xaa},
		}}},
		{"poke /dev/drbd0 f & poke /dev/drbd1 f; wait", [][]Poke{{{Op: 'f'}, {Volume: 1, Op: 'f'}}}},
		{"poke /dev/drbd0 f; poke /dev/drbd1 d 0 1k", [][]Poke{{{Op: 'f'}}, {{Volume: 1, Op: 'd', Length: 1024}}}},
		{"poke /dev/mapper/v0 W 1 2 3", [][]Poke{{{Below: true, Op: 'W', Offset: 1, Length: 2, Fill: 3}}}},
	} {
		got, ok := Pokes(tt.command)
		if !ok || !cmp.Equal(got, tt.want) {
			t.Errorf("%s: %v\n%s", tt.command, ok, cmp.Diff(tt.want, got))
		}
	}
	for _, command := range []string{"drbdadm up r0", "i=0; while true; do poke /dev/drbd0 f; done", "poke /dev/drbd0 x 1", "poke /dev/drbd0 w 1"} {
		if got, ok := Pokes(command); ok {
			t.Errorf("%s: %v, want a refusal", command, got)
		}
	}
}

// TestOperatorLines finds every line of every capture that is about poke, the
// metadata or the state of a node.
func TestOperatorLines(t *testing.T) {
	for _, name := range Names(t) {
		for _, e := range Load(t, name) {
			switch {
			case e.Kind == Command && strings.HasPrefix(e.Text, "poke "):
				if _, ok := Pokes(e.Text); !ok {
					t.Errorf("%s:%d: not understood: %s", name, e.Line, e.Text)
				}
			case e.Kind == Note && strings.HasPrefix(e.Text, "gi "):
				if _, ok := ParseGI(e.Text); !ok && strings.Count(e.Text, ":") > 3 {
					t.Errorf("%s:%d: not understood: %s", name, e.Line, e.Text)
				}
			case e.Kind == Note && strings.HasPrefix(e.Text, "cs:"):
				if p, ok := ParseProc(e.Text); !ok || p.Conn != "Unconfigured" && (p.Role == "" || p.Disk == "") {
					t.Errorf("%s:%d: not understood: %s", name, e.Line, e.Text)
				}
			}
		}
	}
	gi, ok := ParseGI("gi 0 meta-data: need apply-al 3BB3A4317D85AA2D:1:26A149F139410780:4:1:0:1:0:0:0:0")
	if want := (GI{Current: 0x3bb3a4317d85aa2d, Bitmap: 1, History: [2]uint64{0x26a149f139410780, 4}, Consistent: true, Primary: true}); !ok || gi != want {
		t.Errorf("%+v, want %+v", gi, want)
	}
	p, ok := ParseProc("cs:Connected ro:Primary/Secondary ds:UpToDate/Diskless C r----- ns:8 nr:0 wo:f oos:4")
	if want := (Proc{"Connected", "Primary", "Secondary", "UpToDate", "Diskless", "C", 4}); !ok || p != want {
		t.Errorf("%+v, want %+v", p, want)
	}
}
