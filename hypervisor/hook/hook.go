package hook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Our own limits.
const (
	maxOutput = 8 << 10 // bytes of what a hook writes
	maxQueue  = 32      // hooks of one key that wait
	// holdLimit is how long we wait for the end of the output after the program
	// has ended: what it left in the background may hold on to it.
	holdLimit = time.Second
)

// A Hook is a program with its arguments and the time that one run may take.
type Hook struct {
	Command []string
	Timeout time.Duration
}

// Input is what a hook reads, as JSON. Fields that do not apply are left out.
type Input struct {
	Event     string    `json:"event"` // "on-promote", …
	Cluster   string    `json:"cluster,omitempty"`
	Node      string    `json:"node"`           // where it runs
	VM        string    `json:"vm,omitempty"`   // also of units
	Peer      string    `json:"peer,omitempty"` // the other node; for on-node-lost the lost one
	Resources []string  `json:"resources,omitempty"`
	Addresses []string  `json:"addresses,omitempty"` // floating ones
	Term      uint64    `json:"term,omitempty"`
	Reason    string    `json:"reason,omitempty"` // a sentence
	Time      time.Time `json:"time"`             // of what has happened
}

// Result is the end of a run.
type Result struct {
	Key    string
	Event  string
	Hook   Hook
	Took   time.Duration
	Output string // of both channels; cut, with a remark, beyond 8 KiB
	Killed bool   // it had not ended in time
	Err    error  // nil if it ended with status 0
}

// String is the result as one line of a log.
func (r Result) String() string {
	s := fmt.Sprintf("%s: hook %s %s", r.Key, r.Event, strings.Join(r.Hook.Command, " "))
	if r.Err == nil {
		return s + fmt.Sprintf(": done in %v", r.Took.Round(time.Millisecond))
	}
	return s + ": " + r.Err.Error()
}

// ErrBusy says that too many hooks of one key are waiting; this one was not run.
var ErrBusy = errors.New("not run: too many hooks are waiting")

// Runner runs hooks in the background. Safe for concurrent use.
type Runner struct {
	done func(Result)
	ctx  context.Context // of all runs
	stop context.CancelFunc

	mu     sync.Mutex
	queues map[string][]job // of the keys that have a goroutine; the first is running
	closed bool
	wg     sync.WaitGroup
}

type job struct {
	hook  Hook
	input Input
}

// New returns a Runner that hands each result to done, from any goroutine.
func New(done func(Result)) *Runner {
	ctx, stop := context.WithCancel(context.Background())
	return &Runner{done: done, ctx: ctx, stop: stop, queues: map[string][]job{}}
}

// Start runs h behind the hooks of the same key and returns at once. A hook
// without a command is none.
func (r *Runner) Start(key string, h Hook, in Input) {
	if len(h.Command) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	queue, isRunning := r.queues[key]
	if r.closed || len(queue) >= maxQueue {
		res := Result{Key: key, Event: in.Event, Hook: h, Err: ErrBusy}
		r.wg.Go(func() { r.done(res) }) // done may take its time, or call us
		return
	}
	r.queues[key] = append(queue, job{h, in})
	if !isRunning {
		r.wg.Go(func() { r.work(key) })
	}
}

// work runs the hooks of a key until there is none.
func (r *Runner) work(key string) {
	for {
		r.mu.Lock()
		queue := r.queues[key]
		if len(queue) == 0 {
			delete(r.queues, key)
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		res := Run(r.ctx, queue[0].hook, queue[0].input)
		res.Key = key
		r.done(res)
		r.mu.Lock()
		r.queues[key] = r.queues[key][1:]
		r.mu.Unlock()
	}
}

// Close waits for what runs and waits, until ctx is done: then the rest is
// killed. Later calls of Start are refused.
func (r *Runner) Close(ctx context.Context) {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	stop := context.AfterFunc(ctx, r.stop)
	defer stop()
	r.wg.Wait()
	r.stop()
}

// Run runs h once and waits for its end, or for its time limit or ctx's end,
// which kill it.
func Run(ctx context.Context, h Hook, in Input) Result {
	res := Result{Event: in.Event, Hook: h}
	text, err := json.Marshal(in)
	if err != nil {
		res.Err = fmt.Errorf("encode the input: %w", err)
		return res
	}
	limited, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	var out output
	cmd := exec.CommandContext(limited, h.Command[0], h.Command[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "POLLUX_EVENT=" + in.Event}
	cmd.Stdin = bytes.NewReader(append(text, '\n'))
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = holdLimit
	cmd.Cancel = func() error {
		res.Killed = true
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if errors.Is(err, syscall.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
	began := time.Now()
	err = cmd.Run()
	res.Took, res.Output = time.Since(began), out.String()
	switch {
	case res.Killed && ctx.Err() == nil:
		res.Err = fmt.Errorf("killed with all that it had started: it had not ended within %v", h.Timeout)
	case res.Killed:
		res.Err = fmt.Errorf("killed with all that it had started: %w", context.Cause(ctx))
	case errors.Is(err, exec.ErrWaitDelay): // it ended well; something of it lives on
	case err != nil:
		res.Err = err
		if said := strings.TrimSpace(res.Output); said != "" {
			first, _, _ := strings.Cut(said, "\n")
			res.Err = fmt.Errorf("%w: %s", err, first)
		}
	}
	return res
}

// output keeps the first bytes of what is written, and takes the rest. The
// goroutine that exec starts for both channels is the only writer; String is
// called when it has ended, or was given up: hence the lock.
type output struct {
	mu   sync.Mutex
	kept []byte
	lost int
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := min(len(p), maxOutput-len(o.kept))
	o.kept = append(o.kept, p[:n]...)
	o.lost += len(p) - n
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := strings.ToValidUTF8(string(o.kept), "?")
	if o.lost > 0 {
		s += fmt.Sprintf("\n… and %d bytes more", o.lost)
	}
	return s
}
