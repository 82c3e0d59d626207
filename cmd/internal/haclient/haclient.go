// Package haclient asks polluxha through its control socket, for programs that
// show or prove failover and want figures instead of polluxadm's words.
//
//	var c adm.HACluster
//	err := haclient.Call(ctx, "/run/pollux/polluxha.sock", adm.HARequest{Cmd: adm.HAClusterStatus}, &c, nil)
package haclient

import (
	"context"
	"encoding/json"
	"fmt"
	"net"

	"github.com/pollux-project/pollux/protocol/adm"
)

// Call sends one request and waits for its answer until ctx is done; answer
// receives the data unless it is nil. progress gets what polluxha says meanwhile;
// nil drops it. A refusal is an *adm.Error.
func Call(ctx context.Context, socket string, req adm.HARequest, answer any, progress func(adm.HAProgress)) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // all was said
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	req.V, req.ID = adm.Version, 1
	line, err := adm.AppendLine(nil, req, adm.MaxRequest)
	if err != nil {
		return err
	}
	if _, err := conn.Write(line); err != nil {
		return fmt.Errorf("polluxha: %s: %w", req.Cmd, err)
	}
	lines := adm.NewLineReader(conn, adm.MaxResponse)
	for {
		line, err := lines.Line()
		if ctx.Err() != nil {
			return fmt.Errorf("polluxha: no answer to %s: %w", req.Cmd, context.Cause(ctx))
		}
		if err != nil {
			return fmt.Errorf("polluxha: %s: %w", req.Cmd, err)
		}
		m, err := adm.DecodeHAMessage(line)
		if err != nil {
			return err
		}
		if m.Progress != nil {
			if progress != nil {
				progress(*m.Progress)
			}
			continue
		}
		if err := m.Err(); err != nil || answer == nil {
			return err
		}
		return json.Unmarshal(m.Data, answer)
	}
}
