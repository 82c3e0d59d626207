package records

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const run = 0x0123456789abcdef

func TestEncode(t *testing.T) {
	b, rec := Encode(42, run)
	if len(b) != Size || b[fillFrom-1] != ' ' || b[Size-1] != '\n' {
		t.Fatalf("Encode = %d bytes %q", len(b), b)
	}
	if want := "pollux-record 0000000042 run 0123456789abcdef "; !bytes.HasPrefix(b, []byte(want)) {
		t.Errorf("Encode = %q, want it to start with %q", b, want)
	}
	got, err := Decode(b)
	if diff := cmp.Diff(rec, got); err != nil || diff != "" {
		t.Errorf("Decode: %v (-want +got):\n%s", err, diff)
	}
}

// Every change of a block is noticed.
func TestDecodeDamaged(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, _ := Encode(rapid.Uint64Range(1, 9_999_999_999).Draw(t, "number"), rapid.Uint64().Draw(t, "run"))
		at := rapid.IntRange(0, Size-1).Draw(t, "at")
		b[at] ^= rapid.ByteRange(1, 255).Draw(t, "change")
		if rec, err := Decode(b); err == nil {
			t.Errorf("Decode accepts a damaged block as %+v", rec)
		}
	})
	if _, err := Decode(make([]byte, Size)); !errors.Is(err, ErrEmpty) {
		t.Errorf("Decode of zeros = %v, want %v", err, ErrEmpty)
	}
}

func file(numbers ...uint64) []byte {
	var out []byte
	for _, n := range numbers {
		b, _ := Encode(n, run)
		out = append(out, b...)
	}
	return out
}

func TestRead(t *testing.T) {
	data := file(1, 2, 3, 5, 5)
	clear(data[Size : 2*Size])
	data = append(data, "pollux-rec"...)
	found, damaged, err := Read(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := found[3]; len(found) != 3 || !ok {
		t.Errorf("Read finds %v, want 1, 3 and 5", found)
	}
	var got []string
	for _, d := range damaged {
		got = append(got, d.Err.Error())
	}
	want := []string{"the block is empty", "the block holds record 5", "the block has 10 bytes, want 512"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("damage (-want +got):\n%s", diff)
	}
}

func TestAcks(t *testing.T) {
	console := "boot\r\nFOUND 0 damaged 0\r\nACK 1 0000000a\r\nACK 2 zz\r\nACK 0 00000001\r\n" +
		"xACK 3 00000001\r\nACK 4 ffffffff\r\nACK 5 00000001"
	want := []Ack{{1, 10}, {4, 0xffffffff}}
	if diff := cmp.Diff(want, Acks(console)); diff != "" {
		t.Errorf("Acks (-want +got):\n%s", diff)
	}
	if got := Acks(Ack{7, 8}.Line()); len(got) != 1 || got[0] != (Ack{7, 8}) {
		t.Errorf("Acks(Line()) = %v", got)
	}
}

func TestJudge(t *testing.T) {
	_, one := Encode(1, run)
	_, two := Encode(2, run)
	acks := []Ack{{1, one.Sum}, {2, two.Sum}}
	for _, tt := range []struct {
		name string
		data []byte
		want []string
	}{
		{"all there", file(1, 2), nil},
		{"more than acknowledged", file(1, 2, 3), nil},
		{"the file ends early", file(1), []string{"the file ends before it"}},
		{"dropped", append(make([]byte, Size), file(2)...), []string{"the block is empty"}},
		{"half a record", file(1, 2)[:Size+100], []string{"the block has 100 bytes, want 512"}},
		{"nothing", nil, []string{"the file ends before it", "the file ends before it"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			found, damaged, err := Read(bytes.NewReader(tt.data))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, l := range Judge(acks, found, damaged) {
				got = append(got, l.Why)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Judge (-want +got):\n%s", diff)
			}
		})
	}
}

// A record that a later run of the guest wrote once more is lost all the same.
func TestJudgeRewritten(t *testing.T) {
	_, first := Encode(1, run)
	b, again := Encode(1, run+1)
	found, damaged, err := Read(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	lost := Judge([]Ack{{1, first.Sum}, {1, again.Sum}}, found, damaged)
	if len(lost) != 1 || lost[0].Ack.Sum != first.Sum || !strings.Contains(lost[0].Why, "another record") {
		t.Errorf("Judge = %v, want the first one lost", lost)
	}
}

func FuzzDecode(f *testing.F) {
	b, _ := Encode(1, run)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, err := Decode(b)
		if err != nil {
			return
		}
		if again, _ := Encode(rec.Number, rec.Run); rec.Number < 1e10 && len(again) != Size {
			t.Errorf("Encode(%+v) has %d bytes", rec, len(again))
		}
	})
}
