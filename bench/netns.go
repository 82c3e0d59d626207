package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// Isolate starts this program again, with args, in a network namespace of its
// own; it returns only if that can't be done. An ordinary user gets a user
// namespace as well, in which it is root over nothing but the network.
func Isolate(args []string) error {
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	how := []string{unshare, "--net"}
	if os.Geteuid() != 0 {
		how = append(how, "--user", "--map-root-user")
	}
	// A trial first: after Exec there is nobody left to fall back.
	var said bytes.Buffer
	trial := exec.Command(how[0], append(how[1:], "ip", "link", "set", "lo", "up")...)
	trial.Stderr = &said
	if err := trial.Run(); err != nil {
		return fmt.Errorf("network namespace: %w: %s", err, strings.TrimSpace(said.String()))
	}
	argv := append(how, "--", self)
	return fmt.Errorf("start %s: %w", unshare, syscall.Exec(unshare, append(argv, args...), os.Environ()))
}

// acknowledgeAtOnce brings the namespace's loopback up and turns delayed TCP
// acknowledgements off on it (see the package comment).
func acknowledgeAtOnce(ctx context.Context) error {
	for _, line := range []string{
		"link set lo up",
		"route replace table local local 127.0.0.1 dev lo proto kernel scope host src 127.0.0.1 quickack 1",
	} {
		if out, err := exec.CommandContext(ctx, "ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", line, err, bytes.TrimSpace(out))
		}
	}
	return nil
}
