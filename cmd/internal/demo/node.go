package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/pollux-project/pollux/hypervisor"
	"github.com/pollux-project/pollux/hypervisor/qemu"
)

// Our own times.
const (
	daemonStart = 20 * time.Second
	daemonStop  = 15 * time.Second
	statusPoll  = 50 * time.Millisecond
)

// A node is one of the three computers: a directory with everything that is its
// own, a loopback address, and its daemons. The witness has no polluxd.
type node struct {
	name    string
	dir     string
	address string // on the loopback
	bin     string // directory of the programs
	witness bool
	console console
	hv      hypervisor.Hypervisor
	polluxd *process
	manager *process // polluxha
}

func newNode(name, dir, bin, address string) (*node, error) {
	n := &node{name: name, dir: dir, bin: bin, address: address}
	n.console.path = n.path("console.log")
	var err error
	n.hv, err = qemu.New(qemu.Config{RunDir: n.path("vm")})
	return n, err
}

func (n *node) path(file string) string { return filepath.Join(n.dir, file) }
func (n *node) image() string           { return n.path("disk.img") }

// A process is a daemon of a node.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has
	err   error         // how, once ended is closed
}

// adm runs polluxadm on this node and returns both of its outputs.
func (n *node) adm(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := n.admCommand(ctx, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), n.admError(err, args, out.String())
}

// admLines runs polluxadm and hands out its lines as they come.
func (n *node) admLines(ctx context.Context, each func(line string), args ...string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := n.admCommand(ctx, args...)
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Start()
	_ = w.Close() // the program has its own
	if err != nil {
		_ = r.Close() // nothing was written
		return err
	}
	var said strings.Builder
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		each(lines.Text())
		said.WriteString(lines.Text() + "\n")
	}
	_ = r.Close() // read to its end
	return n.admError(cmd.Wait(), args, said.String())
}

func (n *node) admCommand(ctx context.Context, args ...string) *exec.Cmd {
	return n.command(ctx, "polluxadm", args...)
}

// command is a program with this node's settings.
func (n *node) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(n.bin, name), append([]string{"--config", n.path("pollux.toml")}, args...)...)
	// Its own process group: Ctrl-C reaches this program only, which cleans up.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

func (n *node) admError(err error, args []string, said string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("on %s: polluxadm %s: %w: %s", n.name, strings.Join(args, " "), err, strings.TrimSpace(said))
}

// start starts all daemons of the node and waits until they answer.
func (n *node) start(ctx context.Context) (err error) {
	if !n.witness {
		if n.polluxd, err = n.startDaemon(ctx, "polluxd"); err != nil {
			return err
		}
	}
	n.manager, err = n.startDaemon(ctx, "polluxha")
	return err
}

// startDaemon starts one; what it says goes to NAME.log.
func (n *node) startDaemon(ctx context.Context, name string) (*process, error) {
	log, err := os.OpenFile(n.path(name+".log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }() // the daemon has its own
	p := &process{cmd: n.command(context.Background(), name), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.err = p.cmd.Wait(); close(p.ended) }()

	ctx, cancel := context.WithTimeout(ctx, daemonStart)
	defer cancel()
	tick := time.NewTicker(statusPoll)
	defer tick.Stop()
	for {
		conn, err := net.Dial("unix", n.path(name+".sock"))
		if err == nil {
			return p, conn.Close()
		}
		select {
		case <-tick.C:
		case <-p.ended:
			return nil, fmt.Errorf("on %s: %s has ended: %v; see %s", n.name, name, p.err, n.path(name+".log")) //nolint:errorlint // nil if it ended well
		case <-ctx.Done():
			return p, fmt.Errorf("on %s: %s doesn't answer: %w", n.name, name, err)
		}
	}
}

// die is kill -9 of everything on the node. The manager goes first: it must not
// see the others die, as it would not if the node lost its power.
func (n *node) die(ctx context.Context) error {
	err := n.manager.kill()
	vm := make(chan error, 1)
	go func() { vm <- n.killVM(ctx) }()
	return errors.Join(err, n.polluxd.kill(), <-vm)
}

// kill is kill -9; a process that has ended, or never was, is no error.
func (p *process) kill() error {
	if p == nil {
		return nil
	}
	err := p.cmd.Process.Kill()
	<-p.ended
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// stop asks politely.
func (n *node) stop() error { return errors.Join(n.stopProcess(n.manager), n.stopProcess(n.polluxd)) }

func (n *node) stopProcess(p *process) error {
	if p == nil {
		return nil
	}
	name := filepath.Base(p.cmd.Path)
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop %s on %s: %w", name, n.name, err)
	}
	select {
	case <-p.ended:
		if p.err != nil {
			return fmt.Errorf("%s on %s did not end cleanly: %w", name, n.name, p.err)
		}
		return nil
	case <-time.After(daemonStop):
		return errors.Join(fmt.Errorf("%s on %s did not end within %v", name, n.name, daemonStop), p.kill())
	}
}

// killVM is kill -9 as well; a VM that doesn't run is no error.
func (n *node) killVM(ctx context.Context) error {
	if err := n.hv.Kill(ctx, vmName); err != nil && !errors.Is(err, hypervisor.ErrNotRunning) {
		return err
	}
	return nil
}

// status is the part of "polluxadm status --json" that the story needs.
type status struct {
	Role    string `json:"role"`
	Devices []struct {
		DiskState string `json:"disk-state"`
	} `json:"devices"`
	Connections []struct {
		State       string `json:"connection-state"`
		PeerDevices []struct {
			ReplicationState string `json:"replication-state"`
			PeerDiskState    string `json:"peer-disk-state"`
			OutOfSync        uint64 `json:"out-of-sync"` // KiB
			RSTotal          uint64 `json:"rs-total"`    // sectors
		} `json:"peer_devices"`
	} `json:"connections"`
}

func (n *node) status(ctx context.Context) (s status, err error) {
	cmd := n.admCommand(ctx, "status", "--json", resourceName)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return s, n.admError(err, []string{"status", "--json"}, said.String())
	}
	var all []status
	if err := json.Unmarshal(out, &all); err != nil {
		return s, fmt.Errorf("on %s: polluxadm status --json: %w", n.name, err)
	}
	if len(all) != 1 {
		return s, fmt.Errorf("on %s: polluxadm status --json shows %d resources, want 1", n.name, len(all))
	}
	return all[0], nil
}

// outOfSyncKiB is what the other side lacks, as this node knows it.
func (s status) outOfSyncKiB() (kib uint64) {
	for _, c := range s.Connections {
		for _, d := range c.PeerDevices {
			kib += d.OutOfSync
		}
	}
	return kib
}

// resyncKiB is the amount that the present resync began with; 0 without one.
func (s status) resyncKiB() (kib uint64) {
	for _, c := range s.Connections {
		for _, d := range c.PeerDevices {
			kib += d.RSTotal / 2
		}
	}
	return kib
}

// inSync tells whether both disks are UpToDate and nothing is being copied.
func (s status) inSync() bool {
	for _, d := range s.Devices {
		if d.DiskState != "UpToDate" {
			return false
		}
	}
	seen := false
	for _, c := range s.Connections {
		for _, d := range c.PeerDevices {
			if d.PeerDiskState != "UpToDate" || d.ReplicationState != "Established" {
				return false
			}
			seen = true
		}
	}
	return seen && len(s.Devices) > 0
}
