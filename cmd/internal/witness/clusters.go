package witness

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/witness"
	"github.com/pollux-project/pollux/hypervisor/ha/control"
)

// maxCA bounds the file that add reads.
const maxCA = 64 << 10

func (p *program) caDir() string { return filepath.Join(p.dir, "clusters") }

func validName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && (i == 0 || c != '-' && c != '.') && c != '_' {
			return false
		}
	}
	return s != "" && len(s) <= 48
}

// add makes a cluster known: its CA signs the certificates of those who may ask.
func (p *program) add(words []string) int {
	name, path := words[0], words[1]
	if !validName(name) {
		return p.fail(exitUsage, "cluster %q: expected 1 to 48 letters, digits, \".\", \"_\" and \"-\", the first a letter, a digit or \"_\"", name)
	}
	text, ca, err := p.readCA(path)
	if err != nil {
		return p.fail(exitConfig, "%v", err)
	}
	if err := os.MkdirAll(p.caDir(), 0o700); err != nil {
		return p.fail(exitEnvironment, "%v", err)
	}
	if err := p.handOver(p.caDir()); err != nil {
		return p.fail(exitEnvironment, "%v", err)
	}
	file := filepath.Join(p.caDir(), name+".pem")
	switch known, err := p.known(ca, file); {
	case err != nil:
		return p.fail(exitConfig, "%v", err)
	case known:
		fmt.Fprintf(p.stdout, "cluster %s is known already\n", name)
	default:
		err := control.WriteFile(file, text)
		if err == nil {
			err = p.handOver(file)
		}
		if err != nil {
			return p.fail(exitEnvironment, "%v", err)
		}
		fmt.Fprintf(p.stdout, "added cluster %s, CA %s\n", name, ca)
	}
	return p.reload()
}

// handOver gives a file to the account that the witness runs under, which is the
// owner of the state directory: root may have made it.
func (p *program) handOver(path string) error {
	fi, err := os.Stat(p.dir)
	if err != nil {
		return err
	}
	owner, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 {
		return nil
	}
	return os.Lchown(path, int(owner.Uid), int(owner.Gid))
}

// readCA reads the first certificate of a file, and returns it in PEM with its
// fingerprint.
func (p *program) readCA(path string) (text []byte, print string, err error) {
	in := p.stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, "", err
		}
		defer f.Close()
		in = f
	} else {
		path = "standard input"
	}
	if text, err = io.ReadAll(io.LimitReader(in, maxCA)); err != nil {
		return nil, "", fmt.Errorf("%s: %w", path, err)
	}
	ca, err := witness.ParseCA(path, text)
	if err != nil {
		return nil, "", err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}), control.Fingerprint(ca.Raw), nil
}

// known reports whether a file has this CA already. Another CA under the name, and
// the CA under another name, are errors.
func (p *program) known(print, file string) (bool, error) {
	files, err := os.ReadDir(p.caDir())
	if err != nil {
		return false, err
	}
	for _, f := range files {
		path := filepath.Join(p.caDir(), f.Name())
		if !strings.HasSuffix(f.Name(), ".pem") || strings.HasPrefix(f.Name(), ".") {
			continue
		}
		ca, err := witness.ReadCA(path)
		switch {
		case err != nil && path == file:
			return false, fmt.Errorf("%w: remove that file first", err)
		case err != nil: // status tells of it
		case path == file && control.Fingerprint(ca.Raw) != print:
			return false, fmt.Errorf("another cluster is called %s here (CA %s): give this one another name, or `pollux-witness remove %s` first if that one is gone",
				strings.TrimSuffix(f.Name(), ".pem"), control.Fingerprint(ca.Raw), strings.TrimSuffix(f.Name(), ".pem"))
		case path != file && control.Fingerprint(ca.Raw) == print:
			return false, fmt.Errorf("this cluster is known as %s already", strings.TrimSuffix(f.Name(), ".pem"))
		case path == file:
			return true, nil
		}
	}
	return false, nil
}

// remove makes a cluster unknown.
func (p *program) remove(words []string) int {
	name := words[0]
	if !validName(name) {
		return p.fail(exitUsage, "cluster %q is no name of one", name)
	}
	err := os.Remove(filepath.Join(p.caDir(), name+".pem"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return p.fail(exitConfig, "there is no cluster %s: pollux-witness status lists them", name)
	case err != nil:
		return p.fail(exitEnvironment, "%v", err)
	}
	fmt.Fprintf(p.stdout, "removed cluster %s; its records are kept\n", name)
	return p.reload()
}

// call asks the running witness.
func (p *program) call(method, path string) ([]byte, error) {
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", p.socketPath())
		},
	}}
	r, err := http.NewRequest(method, "http://witness"+path, nil)
	if err != nil {
		return nil, err
	}
	a, err := c.Do(r)
	if err != nil {
		return nil, err
	}
	defer a.Body.Close()
	text, err := io.ReadAll(io.LimitReader(a.Body, 16<<20))
	if err == nil && a.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(text)))
	}
	return text, err
}

// reload tells a running witness; one that is not running reads the files when it
// starts.
func (p *program) reload() int {
	_, err := p.call(http.MethodPost, "/reload")
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		fmt.Fprintf(p.stdout, "pollux-witness is not running on %s: it will know when it is started\n", p.dir)
		return exitOK
	}
	return p.fail(exitEnvironment, "the running pollux-witness could not be told: %v: send it SIGHUP", err)
}

func (p *program) status([]string) int {
	text, err := p.call(http.MethodGet, "/status")
	if err != nil {
		return p.fail(exitEnvironment, "it is not running on %s, or this user may not ask: %v", p.dir, err)
	}
	if p.asJSON {
		_, err := p.stdout.Write(text)
		if err != nil {
			return p.fail(exitEnvironment, "%v", err)
		}
		return exitOK
	}
	var s witness.Status
	if err := json.Unmarshal(text, &s); err != nil {
		return p.fail(exitEnvironment, "it answers with %q", text)
	}
	p.print(s)
	if len(s.Problems) > 0 {
		return exitConfig
	}
	return exitOK
}

func (p *program) print(s witness.Status) {
	fmt.Fprintf(p.stdout, "fingerprint  %s\nrunning      %v\n", s.Fingerprint, (time.Duration(s.UpSeconds) * time.Second))
	for _, problem := range s.Problems {
		fmt.Fprintf(p.stdout, "problem      %s\n", problem)
	}
	if len(s.Clusters) == 0 {
		fmt.Fprintf(p.stdout, "no clusters: pollux-witness add CLUSTER FILE, with ca.pem of one of its nodes\n")
	}
	for _, c := range s.Clusters {
		fmt.Fprintf(p.stdout, "\ncluster %s\n  ca         %s\n", c.Name, c.CA)
		if c.Problem != "" {
			fmt.Fprintf(p.stdout, "  problem    %s\n", c.Problem)
		}
		fmt.Fprintf(p.stdout, "  resources  %d, log %d bytes\n  asked      %d claims (%d refused), %d renewals, %d looks\n  disk       %d flushes, slowest of late %.1f ms\n",
			c.Resources, c.LogBytes, c.Claims, c.Refused, c.Renewals, c.Observes, c.Flushes, c.SlowestMS)
		if len(c.Nodes) == 0 {
			fmt.Fprintf(p.stdout, "  no node has asked since the start\n")
		}
		for _, n := range c.Nodes {
			fmt.Fprintf(p.stdout, "  node       %s, asked last %v ago\n", n.Name, time.Duration(n.SilentSec*float64(time.Second)).Round(100*time.Millisecond))
		}
	}
}
