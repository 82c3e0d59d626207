package hatestbed

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
)

// witnessProgram is the arbiter of the second half.
const witnessProgram = "pollux-witness"

// witnessDir is its state, which survives a reboot of its host.
func (h *Host) witnessDir() string { return h.path("witness") }

func (s *Site) startWitness(ctx context.Context, h *Host) error {
	return s.Start(ctx, h, witnessProgram, "run", "--dir", h.witnessDir(), "--listen", fmt.Sprintf("%s:%d", h.Address(Management), witnessPort))
}

// witness runs one of its other commands.
func (s *Site) witness(ctx context.Context, args ...string) (string, error) {
	h := s.Hosts[2]
	cmd := exec.CommandContext(ctx, filepath.Join(s.Bin, witnessProgram), append(args, "--dir", h.witnessDir())...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := h.space.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", witnessProgram, args[0], err, out.String())
	}
	return out.String(), nil
}

var fingerprint = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// arbiterOptions are what "cluster init" is told of the arbiter.
func (s *Site) arbiterOptions(ctx context.Context) (map[string]string, error) {
	if s.Arbiter != ArbiterWitness {
		return nil, nil
	}
	out, err := s.witness(ctx, "status", "--json")
	if err != nil {
		return nil, err
	}
	return map[string]string{
		"address":     fmt.Sprintf("%s:%d", s.Hosts[2].Address(Management), witnessPort),
		"fingerprint": fingerprint.FindString(out),
	}, nil
}

// introduce has the witness answer the cluster, which it knows by its authority.
func (s *Site) introduce(ctx context.Context) error {
	if s.Arbiter != ArbiterWitness {
		return nil
	}
	_, err := s.witness(ctx, "add", clusterName, filepath.Join(s.Hosts[0].path("state"), "cluster", "ca.pem"))
	return err
}
