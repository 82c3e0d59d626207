package adm_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/protocol/adm"
)

func TestHARequests(t *testing.T) {
	for _, tt := range []struct{ line, want string }{
		{`{"v":1,"id":3,"cmd":"vm-move","vm":"web","node":"b"}`, ""},
		{`{"v":1,"id":3,"cmd":"vm-failover","vm":"web","args":{"peer_is_down":"a","confirm":"web"}}`, ""},
		{`{"v":1,"cmd":"drill","vm":"web","args":{"kill":"primary","confirm":"web"}}`, ""},
		{`{"v":1,"cmd":"cluster-join","args":{"token":"t"}}`, ""},
		{`{"v":2,"cmd":"vm-list"}`, "version 2"},
		{`{"v":1,"cmd":"vm-dance","vm":"web"}`, `unknown command "vm-dance"`},
		{`{"v":1,"cmd":"vm-move"}`, "without a VM"},
		{`{"v":1,"cmd":"node-standby"}`, "without a node"},
		{`{"v":1,"cmd":"cluster-join"}`, "without a token"},
		{`{"v":1,"cmd":"cluster-init"}`, "without a name"},
		{`{"v":1,"cmd":"drill","vm":"web"}`, `the only one is "primary"`},
		{`{"v":1,"cmd":"cluster-token","node":"c","args":{"kind":"voter"}}`, `kind "voter"`},
		{`{"v":1,"cmd":"vm-start","vm":"a\nb"}`, "name"},
		{`{"v":1,"cmd":"vm-start","vm":"web","args":{"forse":true}}`, "unknown field"},
		{`{"v":1,"cmd":"vm-list"} {}`, "more than one"},
		{`{"v":1,"cmd":"cluster-join","args":{"token":"` + strings.Repeat("x", 5000) + `"}}`, "token of 5000 bytes"},
	} {
		_, err := adm.DecodeHARequest([]byte(tt.line))
		var pe *adm.ProtocolError
		if (err == nil) != (tt.want == "") || err != nil && (!errors.As(err, &pe) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%.60s: %v, want %q", tt.line, err, tt.want)
		}
	}
}

// Progress and answer are told apart, and carry the same ID.
func TestHAMessages(t *testing.T) {
	var lines []byte
	for _, m := range []adm.HAMessage{
		{Response: adm.Response{V: 1, ID: 7}, Progress: &adm.HAProgress{Step: "stop", Text: "web: the guest is asked to shut down", ElapsedMS: 12}},
		{Response: adm.Response{V: 1, ID: 7, Code: adm.ExitRefused, Error: "web: no", Advice: "do"}},
	} {
		var err error
		if lines, err = adm.AppendLine(lines, m, adm.MaxResponse); err != nil {
			t.Fatal(err)
		}
	}
	first, second, _ := strings.Cut(strings.TrimSpace(string(lines)), "\n")
	m, err := adm.DecodeHAMessage([]byte(first))
	if err != nil || m.Progress == nil || m.ID != 7 || m.Progress.Step != "stop" {
		t.Fatalf("progress: %+v, %v", m, err)
	}
	m, err = adm.DecodeHAMessage([]byte(second))
	var refused *adm.Error
	if err != nil || m.Progress != nil || !errors.As(m.Err(), &refused) || refused.Exit != adm.ExitRefused || refused.Advice != "do" {
		t.Fatalf("answer: %+v, %v", m, err)
	}
	if _, err := adm.DecodeHAMessage([]byte(`{"v":2}`)); err == nil {
		t.Error("an answer of another version is accepted")
	}
}

func TestHAEventRoundTrip(t *testing.T) {
	want := adm.HAEvent{V: 1, Seq: 4, Node: "a", Level: adm.HALevelWarning, Kind: adm.HAEventTerm, VM: "web", Resource: "r0", Term: 9, Text: "granted", MS: 12}
	line, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := adm.DecodeHAEvent(line)
	if err != nil || cmp.Diff(want, got) != "" {
		t.Errorf("%v %s", err, cmp.Diff(want, got))
	}
	if _, err := adm.DecodeHAEvent([]byte(`{"v":9}`)); err == nil {
		t.Error("an event of another version is accepted")
	}
}

// No line panics or is taken unless it is valid, and what is taken says the same
// when it is written and read again.
func FuzzDecodeHARequest(f *testing.F) {
	for _, s := range []string{
		`{"v":1,"id":3,"cmd":"vm-move","vm":"web","node":"b"}`,
		`{"v":1,"cmd":"vm-failover","vm":"web","args":{"peer_is_down":"a","confirm":"web","force":true}}`,
		`{"v":1,"cmd":"cluster-init","args":{"cluster":"x","links":["10.0.0.1:7790"],"arbiter_options":{"ttl":"6s"}}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := adm.DecodeHARequest(line)
		if err != nil {
			return
		}
		again, err := adm.AppendLine(nil, r, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		back, err := adm.DecodeHARequest(again)
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if once, err := adm.AppendLine(nil, back, 1<<20); err != nil || string(once) != string(again) {
			t.Errorf("%s became %s", again, once)
		}
	})
}
