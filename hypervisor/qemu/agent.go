package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"

	"github.com/pollux-project/pollux/hypervisor"
)

// agentPort is what the guest's agent opens: /dev/virtio-ports/NAME. Source:
// qemu-ga(8), its default method and path.
const agentPort = "org.qemu.guest_agent.0"

// maxAgentLine is the longest answer that we take, in bytes; ours are short.
const maxAgentLine = 64 << 10

// AskAgent implements [hypervisor.Hypervisor] with guest-sync-delimited and
// guest-ping of QEMU's guest agent, over a channel of virtio-serial. Without a
// deadline it waits as long as for a monitor.
func (q *QEMU) AskAgent(ctx context.Context, name string) error {
	if _, err := q.running(name); err != nil {
		return fail("ask the agent", name, err)
	}
	limited, cancel := context.WithTimeout(ctx, monitorTimeout)
	defer cancel()
	err := askAgent(limited, q.paths(name).agent)
	if err != nil {
		err = fmt.Errorf("%w: %w", hypervisor.ErrNoAgent, err)
	}
	return fail("ask the agent", name, err)
}

func askAgent(ctx context.Context, path string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	defer conn.Close()
	// Also ends a Read when ctx is cancelled rather than over.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // a second Close does no harm
	defer stop()
	// The channel outlives its clients: an answer that somebody before us has
	// not waited for may still come. The byte 0xff resets the agent's parser,
	// and precedes the answer to this command only.
	id := rand.Int64N(1 << 53)
	if _, err := fmt.Fprintf(conn, "\xff{\"execute\": \"guest-sync-delimited\", \"arguments\": {\"id\": %d}}\n", id); err != nil {
		return agentError(ctx, err)
	}
	r := bufio.NewReader(io.LimitReader(conn, 4*maxAgentLine))
	for {
		if _, err := r.ReadBytes(0xff); err != nil {
			return agentError(ctx, err)
		}
		var got int64
		if err := agentAnswer(ctx, r, &got); err != nil {
			return err
		}
		if got == id {
			break
		}
	}
	if _, err := fmt.Fprint(conn, "{\"execute\": \"guest-ping\"}\n"); err != nil {
		return agentError(ctx, err)
	}
	return agentAnswer(ctx, r, nil)
}

func agentAnswer(ctx context.Context, r *bufio.Reader, result *int64) error {
	line, err := r.ReadBytes('\n')
	if err != nil {
		return agentError(ctx, err)
	}
	var answer struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Desc string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal(bytes.TrimSpace(line), &answer); err != nil {
		return fmt.Errorf("it sends something that is not an answer: %w", err)
	}
	if answer.Error != nil {
		return errors.New("it refuses: " + answer.Error.Desc)
	}
	if result != nil {
		if err := json.Unmarshal(answer.Return, result); err != nil {
			return fmt.Errorf("it sends an unexpected answer: %w", err)
		}
	}
	return nil
}

func agentError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
