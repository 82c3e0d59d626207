// Package wiretest reads the captures of DRBD traffic in
// protocol/drbd/testdata/wire, for the tests of the packets and for replays
// against the core. Only tests import it. The format of a capture is described
// in the README there.
//
//	for _, e := range wiretest.Load(t, "s04-writes-C") {
//		if e.Kind == wiretest.Packet && e.To == "B" {
//			h, err := e.DecodeHeader()
//			...
//		}
//	}
package wiretest

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// Kind is what a line of a capture is about; it says which fields of the Event
// are set.
type Kind uint8

// Kinds of events.
const (
	Comment Kind = iota // Text; the head of a file: title and configuration
	Cut                 // Text, Left: packets that were left out here
	Connect             // From opened TCP connection Conn to To
	Fin                 // From half-closed Conn
	Reset               // From reset Conn
	Command             // Text: an operator's command on node From, before it runs
	Note                // Text: the state of node From, or a remark if From is empty
	Packet              // From, To, Socket, Conn, Header, Payload, Length
)

var kindNames = [...]string{"Comment", "Cut", "Connect", "Fin", "Reset", "Command", "Note", "Packet"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// An Event is one line of a capture.
type Event struct {
	Line    int           // in the file, from 1
	Time    time.Duration // since the first event of the part
	Kind    Kind
	From    string // node: "A" or "B"
	To      string
	Socket  drbd.Socket
	Conn    int    // number of the TCP connection
	Header  []byte // 8 or 16 bytes
	Payload []byte // all of it if Whole, else its beginning
	Length  int    // bytes of the whole payload
	Text    string
	Left    map[drbd.Command]int
}

// Whole reports whether the capture has all bytes of the payload.
func (e Event) Whole() bool { return len(e.Payload) == e.Length }

// DecodeHeader decodes the header of a packet: h100 if it has 16 bytes, else one
// of the older kinds.
func (e Event) DecodeHeader() (drbd.Header, error) {
	if len(e.Header) == drbd.HeaderSize100 {
		return drbd.DecodeHeader100(e.Header)
	}
	return drbd.DecodeHeader80(e.Header)
}

// Dir is the directory of the captures: protocol/drbd/testdata/wire of the
// module that the test belongs to.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatalf("find the captures: %v", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "protocol", "drbd", "testdata", "wire")
		} else if !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("find the captures: %v", err)
		}
		if filepath.Dir(dir) == dir {
			t.Fatal("find the captures: no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
}

// Names lists the captures, in order and without ".txt". It fails the test if
// there are none.
func Names(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(Dir(t), "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no captures in %s (%v)", Dir(t), err)
	}
	for i, f := range files {
		files[i] = strings.TrimSuffix(filepath.Base(f), ".txt")
	}
	return files
}

// Load reads the capture of the given name.
func Load(t testing.TB, name string) []Event {
	t.Helper()
	f, err := os.Open(filepath.Join(Dir(t), name+".txt"))
	if err != nil {
		t.Fatalf("load a capture: %v", err)
	}
	defer func() { _ = f.Close() }() // only read
	events, err := Parse(f)
	if err != nil {
		t.Fatalf("load capture %s: %v", name, err)
	}
	return events
}

// Config is the text of all comments: title, configuration and remarks.
func Config(events []Event) string {
	var b strings.Builder
	for _, e := range events {
		if e.Kind == Comment {
			b.WriteString(e.Text)
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// Option is the value of the first option called name in the configuration of a
// capture, "" if it is not there.
func Option(events []Event, name string) string {
	m := regexp.MustCompile(`[{; ]` + regexp.QuoteMeta(name) + ` "?([^ ;"]+)"?;`).FindStringSubmatch(Config(events))
	if m == nil {
		return ""
	}
	return m[1]
}

// Parse reads a capture. An error names the line.
func Parse(r io.Reader) ([]Event, error) {
	var events []Event
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 4<<20)
	for n := 1; lines.Scan(); n++ {
		e, err := parseLine(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		e.Line = n
		events = append(events, e)
	}
	return events, lines.Err()
}

func parseLine(line string) (Event, error) {
	if text, ok := strings.CutPrefix(line, "# cut: "); ok {
		left, err := parseCut(text)
		return Event{Kind: Cut, Text: text, Left: left}, err
	}
	if text, ok := strings.CutPrefix(line, "#"); ok {
		return Event{Kind: Comment, Text: strings.TrimPrefix(text, " ")}, nil
	}
	stamp, rest, _ := strings.Cut(line, " ")
	seconds, err := strconv.ParseFloat(stamp, 64)
	if err != nil {
		return Event{}, fmt.Errorf("time: %w", err)
	}
	e := Event{Time: time.Duration(seconds*1e6+0.5) * time.Microsecond}
	switch kind, text, _ := strings.Cut(rest, " "); kind {
	case "=":
		return parseTCP(e, text)
	case "!":
		return parseOperator(e, text)
	default:
		return parsePacket(e, kind, strings.Fields(text))
	}
}

func parseCut(text string) (map[drbd.Command]int, error) {
	left := make(map[drbd.Command]int)
	for part := range strings.SplitSeq(text, ", ") {
		var n int
		var cmd drbd.Command
		if _, err := fmt.Sscanf(part, "%d x %v", &n, &cmd); err != nil {
			return nil, fmt.Errorf("cut %q: %w", part, err)
		}
		left[cmd] += n
	}
	return left, nil
}

func parseTCP(e Event, text string) (Event, error) {
	f := strings.Fields(text)
	kinds := map[string]Kind{"connect": Connect, "fin": Fin, "reset": Reset}
	if len(f) != 3 || kinds[f[1]] == 0 {
		return e, fmt.Errorf("not a TCP event: %q", text)
	}
	e.Kind = kinds[f[1]]
	if err := e.setConn(f[0]); err != nil {
		return e, err
	}
	return e, e.setNodes(f[2])
}

// parseOperator takes what follows the "!": a command, the state of a node, or a
// remark about both.
func parseOperator(e Event, text string) (Event, error) {
	if text == "" {
		return e, errors.New("an operator's event without text")
	}
	e.Kind, e.Text = Note, text
	for _, node := range []string{"a", "b"} {
		if command, ok := strings.CutPrefix(text, node+"$ "); ok {
			e.Kind, e.From, e.Text = Command, strings.ToUpper(node), command
		} else if note, ok := strings.CutPrefix(text, node+": "); ok {
			e.From, e.Text = strings.ToUpper(node), note
		}
	}
	return e, nil
}

func parsePacket(e Event, nodes string, f []string) (Event, error) {
	if len(f) != 4 {
		return e, fmt.Errorf("a packet with %d fields, want 4", len(f))
	}
	e.Kind = Packet
	if err := e.setNodes(nodes); err != nil {
		return e, err
	}
	switch f[0] {
	case "data":
		e.Socket = drbd.DataSocket
	case "meta":
		e.Socket = drbd.MetaSocket
	default:
		return e, fmt.Errorf("not a socket: %q", f[0])
	}
	if err := e.setConn(f[1]); err != nil {
		return e, err
	}
	var err error
	if e.Header, err = hex.DecodeString(f[2]); err != nil {
		return e, fmt.Errorf("header: %w", err)
	}
	if n := len(e.Header); n != drbd.HeaderSize80 && n != drbd.HeaderSize100 {
		return e, fmt.Errorf("a header of %d bytes", n)
	}
	return e, e.setPayload(f[3])
}

func (e *Event) setNodes(text string) error {
	if text != "A>B" && text != "B>A" {
		return fmt.Errorf("not a direction: %q", text)
	}
	e.From, e.To = text[:1], text[2:]
	return nil
}

func (e *Event) setConn(text string) error {
	n, err := strconv.Atoi(strings.TrimPrefix(text, "c"))
	if err != nil {
		return fmt.Errorf("connection: %w", err)
	}
	e.Conn = n
	return nil
}

func (e *Event) setPayload(text string) error {
	if text == "-" {
		return nil
	}
	parts := strings.Split(text, "+")
	if len(parts) > 1 && strings.HasPrefix(parts[1], "sha256:") {
		n, err := strconv.Atoi(parts[0])
		if err != nil {
			return fmt.Errorf("payload: %w", err)
		}
		e.Length = n
		parts = parts[2:]
	}
	for _, part := range parts {
		count := 1
		if times, value, ok := strings.Cut(part, "*"); ok {
			n, err := strconv.Atoi(times)
			if err != nil || n < 0 || n > 2<<20 || len(value) != 2 {
				return fmt.Errorf("payload: not a repetition: %q", part)
			}
			count, part = n, value
		}
		b, err := hex.DecodeString(part)
		if err != nil {
			return fmt.Errorf("payload: %w", err)
		}
		e.Payload = append(e.Payload, bytes.Repeat(b, count)...)
	}
	if e.Length == 0 {
		e.Length = len(e.Payload)
	}
	return nil
}
