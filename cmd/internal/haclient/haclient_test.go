package haclient

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// serve answers one request with these lines.
func serve(t *testing.T, lines ...string) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		request, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || !strings.Contains(request, `"cmd":"vm-move"`) {
			return
		}
		for _, line := range lines {
			fmt.Fprintln(conn, line)
		}
		if len(lines) == 0 {
			bufio.NewReader(conn).ReadByte() //nolint:errcheck // until the client leaves
		}
	}()
	return socket
}

func TestCall(t *testing.T) {
	move := adm.HARequest{Cmd: adm.HAVMMove, VM: "web"}
	var steps []string
	var vms adm.HAVMs
	err := Call(t.Context(), serve(t,
		`{"v":1,"id":1,"ok":false,"code":0,"progress":{"step":"stop","text":"web: shut down","elapsed_ms":5}}`,
		`{"v":1,"id":1,"ok":true,"code":0,"data":{"node":"a","vms":[{"name":"web"}]}}`,
	), move, &vms, func(p adm.HAProgress) { steps = append(steps, p.Step) })
	if err != nil || len(steps) != 1 || steps[0] != "stop" || len(vms.VMs) != 1 {
		t.Errorf("Call = %v, steps %v, answer %+v", err, steps, vms)
	}

	var refused *adm.Error
	err = Call(t.Context(), serve(t, `{"v":1,"id":1,"ok":false,"code":10,"error":"web: beta is on standby"}`), move, nil, nil)
	if !errors.As(err, &refused) || refused.Exit != adm.ExitRefused {
		t.Errorf("a refusal is %v", err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Call(ctx, serve(t), move, nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without an answer: %v", err)
	}
	if err := Call(t.Context(), filepath.Join(t.TempDir(), "none"), move, nil, nil); err == nil {
		t.Error("no error without a socket")
	}
}
