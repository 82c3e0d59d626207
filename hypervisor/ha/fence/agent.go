package fence

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// The actions of the fence agents' interface that are used here, and the exit code
// of status for a host that is off. Source: fence-agents, doc/FenceAgentAPI.md.
const (
	actionMetadata = "metadata"
	actionMonitor  = "monitor"
	actionStatus   = "status"
	actionOff      = "off"
	actionOn       = "on"
	exitOff        = 2
)

// Our own constants.
const (
	// DefaultTimeout is for one action: the agents themselves give up after about
	// 20 s per step.
	DefaultTimeout = 60 * time.Second
	killDelay      = 2 * time.Second // for the output's end after the group was killed
	statusPoll     = 500 * time.Millisecond
	maxOutput      = 1 << 20 // bytes; metadata of the largest agent has 60 KiB
	maxComplaint   = 400     // bytes of an agent's error output that are passed on
)

// reserved options are set by this package only.
var reserved = map[string]bool{"action": true, "option": true, "nodename": true}

// Device says how one node is switched off.
type Device struct {
	Node    string
	Agent   string            // "fence_ipmilan", found in PATH or /usr/sbin; or a path
	Options map[string]string // for the agent; action and nodename are set here
	Timeout time.Duration     // for one action; 0 for DefaultTimeout
}

// Power is what a device says of its host.
type Power int

// Unknown is no answer: never taken for Off.
const (
	Unknown Power = iota
	On
	Off
)

func (p Power) String() string { return [...]string{"unknown", "on", "off"}[p] }

// agent is one device, ready to run. It is safe for concurrent use.
type agent struct {
	Device
	program string
}

func newAgent(d Device) (*agent, error) {
	if d.Node == "" {
		return nil, errors.New("fence: a device has no node")
	}
	if d.Timeout == 0 {
		d.Timeout = DefaultTimeout
	}
	d.Options = maps.Clone(d.Options)
	for name, value := range d.Options {
		switch {
		case reserved[name]:
			return nil, fmt.Errorf("fence: %s of %s: the option %s is not yours to set", d.Agent, d.Node, name)
		case name == "" || strings.ContainsAny(name, "=\n\r#") || strings.ContainsAny(value, "\n\r\x00"):
			return nil, fmt.Errorf("fence: %s of %s: option %q does not fit on one line NAME=VALUE", d.Agent, d.Node, name)
		}
	}
	program, err := find(d.Agent)
	if err != nil {
		return nil, fmt.Errorf("fence: the device of %s: %w", d.Node, err)
	}
	return &agent{Device: d, program: program}, nil
}

// find looks for a program also where daemons' PATH may not lead.
func find(name string) (string, error) {
	if name == "" {
		return "", errors.New("no agent is named")
	}
	program, err := exec.LookPath(name)
	if err == nil {
		return program, nil
	}
	if !strings.Contains(name, "/") {
		if program, err := exec.LookPath("/usr/sbin/" + name); err == nil {
			return program, nil
		}
	}
	return "", fmt.Errorf("%w: is the package fence-agents installed?", err)
}

// result is how one run of an agent ended.
type result struct {
	code   int
	output []byte
	err    error // it did not run to its end; else nil, whatever the code
}

// run runs one action and waits for its end, or kills the agent with all that it
// started.
func (a *agent) run(ctx context.Context, action string) result {
	ctx, cancel := context.WithTimeout(ctx, a.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, a.program)
	var in bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(a.Options)) {
		fmt.Fprintf(&in, "%s=%s\n", name, a.Options[name])
	}
	fmt.Fprintf(&in, "nodename=%s\naction=%s\n", a.Node, action)
	var out, complaint limited
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, &out, &complaint
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PYTHONWARNINGS=ignore")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killDelay
	err := cmd.Run()
	if cmd.Process != nil {
		// What it left behind, also at a good end. No such group is the rule.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	r := result{code: -1, output: out.Bytes()}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		r.err = fmt.Errorf("cut off: %w", context.Cause(ctx))
	case errors.As(err, &exit) && exit.Exited():
		r.code = exit.ExitCode()
	case err != nil:
		r.err = err
	default:
		r.code = 0
	}
	if r.err == nil && r.code != 0 {
		r.err = errors.New("exit code " + fmt.Sprint(r.code) + a.tail(complaint.Bytes(), out.Bytes()))
	}
	return r
}

// limited keeps the beginning of an output.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := maxOutput - l.Len(); room > 0 {
		l.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// secret are parts of the names of options whose values are never shown.
var secret = []string{"pass", "secret", "token", "key", "kg", "community", "credential"}

// tail is the end of what an agent complained of, on one line, without secrets.
func (a *agent) tail(outputs ...[]byte) string {
	text := ""
	for _, o := range outputs {
		if text = strings.Join(strings.Fields(string(o)), " "); text != "" {
			break
		}
	}
	for name, value := range a.Options {
		if value != "" && slices.ContainsFunc(secret, func(s string) bool { return strings.Contains(strings.ToLower(name), s) }) {
			text = strings.ReplaceAll(text, strings.Join(strings.Fields(value), " "), "***")
		}
	}
	if text == "" {
		return ""
	}
	if len(text) > maxComplaint {
		text = "…" + text[len(text)-maxComplaint:]
	}
	return ": " + text
}

// failed names the device in an error.
func (a *agent) failed(action string, err error) error {
	return fmt.Errorf("fence: %s of %s: %s: %w", a.Agent, a.Node, action, err)
}

// metadata asks the agent what it can do.
func (a *agent) metadata(ctx context.Context) (Metadata, error) {
	r := a.run(ctx, actionMetadata)
	if r.err != nil {
		return Metadata{}, a.failed(actionMetadata, r.err)
	}
	m, err := ParseMetadata(r.output)
	if err != nil {
		return Metadata{}, a.failed(actionMetadata, err)
	}
	return m, nil
}

// validate asks the agent for its options and compares.
func (a *agent) validate(ctx context.Context) (Metadata, error) {
	m, err := a.metadata(ctx)
	if err != nil {
		return Metadata{}, err
	}
	if err := m.Check(a.Options); err != nil {
		return Metadata{}, fmt.Errorf("fence: %s of %s: %w", a.Agent, a.Node, err)
	}
	return m, nil
}

// test is validate, and whether the device can be reached, if the agent can tell.
func (a *agent) test(ctx context.Context) error {
	m, err := a.validate(ctx)
	if err != nil || !slices.Contains(m.Actions, actionMonitor) {
		return err
	}
	if r := a.run(ctx, actionMonitor); r.err != nil {
		return a.failed(actionMonitor, r.err)
	}
	return nil
}

// status asks whether the host has power. An error goes with Unknown.
func (a *agent) status(ctx context.Context) (Power, error) {
	r := a.run(ctx, actionStatus)
	says := strings.ToUpper(strings.Join(strings.Fields(string(r.output)), " "))
	switch {
	case r.code == exitOff && strings.Contains(says, "STATUS: OFF"):
		return Off, nil
	case r.err != nil:
		return Unknown, a.failed(actionStatus, r.err)
	case strings.Contains(says, "OFF"):
		return Unknown, a.failed(actionStatus, fmt.Errorf("exit code 0 means on, and it says %q", says))
	}
	return On, nil
}

// off switches the host off and has that confirmed. What the action itself says
// does not count.
func (a *agent) off(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*a.Timeout)
	defer cancel()
	did := a.run(ctx, actionOff)
	var last error // what status said, if the time was not up before it could
	for {
		power, err := a.status(ctx)
		switch {
		case power == Off:
			return nil
		case did.err != nil:
			return errors.Join(a.failed(actionOff, did.err), err)
		case err == nil:
			last = a.failed(actionOff, fmt.Errorf("status says %q all the time", power))
		case last == nil || ctx.Err() == nil:
			last = err
		}
		select {
		case <-ctx.Done():
			return last
		case <-time.After(statusPoll): // a board may be slow to see it
		}
	}
}

// on gives the host power again.
func (a *agent) on(ctx context.Context) error {
	if r := a.run(ctx, actionOn); r.err != nil {
		return a.failed(actionOn, r.err)
	}
	return nil
}
