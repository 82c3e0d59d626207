package adm

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/pollux-project/pollux/protocol/adm"
)

// startFakeManager: fakemanager REPLIES-FILE, a polluxha that knows what it says:
// an object of "cmd NAME" to a list of lines. Requests are logged to ha.log.
func startFakeManager(ts *testscript.TestScript, _ bool, args []string) {
	replies := map[string][]json.RawMessage{}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &replies))
	log, err := os.Create(ts.MkAbs("ha.log"))
	ts.Check(err)
	l, err := net.Listen("unix", ts.MkAbs("polluxha.sock"))
	ts.Check(err)
	var all sync.WaitGroup
	ts.Defer(func() {
		l.Close()
		all.Wait()
		log.Close()
	})
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			line, err := adm.NewLineReader(conn, adm.MaxRequest).Line()
			if err == nil {
				fmt.Fprintf(log, "%s\n", line)
				answerManaged(conn, line, replies)
			}
			conn.Close()
		}
	})
}

func answerManaged(conn net.Conn, line []byte, replies map[string][]json.RawMessage) {
	req, err := adm.DecodeHARequest(line)
	if err != nil {
		return
	}
	key := strings.TrimSpace(string(req.Cmd) + " " + req.VM + req.Node)
	for _, raw := range replies[key] {
		out := map[string]any{}
		if json.Unmarshal(raw, &out) != nil {
			return
		}
		out["v"] = adm.Version
		if _, isEvent := out["kind"]; !isEvent {
			out["id"] = req.ID
		}
		b, err := json.Marshal(out)
		if err != nil {
			return
		}
		conn.Write(append(b, '\n')) //nolint:errcheck // the client may be gone
	}
}
