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

	"github.com/pollux-project/pollux/cmd/internal/demo/storage"
	"github.com/pollux-project/pollux/hypervisor"
	"github.com/pollux-project/pollux/hypervisor/qemu"
)

// Names in the story.
const (
	resourceName = "web"
	vmName       = "web"
)

// Our own times.
const (
	daemonStart = 20 * time.Second
	daemonStop  = 15 * time.Second
	statusPoll  = 50 * time.Millisecond
)

// A node is one of the two computers: a directory with everything that is its
// own, and its polluxd.
type node struct {
	name    string
	dir     string
	address string // of the replication link
	bin     string // directory of the programs
	console console
	hv      hypervisor.Hypervisor
	daemon  *exec.Cmd // nil: doesn't run
	ended   chan error
}

func newNode(name, dir, bin string) (*node, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	n := &node{name: name, dir: dir, bin: bin, address: address}
	n.console.path = n.path("console.log")
	n.hv, err = qemu.New(qemu.Config{RunDir: n.path("vm")})
	return n, err
}

func (n *node) path(file string) string { return filepath.Join(n.dir, file) }
func (n *node) image() string           { return n.path("disk.img") }
func (n *node) nbdSocket() string       { return n.path("nbd.sock") }

// freeAddress returns a loopback address that nobody listens on now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// configure writes the node's files. The resource's and the VM's are the same
// on both nodes, as they are on two real ones.
func configure(nodes [2]*node, guest string, volumeBytes int64) error {
	var on strings.Builder
	for _, n := range nodes {
		fmt.Fprintf(&on, "    on %s {\n        disk       %q;\n        address    ipv4 %s;\n    }\n", n.name, n.image(), n.address)
	}
	resource := fmt.Sprintf(resourceFile, resourceName, on.String())
	vm := fmt.Sprintf(vmFile, vmName, resourceName, filepath.Join(guest, "vmlinuz"), filepath.Join(guest, "initramfs.cpio"))
	for _, n := range nodes {
		if err := os.Mkdir(n.dir, 0o700); err != nil {
			return err
		}
		for name, text := range map[string]string{
			"pollux.toml": fmt.Sprintf(settingsFile, n.name), "web.res": resource, "web.vm.toml": vm,
		} {
			if err := os.WriteFile(n.path(name), []byte(text), 0o600); err != nil {
				return err
			}
		}
		if err := storage.MakeImage(n.image(), volumeBytes); err != nil {
			return err
		}
	}
	return nil
}

// Relative paths count from the file's directory: a whole node in one place.
const settingsFile = `node-name = %q
resource-files = ["*.res"]
vm-files = ["*.vm.toml"]
drbd-conf = ""
control-socket = "polluxd.sock"
state-dir = "state"

[nbd]
socket = "nbd.sock"

[log]
format = "console"
`

// Both nodes have one address here, so their names can't be told from it.
const resourceFile = `global { disable-ip-verification; }

resource %s {
    device     /dev/drbd1 minor 1;
    meta-disk  internal;
    net {
        protocol     C;
        connect-int  1;
    }
    disk {
        resync-rate  100M;
        c-max-rate   200M;
        c-min-rate   100M;
    }
%s}
`

const vmFile = `name = %q
resources = [%q]
memory = "192M"
console = "console.log"
stop-timeout = "40s"
extra-args = ["-no-reboot"]

[boot]
kernel = %q
initrd = %q
cmdline = "console=ttyS0 quiet loglevel=1 panic=-1 mitigations=off"
`

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
	cmd := exec.CommandContext(ctx, filepath.Join(n.bin, "polluxadm"), append([]string{"--config", n.path("pollux.toml")}, args...)...)
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

// startDaemon starts polluxd and waits until it answers.
func (n *node) startDaemon(ctx context.Context) error {
	log, err := os.OpenFile(n.path("polluxd.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(n.bin, "polluxd"), "--config", n.path("pollux.toml"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	_ = log.Close() // the daemon has its own
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	n.daemon, n.ended = cmd, ended

	ctx, cancel := context.WithTimeout(ctx, daemonStart)
	defer cancel()
	tick := time.NewTicker(statusPoll)
	defer tick.Stop()
	for {
		_, err := n.status(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case end := <-ended:
			n.daemon = nil
			return fmt.Errorf("on %s: polluxd has ended: %v; see %s", n.name, end, n.path("polluxd.log")) //nolint:errorlint // nil if it ended well
		case <-ctx.Done():
			return fmt.Errorf("on %s: polluxd doesn't answer: %w", n.name, err)
		}
	}
}

// killDaemon is kill -9.
func (n *node) killDaemon() error {
	if n.daemon == nil {
		return nil
	}
	err := n.daemon.Process.Kill()
	<-n.ended //nolint:errcheck // killed: its exit status says nothing
	n.daemon = nil
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// stopDaemon asks politely.
func (n *node) stopDaemon() error {
	if n.daemon == nil {
		return nil
	}
	if err := n.daemon.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop polluxd on %s: %w", n.name, err)
	}
	select {
	case err := <-n.ended:
		n.daemon = nil
		if err != nil {
			return fmt.Errorf("polluxd on %s did not end cleanly: %w", n.name, err)
		}
		return nil
	case <-time.After(daemonStop):
		return errors.Join(fmt.Errorf("polluxd on %s did not end within %v", n.name, daemonStop), n.killDaemon())
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
