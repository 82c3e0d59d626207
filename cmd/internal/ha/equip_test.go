package ha

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/hypervisor"
	"github.com/pollux-project/pollux/protocol/adm"
)

// A storageScript answers what polluxd is asked.
type storageScript struct {
	storage
	answer func(adm.Request) error
	asked  []string
}

func (s *storageScript) do(_ context.Context, req adm.Request, _ any) error {
	s.asked = append(s.asked, fmt.Sprintf("%s %s %s", req.Cmd, req.Resource, req.Args.Incarnation))
	return s.answer(req)
}

// When a VM is gone, the exports of its incarnation are ended, once for each
// resource, and of nobody else.
func TestClosed(t *testing.T) {
	disks := []hypervisor.Disk{{Export: "web/0@7"}, {Export: "web/1@7"}, {Path: "/swap"}, {Export: "db/0@7"}, {Export: "by-hand/0"}}
	for _, tt := range []struct {
		name   string
		answer error
		isOpen bool
	}{
		{"ended", nil, false},
		{"frozen requests stay", &adm.Error{Text: "have not come back"}, false},
		{"no polluxd", fmt.Errorf("dial: %w", syscall.ECONNREFUSED), false},
		{"polluxd does not answer", context.DeadlineExceeded, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &storageScript{answer: func(adm.Request) error { return tt.answer }}
			e := &equipment{storage: s}
			if err := e.closed(t.Context(), disks); (err != nil) != tt.isOpen {
				t.Errorf("closed: %v", err)
			}
			if diff := cmp.Diff([]string{"unexport web 7", "unexport db 7"}, s.asked); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
		})
	}
}

// A VM that is gone is killed, whatever polluxd does: only one that lives is
// reason for the watchdog.
func TestGoneIs(t *testing.T) {
	for err, isGone := range map[error]bool{
		nil: true, hypervisor.ErrNotRunning: true, hypervisor.ErrDisksOpen: true,
		hypervisor.ErrStillRunning: false, context.DeadlineExceeded: false,
	} {
		if err != nil {
			err = &hypervisor.VMError{Op: "kill", Name: "web", Err: fmt.Errorf("%w: more", err)}
		}
		if got := goneIs(err); (got == nil) != isGone || got != nil && !errors.Is(got, err) {
			t.Errorf("goneIs(%v) = %v", err, got)
		}
	}
}
