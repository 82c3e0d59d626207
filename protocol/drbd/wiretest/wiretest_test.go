package wiretest

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/protocol/drbd"
)

func TestParse(t *testing.T) {
	const text = `# DRBD wire corpus 1
#     net { protocol C; use-rle no; shared-secret "x"; }
0.000000 ! a$ drbdadm connect r0
0.000001 ! b: exit 0
0.000002 ! both Secondary: reconnect
0.181367 = c1 connect A>B
0.183053 = c1 reset B>A
0.424254 B>A meta c2 83740267fff10000 -
1.450941 A>B data c3 8620ec20000000030000000800000000 05+32*00+0102
# cut: 120 x 0x02, 7 x 0x16
2.010024 A>B data c3 8620ec20000000020000801800000000 32792+sha256:eecbd3e10fc4bdde+00003fc0
3.5 = c1 fin B>A
`
	got, err := Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	us := time.Microsecond
	want := []Event{
		{Line: 1, Kind: Comment, Text: "DRBD wire corpus 1"},
		{Line: 2, Kind: Comment, Text: `    net { protocol C; use-rle no; shared-secret "x"; }`},
		{Line: 3, Kind: Command, From: "A", Text: "drbdadm connect r0"},
		{Line: 4, Kind: Note, Time: us, From: "B", Text: "exit 0"},
		{Line: 5, Kind: Note, Time: 2 * us, Text: "both Secondary: reconnect"},
		{Line: 6, Kind: Connect, Time: 181367 * us, From: "A", To: "B", Conn: 1},
		{Line: 7, Kind: Reset, Time: 183053 * us, From: "B", To: "A", Conn: 1},
		{
			Line: 8, Kind: Packet, Time: 424254 * us, From: "B", To: "A", Socket: drbd.MetaSocket, Conn: 2,
			Header: []byte{0x83, 0x74, 2, 0x67, 0xff, 0xf1, 0, 0},
		},
		{
			Line: 9, Kind: Packet, Time: 1450941 * us, From: "A", To: "B", Conn: 3, Length: 35,
			Header:  []byte{0x86, 0x20, 0xec, 0x20, 0, 0, 0, 3, 0, 0, 0, 8, 0, 0, 0, 0},
			Payload: append(append([]byte{5}, bytes.Repeat([]byte{0}, 32)...), 1, 2),
		},
		{Line: 10, Kind: Cut, Text: "120 x 0x02, 7 x 0x16", Left: map[drbd.Command]int{drbd.CmdRSDataReply: 120, drbd.CmdWriteAck: 7}},
		{
			Line: 11, Kind: Packet, Time: 2010024 * us, From: "A", To: "B", Conn: 3, Length: 32792,
			Header:  []byte{0x86, 0x20, 0xec, 0x20, 0, 0, 0, 2, 0, 0, 0x80, 0x18, 0, 0, 0, 0},
			Payload: []byte{0, 0, 0x3f, 0xc0},
		},
		{Line: 12, Kind: Fin, Time: 3500 * time.Millisecond, From: "B", To: "A", Conn: 1},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if got[10].Whole() || !got[8].Whole() {
		t.Error("Whole: the shortened packet alone is not")
	}
	for name, want := range map[string]string{"protocol": "C", "use-rle": "no", "shared-secret": "x", "timeout": ""} {
		if got := Option(got, name); got != want {
			t.Errorf("option %s = %q, want %q", name, got, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, line := range []string{
		"", "x", "0.1", "zero = c1 connect A>B", "0.1 = c1 open A>B", "0.1 = c1 connect", "0.1 = cx fin A>B", "0.1 = c1 fin A>C",
		"0.1 !", "# cut: much", "0.1 A>B data c1 8374 -", "0.1 A>B data c1 zz -",
		"0.1 A>B other c1 83740267fff10000 -", "0.1 A>C data c1 83740267fff10000 -", "0.1 A>B data c1 83740267fff10000",
		"0.1 A>B data c1 83740267fff10000 0", "0.1 A>B data c1 83740267fff10000 9999999999*00", "0.1 A>B data c1 83740267fff10000 3*0000",
		"0.1 A>B data c1 83740267fff10000 x+sha256:00+00", "0.1 A>B data 1x 83740267fff10000 -",
	} {
		if e, err := Parse(strings.NewReader(line + "\n")); err == nil {
			t.Errorf("%q is taken as %+v", line, e)
		}
	}
}

func TestLoad(t *testing.T) {
	for _, name := range Names(t) {
		packets := 0
		for _, e := range Load(t, name) {
			if e.Kind == Packet {
				packets++
			}
		}
		if packets < 8 {
			t.Errorf("%s has %d packets", name, packets)
		}
	}
}
