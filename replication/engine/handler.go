package engine

import (
	"context"
	"errors"
	"os/exec"
	"time"

	"github.com/pollux-project/pollux/replication"
)

// handlerTime is how long a handler may run before it is killed.
const handlerTime = 60 * time.Second

// runHandler runs a handler outside the data path; its end is stepped. Under
// the lock: it only starts a goroutine.
func (e *Engine) runHandler(vol int, name string) {
	line := e.cfg.Handlers[name]
	if line == "" {
		return
	}
	env := append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, e.cfg.HandlerEnv...)
	e.background.Add(1)
	go func() {
		defer e.background.Done()
		code := e.handler(line, env, vol, name)
		e.event(replication.Event{Kind: replication.HandlerDone, Volume: uint16(vol), Name: name, ExitCode: code})
	}()
}

// handler runs one command line with the fixed environment; -1 means that it
// did not end by itself.
func (e *Engine) handler(line string, env []string, vol int, name string) int {
	ctx, cancel := context.WithTimeout(context.Background(), handlerTime)
	defer cancel()
	go func() {
		select {
		case <-e.quit:
			cancel()
		case <-ctx.Done():
		}
	}()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", line)
	cmd.Env = env
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	code := 0
	if err != nil {
		code = -1
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			code = exit.ExitCode()
		}
	}
	e.log.Info().Int("vol", vol).Str("handler", name).Int("exit", code).Bytes("output", out[:min(len(out), 1024)]).Msg("handler ended")
	e.events.publish(Event{Resource: e.cfg.Resource, Volume: vol, Kind: "handler", Text: name})
	return code
}
