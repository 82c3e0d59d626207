package daemon

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// Clients that connect to the control socket and say nothing, or only half of a
// request, keep nobody out: the one that was silent the longest goes.
func TestSilentClients(t *testing.T) {
	d := startDaemon(t, newFakeWorld(), "r0.res", resText("r0", 0, 7000, 1))
	var silent []net.Conn
	for i := range 3 * maxAdminConns {
		c := d.dial()
		defer c.Close()
		if i%2 == 0 {
			c.Write([]byte(`{"v":1,"id":`)) //nolint:errcheck // fails if it is closed already
		}
		silent = append(silent, c)
	}
	began := time.Now()
	d.status()
	if took := time.Since(began); took > adminReadTimeout/4 {
		t.Errorf("a request among %d silent clients took %v", len(silent), took)
	}
	silent[0].SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.Copy(io.Discard, silent[0]); os.IsTimeout(err) {
		t.Error("the client that was silent the longest is still connected")
	}
	if n := strings.Count(d.log.String(), "\n"); n > 200 {
		t.Errorf("%d log lines", n)
	}
}

// Subscribers who never read cost nobody anything, and there are not too many of them.
func TestSubscribersWhoNeverRead(t *testing.T) {
	d := startDaemon(t, newFakeWorld(), "r0.res", resText("r0", 0, 7000, 1))
	for i := range maxAdminStreams + 3 {
		c := d.dial()
		defer c.Close()
		line, err := adm.AppendLine(nil, adm.Request{V: adm.Version, ID: 1, Cmd: adm.CmdEvents}, adm.MaxRequest)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(line); err != nil {
			t.Fatal(err)
		}
		answer, err := adm.NewLineReader(c, adm.MaxResponse).Line()
		if err != nil {
			t.Fatal(err)
		}
		resp, err := adm.DecodeResponse(answer)
		if err != nil {
			t.Fatal(err)
		}
		if want := i < maxAdminStreams; resp.OK != want {
			t.Fatalf("stream %d: %+v, want it granted: %v", i, resp, want)
		}
		if !resp.OK && !strings.Contains(resp.Error, fmt.Sprintf("%d event streams are open already", maxAdminStreams)) {
			t.Errorf("the refusal says %q", resp.Error)
		}
	}
	began := time.Now()
	for range 1000 {
		d.status()
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("1000 requests beside the subscribers took %v", took)
	}
}

// The control socket is never open to others, whatever the umask says.
func TestControlSocketMode(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	path := newTestDir(t) + "/ctl"
	l, err := listenAdmin(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}
