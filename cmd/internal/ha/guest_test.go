package ha

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/cmd/internal/daemon"
	"github.com/pollux-project/pollux/cmd/internal/service"
	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor/ha"
)

// drillHold is how long a test's node plays dead: until the other one has taken over,
// no longer.
const drillHold = 15 * time.Second

// role is the environment variable by which the test's program becomes another one.
const role = "POLLUX_HA_TEST"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "polluxd":
		os.Exit(daemon.Main(os.Args[1:], os.Stdout, os.Stderr))
	case "polluxha":
		os.Exit(managerMain(os.Args[1]))
	case "guest":
		guestMain(os.Args[1], os.Args[2], os.Args[3])
	default:
		os.Exit(m.Run())
	}
}

// managerMain is polluxha with guests that are processes of this test.
func managerMain(settings string) int {
	hold := time.Duration(0)
	if text, ok := strings.CutPrefix(settings, "-drill-hold="); ok {
		hold, _ = time.ParseDuration(text) // written by us
		settings = os.Args[2]
	}
	d, err := readSettings(settings, true)
	if err == nil && hold > 0 {
		playDead(d, min(hold, drillHold), (&processWork{dir: filepath.Dir(settings), name: "web"}).kill, zerolog.Nop())
		err = restart(os.Args[1:])
	}
	if err == nil {
		var log zerolog.Logger
		if log, err = service.NewLogger(os.Stderr, "debug", "console"); err == nil {
			n := &node{settings: d, log: log, args: []string{settings}, protect: true}
			n.work = func(v *conf.VM) workload {
				if os.Getenv("POLLUX_HA_GUESTS") == "none" { // 200 processes would be what is measured
					return &noWork{}
				}
				return &processWork{dir: filepath.Dir(settings), name: v.Name, nbd: d.NBD.Socket, export: v.Disks()[0].Export()}
			}
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
			defer stop()
			if err = n.run(ctx); err == nil {
				return 0
			}
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// A noWork is a guest that is nothing at all.
type noWork struct {
	mu          sync.Mutex
	incarnation string
}

func (w *noWork) set(incarnation string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.incarnation = incarnation
	return nil
}

func (w *noWork) look(context.Context) (ha.Seen, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.incarnation == "" {
		return ha.Seen{Phase: ha.PhaseStopped}, nil
	}
	return ha.Seen{Phase: ha.PhaseRunning, Incarnation: w.incarnation}, nil
}

func (w *noWork) watch(ctx context.Context, _ func()) error {
	<-ctx.Done()
	return ctx.Err()
}

func (w *noWork) start(_ context.Context, incarnation string) error { return w.set(incarnation) }
func (w *noWork) stop(context.Context) error                        { return w.set("") }
func (w *noWork) kill(context.Context) error                        { return w.set("") }
func (w *noWork) check(context.Context) error                       { return nil }
func (w *noWork) probe(context.Context) error                       { return nil }
func (w *noWork) addressesFree(context.Context) error               { return nil }
func (w *noWork) addIPs(context.Context) error                      { return nil }
func (w *noWork) untouched() uint64                                 { return 0 }
func (w *noWork) removeIPs(context.Context) error                   { return nil }

// A processWork is a guest that is a process of its own: it outlives its manager.
type processWork struct{ dir, name, nbd, export string }

type guestNote struct {
	PID         int
	Start       string // its start time: numbers of processes are used again
	Incarnation string
}

// startOf is when a process was started, as /proc has it; "" if it has ended.
func startOf(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(stat), ") ") // this program's name has no such characters
	fields := strings.Fields(rest)
	if fields[0] == "Z" {
		return ""
	}
	return fields[19] // field 22 of proc(5)
}

func (p *processWork) note() string   { return filepath.Join(p.dir, "run", p.name+".guest") }
func (p *processWork) ledger() string { return filepath.Join(p.dir, p.name+".ledger") }

func (p *processWork) running() (guestNote, bool) {
	var n guestNote
	b, err := os.ReadFile(p.note())
	if err != nil || json.Unmarshal(b, &n) != nil {
		return n, false
	}
	start := startOf(n.PID)
	return n, start != "" && start == n.Start
}

func (p *processWork) check(context.Context) error { return nil }

func (p *processWork) start(_ context.Context, incarnation string) error {
	if n, ok := p.running(); ok {
		return fmt.Errorf("process %d runs", n.PID)
	}
	cmd := exec.Command(os.Args[0], p.nbd, p.export+"@"+incarnation, p.ledger())
	cmd.Env = append(os.Environ(), role+"=guest")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	go cmd.Wait() //nolint:errcheck // only so that no zombie is left
	b, err := json.Marshal(guestNote{cmd.Process.Pid, startOf(cmd.Process.Pid), incarnation})
	if err != nil {
		return err
	}
	return os.WriteFile(p.note(), b, 0o600)
}

func (p *processWork) stop(ctx context.Context) error { return p.kill(ctx) }

func (p *processWork) kill(ctx context.Context) error {
	for {
		n, ok := p.running()
		if !ok {
			return nil
		}
		if err := syscall.Kill(n.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond): // the kernel takes its time
		}
	}
}

func (p *processWork) look(context.Context) (ha.Seen, error) {
	n, ok := p.running()
	if !ok {
		return ha.Seen{Phase: ha.PhaseStopped}, nil
	}
	return ha.Seen{Phase: ha.PhaseRunning, Incarnation: n.Incarnation}, nil
}

func (p *processWork) watch(ctx context.Context, changed func()) error {
	for {
		if _, ok := p.running(); !ok {
			changed()
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond): // somebody else's child can't be waited for
		}
	}
}

func (p *processWork) probe(context.Context) error         { return nil }
func (p *processWork) addressesFree(context.Context) error { return nil }
func (p *processWork) addIPs(context.Context) error        { return nil }
func (p *processWork) untouched() uint64                   { return 0 }
func (p *processWork) removeIPs(context.Context) error     { return nil }

// guestMain counts in the first block of its disk, for ever: each number is
// written, and noted in the ledger when the write was answered. A ledger line is
// nanoseconds, "read" or "acked", and the number.
func guestMain(socket, export, ledger string) {
	out, err := os.OpenFile(ledger, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		panic(err)
	}
	tell := func(what string, n uint64) { fmt.Fprintf(out, "%d %s %d\n", time.Now().UnixNano(), what, n) }
	var number uint64
	pending := false // number was sent, and not answered
	for {
		conn, err := openExport(socket, export)
		if err != nil {
			time.Sleep(10 * time.Millisecond) // as a hypervisor does while its server is away
			continue
		}
		block := make([]byte, 512)
		if number == 0 {
			if err := transfer(conn, 0, block); err != nil {
				conn.Close()
				continue
			}
			number = binary.BigEndian.Uint64(block)
			tell("read", number)
		}
		for {
			if !pending {
				number, pending = number+1, true
			}
			binary.BigEndian.PutUint64(block, number)
			if err := transfer(conn, 1, block); err != nil {
				break
			}
			tell("acked", number)
			pending = false
			time.Sleep(time.Millisecond) // it is no load test
		}
		conn.Close()
	}
}

// openExport does the handshake of the NBD protocol, fixed newstyle.
func openExport(socket, export string) (net.Conn, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 18)
	if _, err = io.ReadFull(conn, b); err == nil {
		b = append(binary.BigEndian.AppendUint32(nil, 3), "IHAVEOPT\x00\x00\x00\x01"...)
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(export))), export...)
		_, err = conn.Write(b)
	}
	if err == nil {
		_, err = io.ReadFull(conn, make([]byte, 10))
	}
	if err != nil {
		conn.Close()
	}
	return conn, err
}

// transfer reads (kind 0) or writes (1) the block at 0.
func transfer(conn net.Conn, kind uint16, block []byte) error {
	b := binary.BigEndian.AppendUint32(nil, 0x25609513)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = append(b, make([]byte, 16)...) // cookie, offset
	b = binary.BigEndian.AppendUint32(b, uint32(len(block)))
	if kind == 1 {
		b = append(b, block...)
	}
	if _, err := conn.Write(b); err != nil {
		return err
	}
	reply := make([]byte, 16)
	if _, err := io.ReadFull(conn, reply); err != nil {
		return err
	}
	if e := binary.BigEndian.Uint32(reply[4:]); e != 0 {
		return fmt.Errorf("NBD error %d", e)
	}
	if kind == 0 {
		_, err := io.ReadFull(conn, block)
		return err
	}
	return nil
}
