package engine

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/pollux-project/pollux/replication"
)

// How long a handler may run before it is killed with all of its children. One
// that fences waits for the other node's machine to die; I/O may be frozen
// meanwhile, but a machine that is not known to be dead must not be taken for it.
const (
	handlerTime = time.Minute
	fencingTime = 5 * time.Minute
)

// handlerOutput is how much of a handler's output is logged.
const handlerOutput = 4 << 10

// ofResource lists the handlers that are about the resource as a whole, as in
// DRBD; all others are about one volume.
var ofResource = map[string]bool{"fence-peer": true, "unfence-peer": true}

// A handlerQueue runs handlers one after the other, in the order in which the
// core asked for them: there is one for each volume, and one for the resource.
type handlerQueue struct {
	mu      sync.Mutex
	waiting []handlerRun
	running bool
}

type handlerRun struct {
	name string
	vol  int
	line string
	env  []string
}

// runHandler has a handler run outside the data path; its end is stepped. Under
// the lock: it only hands over. One that is not configured has succeeded.
func (e *Engine) runHandler(b *batch, vol int, name string) {
	line := e.cfg.Handlers[name]
	if line == "" {
		b.cold = append(b.cold, func() { e.handlerDone(vol, name, 0) })
		return
	}
	key := vol
	if ofResource[name] {
		key = -1
	}
	q := e.handlers[key]
	if q == nil {
		q = &handlerQueue{}
		e.handlers[key] = q
	}
	run := handlerRun{name: name, vol: vol, line: line, env: e.handlerEnv(vol, name)}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, run)
	if !q.running {
		q.running = true
		e.background.Add(1)
		go e.runHandlers(q)
	}
}

// handlerEnv is the environment of DRBD's tools: as drbdadm has it from the
// kernel, with the lists of the resource, or the one volume's values.
func (e *Engine) handlerEnv(vol int, name string) []string {
	env := append([]string{"HOME=/", "TERM=linux", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, e.cfg.HandlerEnv...)
	if v := e.Volume(vol); v != nil && !ofResource[name] {
		env = append(env, // the last one of a name counts
			fmt.Sprintf("DRBD_MINOR=%d", v.cfg.Minor), fmt.Sprintf("DRBD_VOLUME=%d", v.cfg.Number), "DRBD_LL_DISK="+v.cfg.Disk)
	}
	return env
}

func (e *Engine) runHandlers(q *handlerQueue) {
	defer e.background.Done()
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.waiting) > 0 {
		run := q.waiting[0]
		q.waiting = q.waiting[1:]
		q.mu.Unlock()
		limit := handlerTime
		if run.name == "fence-peer" {
			limit = fencingTime
		}
		e.handlerDone(run.vol, run.name, e.handler(run, limit))
		q.mu.Lock()
	}
	q.running = false
}

func (e *Engine) handlerDone(vol int, name string, code int) {
	e.event(replication.Event{Kind: replication.HandlerDone, Volume: uint16(vol), Name: name, ExitCode: code})
}

// handler runs one command line; -1 means that it did not end by itself, or
// could not be started.
func (e *Engine) handler(run handlerRun, limit time.Duration) int {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-e.quit:
			cancel()
		case <-stop:
		}
	}()
	out := &headBuffer{limit: handlerOutput}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", run.line)
	cmd.Env, cmd.Dir = run.env, "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // for what it leaves running in the background
	began := time.Now()
	err := cmd.Run()
	code := -1
	if cmd.ProcessState != nil {
		code = cmd.ProcessState.ExitCode()
	}
	l := e.log.Info()
	if code != 0 {
		l = e.log.Warn()
	}
	l = l.Int("vol", run.vol).Str("handler", run.name).Int("exit", code).Dur("took", time.Since(began)).Bytes("output", out.data)
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil && code < 0:
		l = l.Str("error", fmt.Sprintf("killed after %v", limit))
	case err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay):
		l = l.Str("error", err.Error())
	}
	l.Msg("handler ended")
	e.events.publish(Event{Resource: e.cfg.Resource, Volume: run.vol, Kind: "handler", Text: run.name})
	return code
}

// headBuffer keeps the first bytes that are written to it.
type headBuffer struct {
	limit int
	data  []byte
}

func (b *headBuffer) Write(p []byte) (int, error) {
	b.data = append(b.data, p[:min(len(p), b.limit-len(b.data))]...)
	return len(p), nil
}
