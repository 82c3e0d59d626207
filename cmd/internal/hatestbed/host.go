package hatestbed

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// How long programs may take, on a busy machine.
const (
	startPatience = 30 * time.Second
	pollEvery     = 20 * time.Millisecond
)

// A daemon is a program that runs on a host until that, or somebody, ends it.
type daemon struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has
	err   error         // how, once ended is closed
}

func (d *daemon) runs() bool {
	if d == nil {
		return false
	}
	select {
	case <-d.ended:
		return false
	default:
		return true
	}
}

// command is a program of the product on the host, with the host's settings.
func (h *Host) command(ctx context.Context, bin, name string, args ...string) *exec.Cmd {
	if name != witnessProgram { // which has options only
		args = append([]string{"--config", h.path("pollux.toml")}, args...)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(bin, name), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is ours
	return cmd
}

// start runs a daemon; its outputs go to NAME.log.
func (h *Host) start(bin, name string, args ...string) (*daemon, error) {
	log, err := os.OpenFile(h.path(name+".log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }() // the daemon has its own
	d := &daemon{cmd: h.command(context.Background(), bin, name, args...), ended: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := h.space.Start(d.cmd); err != nil {
		return nil, fmt.Errorf("on %s: start %s: %w", h.Name, name, err)
	}
	go func() { d.err = d.cmd.Wait(); close(d.ended) }()
	return d, nil
}

// kill is SIGKILL to one daemon.
func (h *Host) kill(d *daemon) error {
	if !d.runs() {
		return nil
	}
	if err := d.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-d.ended
	return nil
}

// socket is the path of a control socket.
func (h *Host) socket(name string) string {
	if name == witnessProgram {
		return filepath.Join(h.witnessDir(), "control.sock")
	}
	return filepath.Join(h.Dir, "run", name+".sock")
}

// adm runs polluxadm on the host and hands out its lines as they come.
func (h *Host) adm(ctx context.Context, bin string, each func(string), args ...string) (string, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	cmd := h.command(ctx, bin, "polluxadm", args...)
	cmd.Stdout, cmd.Stderr = w, w
	err = h.space.Start(cmd)
	_ = w.Close() // the program has its own
	defer func() { _ = r.Close() }()
	if err != nil {
		return "", err
	}
	var said strings.Builder
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if each != nil {
			each(lines.Text())
		}
		said.WriteString(lines.Text() + "\n")
	}
	if err := cmd.Wait(); err != nil {
		return said.String(), fmt.Errorf("on %s: polluxadm %s: %w: %s", h.Name, strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return said.String(), nil
}

// answers waits until something listens on a control socket.
func (h *Host) answers(ctx context.Context, d *daemon, name string) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	return until(ctx, fmt.Sprintf("%s on %s", name, h.Name), func() (bool, error) {
		if !d.runs() {
			return false, fmt.Errorf("on %s: %s has ended: %w; see %s", h.Name, name, d.err, h.path(name+".log"))
		}
		return Listens(h.socket(name)), nil
	})
}

// Listens tells whether a unix socket takes connections.
func Listens(socket string) bool {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return false
	}
	_ = conn.Close() // nothing was said
	return true
}

// until polls, because processes tell nobody when they are ready.
func until(ctx context.Context, what string, ready func() (bool, error)) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		ok, err := ready()
		if err != nil || ok {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waited for %s: %w", what, context.Cause(ctx))
		}
	}
}
