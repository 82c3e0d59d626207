package qemu

import (
	"encoding/json"
	"testing"

	"github.com/pollux-project/pollux/hypervisor"
)

// An incident as QEMU tells it: each of its events in our words.
func TestTranslate(t *testing.T) {
	why := ""
	for _, tt := range []struct{ name, data, want string }{
		{"STOP", ``, "paused (paused)"},
		{"RESUME", ``, "resumed"},
		{"BLOCK_IO_ERROR", `{"device": "", "node-name": "disk1", "reason": "Input/output error", "operation": "write", "action": "stop"}`, "disk error (vdb: write: Input/output error)"},
		{"STOP", ``, "paused (io-error)"},
		{"RESUME", ``, "resumed"},
		{"BLOCK_IO_ERROR", `{"device": "other", "reason": "no", "operation": "read", "action": "report"}`, "disk error (other: read: no)"},
		{"STOP", ``, "paused (paused)"},
		{"RESUME", ``, "resumed"},
		{"WATCHDOG", `{"action": "reset"}`, "watchdog (reset)"},
		{"RESET", `{"guest": true, "reason": "guest-reset"}`, "reset (guest-reset)"},
		{"GUEST_PANICKED", `{"action": "pause"}`, "panicked (pause)"},
		{"STOP", ``, "paused (guest-panicked)"},
		{"NIC_RX_FILTER_CHANGED", `{}`, ""},
		{"SHUTDOWN", `{"guest": true, "reason": "guest-shutdown"}`, "shutdown (guest-shutdown)"},
		{"SHUTDOWN", `not JSON`, "shutdown"},
	} {
		e, ok := translate(Event{Name: tt.name, Data: json.RawMessage(tt.data)}, &why)
		got := ""
		if ok {
			e.Name = "x"
			got = e.String()[len("vm x: "):]
		}
		if got != tt.want {
			t.Errorf("%s %s: %q, want %q", tt.name, tt.data, got, tt.want)
		}
	}
}

func TestDiskName(t *testing.T) {
	for node, want := range map[string]string{"disk0": "vda", "disk23": "vdx", "disk99": "disk99", "my-disk": "my-disk", "diskx": "diskx"} {
		if got := diskName(eventData{NodeName: node}); got != want {
			t.Errorf("diskName(%q) = %q, want %q", node, got, want)
		}
	}
	if got := hypervisor.EventGone.String(); got != "gone" {
		t.Errorf("EventGone is %q", got)
	}
}
