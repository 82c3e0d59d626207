package hatestbed

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// FenceProgram is the name under which the program of the rounds is a fence agent: it
// speaks the standard agents' protocol with polluxha, and asks the rack's power strip.
const FenceProgram = "fence_rack"

// boardDelay is what a management board takes to cut the power.
const boardDelay = time.Second

// fencePatience is how long the agent waits for the strip.
const fencePatience = 10 * time.Second

const fenceMetadata = `<?xml version="1.0" ?>
<resource-agent name="fence_rack" shortdesc="Fence agent for the power strip of a rack in namespaces">
<parameters>
<parameter name="action" required="1"><content type="string" default="off"/></parameter>
<parameter name="ip" required="1"><content type="string"/></parameter>
<parameter name="plug" required="1"><content type="string"/></parameter>
</parameters>
<actions><action name="on"/><action name="off"/><action name="status"/><action name="monitor"/><action name="metadata"/></actions>
</resource-agent>
`

// FenceAgent is one run of the agent; its result is the exit code. Options come as
// lines NAME=VALUE, source: fence-agents, doc/FenceAgentAPI.md.
func FenceAgent(in io.Reader, out io.Writer) int {
	options := map[string]string{}
	for lines := bufio.NewScanner(in); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), "=")
		options[name] = value
	}
	if options["action"] == "metadata" {
		fmt.Fprint(out, fenceMetadata)
		return 0
	}
	answer, err := askStrip(options["ip"], options["action"]+" "+options["plug"])
	switch {
	case err != nil:
		fmt.Fprintln(out, err)
		return 1
	case answer == "OFF":
		fmt.Fprintln(out, "Status: OFF")
		return 2
	case answer == "ON":
		fmt.Fprintln(out, "Status: ON")
	}
	return 0
}

func askStrip(socket, request string) (string, error) {
	conn, err := net.DialTimeout("unix", socket, fencePatience)
	if err != nil {
		return "", fmt.Errorf("the power strip: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(fencePatience)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(conn, request); err != nil {
		return "", fmt.Errorf("the power strip: %w", err)
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("the power strip: %w", err)
	}
	if answer = strings.TrimSpace(answer); strings.HasPrefix(answer, "error") {
		return "", errors.New(answer)
	}
	return answer, nil
}

// A powerStrip has a plug for each host, and answers the agent. It knows when it told
// whom that a host is off. Safe for concurrent use.
type powerStrip struct {
	socket string
	cut    func(host string) error
	listen net.Listener
	served sync.WaitGroup

	mu        sync.Mutex
	off       map[string]bool
	confirmed map[string]time.Time // when it was told first that a host is off
}

func newPowerStrip(socket string, cut func(host string) error) (*powerStrip, error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	p := &powerStrip{socket: socket, cut: cut, listen: l, off: map[string]bool{}, confirmed: map[string]time.Time{}}
	p.served.Go(p.serve)
	return p, nil
}

func (p *powerStrip) serve() {
	for {
		conn, err := p.listen.Accept()
		if err != nil {
			return
		}
		p.served.Go(func() {
			defer conn.Close()
			if line, err := bufio.NewReader(conn).ReadString('\n'); err == nil {
				fmt.Fprintln(conn, p.answer(strings.Fields(line)))
			}
		})
	}
}

func (p *powerStrip) answer(words []string) string {
	if len(words) != 2 {
		return "ok" // monitor names no plug
	}
	action, host := words[0], words[1]
	if action == "off" {
		time.Sleep(boardDelay) // boards take their time, and it counts
		if err := p.cut(host); err != nil {
			return "error: " + err.Error()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch action {
	case "off":
		p.off[host] = true
	case "on":
		delete(p.off, host)
	case "status":
		if !p.off[host] {
			return "ON"
		}
		if p.confirmed[host].IsZero() {
			p.confirmed[host] = time.Now()
		}
		return "OFF"
	}
	return "ok"
}

// on gives a host its power again.
func (p *powerStrip) on(host string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.off, host)
	delete(p.confirmed, host)
}

// confirmedOff is when somebody was told first that a host is off; zero: never.
func (p *powerStrip) confirmedOff(host string) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.confirmed[host]
}

func (p *powerStrip) close() error {
	err := p.listen.Close()
	p.served.Wait()
	return err
}

// armFences gives each data node a fence agent for the other one, as an operator
// does: the same table in the cluster's file of both, and a reload.
func (s *Site) armFences(ctx context.Context) (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	agent := filepath.Join(s.Dir, FenceProgram)
	if err := os.Symlink(self, agent); err != nil {
		return err
	}
	if s.strip, err = newPowerStrip(filepath.Join(s.Dir, "strip.sock"), func(name string) error {
		for _, h := range s.Hosts {
			if h.Name == name {
				return s.PowerOff(ctx, h)
			}
		}
		return fmt.Errorf("no plug %q", name)
	}); err != nil {
		return err
	}
	var tables strings.Builder
	for _, h := range s.dataHosts() {
		fmt.Fprintf(&tables, "\n[[fence]]\nnode = %q\nagent = %q\n\n[fence.options]\nip = %q\nplug = %q\n", h.Name, agent, s.strip.socket, h.Name)
	}
	for _, h := range s.dataHosts() {
		if err := appendTo(filepath.Join(h.path("state"), "cluster.toml"), tables.String()); err != nil {
			return err
		}
	}
	for _, h := range s.dataHosts() {
		if err := s.daemons[h.Name]["polluxha"].cmd.Process.Signal(syscall.SIGHUP); err != nil {
			return fmt.Errorf("on %s: reload polluxha: %w", h.Name, err)
		}
	}
	return s.waitFor(ctx, joinPatience, "an arbiter with fence agents", func() bool {
		for _, h := range s.dataHosts() {
			if c, err := h.cluster(ctx); err != nil || !c.Arbiter.Reachable || c.Arbiter.SelfTest == nil {
				return false
			}
		}
		return true
	})
}

// appendTo adds text to a cluster's file, and counts its serial up.
func appendTo(path, text string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	lines := strings.Split(string(b), "\n")
	for i, line := range lines {
		var serial int
		if n, _ := fmt.Sscanf(line, "serial = %d", &serial); n == 1 {
			lines[i] = fmt.Sprintf("serial = %d", serial+1)
		}
	}
	return os.WriteFile(path, []byte(strings.Join(lines, "\n")+text), 0o600)
}
