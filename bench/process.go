package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Our own times.
const (
	startTime = 20 * time.Second // for a server to answer
	stopTime  = 15 * time.Second // for one to end by itself
	pollTime  = 20 * time.Millisecond
)

// A process is a server that was started here, and will be ended by its id.
type process struct {
	name  string
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // after ended
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// onEnd has f called if the process ends before forget is called.
func (p *process) onEnd(f func()) (forget func()) {
	forgotten := make(chan struct{})
	go func() {
		select {
		case <-p.ended:
			f()
		case <-forgotten:
		}
	}()
	return func() { close(forgotten) }
}

// stop ends the process: politely, then not. It may be called twice.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end %s: %w", p.name, err)
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(stopTime):
	}
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", p.name, err)
	}
	<-p.ended
	return fmt.Errorf("%s did not end within %v and was killed", p.name, stopTime)
}

// A lab is the directory of one benchmark and the servers that run in it.
type lab struct {
	dir     string
	log     *os.File // what the servers say
	running []*process
	ports   int // how many of those from firstPort on were given away
}

func newLab(parent string) (*lab, error) {
	dir, err := os.MkdirTemp(parent, "pollux-bench-")
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "servers.log"))
	if err != nil {
		return nil, err
	}
	return &lab{dir: dir, log: log}, nil
}

func (l *lab) path(elem ...string) string { return filepath.Join(append([]string{l.dir}, elem...)...) }

// close ends what still runs, last first. The directory stays if keep is set.
func (l *lab) close(keep bool) error {
	var errs []error
	for len(l.running) > 0 {
		errs = append(errs, l.stop(l.running[len(l.running)-1]))
	}
	errs = append(errs, l.log.Close())
	if !keep {
		errs = append(errs, os.RemoveAll(l.dir))
	}
	return errors.Join(errs...)
}

// start starts a server. It dies with this program, however that ends.
func (l *lab) start(name string, args ...string) (*process, error) {
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = l.log, l.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: filepath.Base(name), cmd: cmd, ended: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.ended)
	}()
	l.running = append(l.running, p)
	return p, nil
}

func (l *lab) stop(p *process) error {
	for i, q := range l.running {
		if p == q {
			l.running = append(l.running[:i], l.running[i+1:]...)
		}
	}
	return p.stop()
}

// await asks until ask succeeds, or p has ended, or the time is up.
func (l *lab) await(ctx context.Context, p *process, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	tick := time.NewTicker(pollTime)
	defer tick.Stop()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.ended:
			return fmt.Errorf("%s has ended: %v: see %s", p.name, p.err, l.log.Name()) //nolint:errorlint // nil if it ended well
		case <-ctx.Done():
			return fmt.Errorf("%s doesn't answer: %w: see %s", p.name, err, l.log.Name())
		}
	}
}

// run runs a program to its end and returns its standard output.
func run(ctx context.Context, name string, args ...string) (string, error) {
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return out.String(), fmt.Errorf("%s: %w: %s", filepath.Base(name), err, strings.TrimSpace(said.String()))
	}
	return out.String(), nil
}

// Ports for servers: below those that outgoing connections get, which the kernel
// takes for as long as they last (net.ipv4.ip_local_port_range, from 32768 on).
const firstPort, lastPort = 10000, 32767

// nextPort returns a loopback TCP port that nobody listens on, another one each
// time.
func (l *lab) nextPort() (int, error) {
	for ; firstPort+l.ports <= lastPort; l.ports++ {
		if n, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", firstPort+l.ports)); err == nil {
			l.ports++
			return firstPort + l.ports - 1, n.Close()
		}
	}
	return 0, fmt.Errorf("no free TCP port from %d to %d", firstPort, lastPort)
}

// tick is the unit of CPU times in /proc, 1/100 s on Linux for all programs
// (USER_HZ).
const tick = 10 * time.Millisecond

// cpuTicks is the CPU time that processes have used, all threads of them.
func cpuTicks(ps []*process) (ticks int64, err error) {
	for _, p := range ps {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid()))
		if err != nil {
			return 0, err
		}
		// The name, field 2, may hold blanks; utime and stime are fields 14 and 15.
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(fields) < 13 {
			return 0, fmt.Errorf("/proc/%d/stat has %d fields", p.pid(), len(fields))
		}
		for _, f := range fields[11:13] {
			n, err := strconv.ParseInt(f, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("/proc/%d/stat: %w", p.pid(), err)
			}
			ticks += n
		}
	}
	return ticks, nil
}
