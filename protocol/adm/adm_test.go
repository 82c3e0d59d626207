package adm

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

func ptr[T any](v T) *T { return &v }

func TestRequestOnTheWire(t *testing.T) {
	for _, tt := range []struct {
		name string
		req  Request
		want string
	}{
		{"plain", Request{V: 1, ID: 1, Cmd: CmdStatus}, `{"v":1,"id":1,"cmd":"status"}`},
		{
			"options",
			Request{V: 1, ID: 7, Cmd: CmdPrimary, Resource: "r0", Args: Args{Force: true}},
			`{"v":1,"id":7,"cmd":"primary","resource":"r0","args":{"force":true}}`,
		},
		{
			"volume 0 is not all",
			Request{V: 1, ID: 2, Cmd: CmdDetach, Resource: "r0", Volume: ptr(0)},
			`{"v":1,"id":2,"cmd":"detach","resource":"r0","volume":0}`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			line, err := AppendLine(nil, tt.req, MaxRequest)
			if err != nil {
				t.Fatal(err)
			}
			if got := string(line); got != tt.want+"\n" {
				t.Errorf("got  %swant %s", got, tt.want)
			}
			got, err := DecodeRequest(line)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.req, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestBadRequests(t *testing.T) {
	for _, tt := range []struct{ name, line, want string }{
		{"no JSON", "GET / HTTP/1.1", "bad request"},
		{"empty", "", "bad request"},
		{"array", "[1]", "bad request"},
		{"other version", `{"v":2,"id":1,"cmd":"status"}`, "version 2"},
		{"no version", `{"id":1,"cmd":"status"}`, "version 0"},
		{"unknown command", `{"v":1,"id":1,"cmd":"format"}`, `unknown command "format"`},
		{"unknown field", `{"v":1,"id":1,"cmd":"status","fast":true}`, "fast"},
		{"unknown option", `{"v":1,"id":1,"cmd":"primary","resource":"r0","args":{"forse":true}}`, "forse"},
		{"no resource", `{"v":1,"id":1,"cmd":"primary"}`, "without a resource"},
		{"negative volume", `{"v":1,"id":1,"cmd":"attach","resource":"r0","volume":-1}`, "volume -1"},
		{"two at once", `{"v":1,"id":1,"cmd":"status"}{"v":1}`, "more than one"},
		{"long name", `{"v":1,"id":1,"cmd":"up","resource":"` + strings.Repeat("x", 300) + `"}`, "resource name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := DecodeRequest([]byte(tt.line))
			var pe *ProtocolError
			if !errors.As(err, &pe) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want a ProtocolError with %q", err, tt.want)
			}
		})
	}
}

func TestLineReader(t *testing.T) {
	in := "one\n" + strings.Repeat("x", 99) + "\n\nlast"
	l := NewLineReader(iotest.OneByteReader(strings.NewReader(in)), 100)
	for _, want := range []string{"one", strings.Repeat("x", 99), ""} {
		if got, err := l.Line(); err != nil || string(got) != want {
			t.Fatalf("got %q, %v; want %q", got, err, want)
		}
	}
	if _, err := l.Line(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("half a line: %v", err)
	}

	var pe *ProtocolError
	for _, limit := range []int{100, 70 << 10, 1 << 20} {
		l = NewLineReader(strings.NewReader(strings.Repeat("x", limit)+"\n"), limit)
		if _, err := l.Line(); !errors.As(err, &pe) {
			t.Errorf("limit %d: line of limit+1 bytes: %v", limit, err)
		}
		l = NewLineReader(strings.NewReader(strings.Repeat("x", limit-1)+"\n"), limit)
		if got, err := l.Line(); err != nil || len(got) != limit-1 {
			t.Errorf("limit %d: line of limit bytes: %d, %v", limit, len(got), err)
		}
	}
}

// TestLineReaderBounded feeds an endless line: it must end at the limit.
func TestLineReaderBounded(t *testing.T) {
	var read int
	l := NewLineReader(readerFunc(func(p []byte) (int, error) {
		for i := range p {
			p[i] = 'x'
		}
		read += len(p)
		return len(p), nil
	}), MaxRequest)
	if _, err := l.Line(); err == nil {
		t.Fatal("an endless line was accepted")
	}
	if read > 2*MaxRequest {
		t.Errorf("%d bytes were read for a limit of %d", read, MaxRequest)
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestAppendLineBounded(t *testing.T) {
	_, err := AppendLine(nil, Request{Resource: strings.Repeat("x", MaxRequest)}, MaxRequest)
	var pe *ProtocolError
	if !errors.As(err, &pe) {
		t.Errorf("got %v", err)
	}
}

func TestResponseErr(t *testing.T) {
	r, err := DecodeResponse([]byte(`{"v":1,"id":3,"ok":false,"code":17,"number":-2,"error":"e","advice":"a","later":1}`))
	if err != nil {
		t.Fatal(err)
	}
	var e *Error
	if !errors.As(r.Err(), &e) {
		t.Fatalf("got %v", r.Err())
	}
	if diff := cmp.Diff(&Error{Exit: 17, Number: -2, Text: "e", Advice: "a"}, e); diff != "" {
		t.Error(diff)
	}
	r = Response{} // not ok, yet code 0
	if !errors.As(r.Err(), &e) || e.Exit != ExitEnvironment {
		t.Errorf("a refusal with code 0 became %v", r.Err())
	}
	if _, err := DecodeResponse([]byte(`{"v":9,"ok":true}`)); err == nil {
		t.Error("a response of another version was accepted")
	}
}

func TestStateExit(t *testing.T) {
	for number, want := range map[int]int{-1: 11, -2: 17, -4: 16, -10: 11, -12: 11, -16: 5, -20: 11} {
		if got := StateExit(number); got != want {
			t.Errorf("StateExit(%d) = %d, want %d", number, got, want)
		}
	}
}

func TestStatusNames(t *testing.T) {
	// Monitors read these: a change here is a change of the interface.
	b, err := json.Marshal(Resource{Name: "r0", State: StateUp, Role: "Primary", Volumes: []Volume{{Resync: &Resync{}}}})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"name":"r0","state":"up","node":"","peer":"","role":"Primary","volumes":[{"volume":0,"minor":0,"device":"",` +
		`"size_bytes":0,"out_of_sync_bytes":0,"resync":{"source":false,"paused":false,"total_bytes":0,"left_bytes":0,` +
		`"rate_bytes_per_second":0,"eta_seconds":0},"open_count":0,"uuids":["","","",""],"flags":0,"read_bytes":0,` +
		`"written_bytes":0,"sent_bytes":0,"received_bytes":0,"activity_log_writes":0,"bitmap_writes":0,"local_pending":0,"peer_pending":0,"unacked":0,"app_pending":0,"epochs":0}]}`
	if got := string(b); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestResyncDone(t *testing.T) {
	for _, tt := range []struct {
		r    Resync
		want float64
	}{
		{Resync{}, 0},
		{Resync{TotalBytes: 8, LeftBytes: 5}, 37.5},
		{Resync{TotalBytes: 8}, 100},
		{Resync{TotalBytes: 8, LeftBytes: 9}, 0},
	} {
		if got := tt.r.Done(); got != tt.want {
			t.Errorf("%+v: %v, want %v", tt.r, got, tt.want)
		}
	}
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add([]byte(`{"v":1,"id":7,"cmd":"primary","resource":"r0","volume":0,"args":{"force":true}}`))
	f.Add([]byte(`{"v":1,"id":1,"cmd":"status"}{`))
	f.Add([]byte(`[[[[[[[[`))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := DecodeRequest(line)
		if err != nil {
			var pe *ProtocolError
			if !errors.As(err, &pe) {
				t.Fatalf("%T: %v", err, err)
			}
			return
		}
		out, err := AppendLine(nil, r, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeRequest(out)
		if err != nil {
			t.Fatalf("own line %s: %v", out, err)
		}
		if diff := cmp.Diff(r, again); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzDecodeResponse(f *testing.F) {
	f.Add([]byte(`{"v":1,"id":3,"ok":false,"code":17,"number":-2,"error":"e","advice":"a"}`))
	f.Add([]byte(`{"v":1,"event":"status","name":"r0","resource":{"name":"r0","volumes":[{"volume":0}]}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		if r, err := DecodeResponse(line); err == nil && !r.OK && r.Err() == nil {
			t.Fatal("a refusal without an error")
		}
		if e, err := DecodeEvent(line); err == nil && e.Kind == EventStatus && e.Resource == nil {
			t.Fatal("a status event without a resource")
		}
	})
}
