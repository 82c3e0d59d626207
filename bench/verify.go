package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/pollux-project/pollux/bench/result"
)

// verifyExperiment compares an online verify of a whole volume, whose copies are
// both in the page cache, with two yardsticks:
//
//   - nbdcopy --flush between two nbdkit file servers over loopback TCP with a
//     final fdatasync, as for a resync: how fast the machine moves a volume.
//     That one has a bar. It reads one copy and writes the other, where a
//     verify reads and hashes both.
//   - two nbdcopy at once, each reading one copy over loopback TCP to nowhere:
//     both copies are read, as in a verify, but all bytes move and none is
//     hashed. What it says is whether sending digests pays. It has no bar.
var verifyExperiment = experiment{
	name: "verify", what: "online verify of a whole volume beside nbdcopy", standard: true,
	run: func(ctx context.Context, s *session) error { return s.verify(ctx) },
}

const (
	targetReadBoth = "nbdcopy-null"
	verifyBar      = 0.9 // of nbdcopy's throughput. Source: the project's requirements for speed.
)

func (s *session) verify(ctx context.Context) error {
	size := int64(s.cfg.SyncMiB) * mib
	if err := checkRoom(s.lab.dir, 4*size); err != nil {
		return err
	}
	s.out.AddTarget(result.Target{Name: targetPollux, Kind: result.KindPollux, Protocol: "C", Detail: "Pollux, protocol C"})
	s.out.AddTarget(result.Target{Name: targetNbdcopy, Kind: result.KindCopy, Detail: "nbdcopy --flush between two nbdkit file servers over loopback TCP"})
	s.out.AddTarget(result.Target{Name: targetReadBoth, Kind: result.KindCopy, Detail: "two nbdcopy at once, each of one copy from nbdkit over loopback TCP to nowhere"})
	v := volume{name: "verify", protocol: 'C', io: "buffered", bytes: size}
	p, c := s.pair("pair", v), &copyPair{lab: s.lab, bytes: size}
	p.net = "verify-alg crc32c;"
	s.say("writing images of %d MiB", 4*s.cfg.SyncMiB)
	if err := errors.Join(p.prepare(ctx), c.prepare()); err != nil {
		return err
	}
	if err := p.start(ctx); err != nil {
		return err
	}
	r := s.rates("online verify of a whole volume")
	if err := s.inTurn(ctx, s.cfg.Rounds,
		r.add(targetPollux, size, func(ctx context.Context) (float64, error) { return verifyPollux(ctx, p, v) }),
		r.add(targetNbdcopy, size, c.copy),
		r.add(targetReadBoth, size, func(ctx context.Context) (float64, error) { return s.readBoth(ctx, p, v) }),
	); err != nil {
		return err
	}
	r.bar(targetPollux, targetNbdcopy, fmt.Sprintf(">= %.1f x nbdcopy", verifyBar), verifyBar)
	return errors.Join(provesVerify(ctx, p, v), p.stop())
}

// verifyPollux has the first node compare both copies of v, which must be equal.
func verifyPollux(ctx context.Context, p *pair, v volume) (seconds float64, err error) {
	if err := warm(p.images(&v)...); err != nil {
		return 0, err
	}
	seconds, err = p.verify(ctx, v)
	if err != nil {
		return 0, err
	}
	if bad, err := p.outOfSync(ctx, v); err != nil || bad != 0 {
		return 0, errors.Join(err, fmt.Errorf("verify of equal copies: %d KiB out of sync", bad))
	}
	return seconds, nil
}

// provesVerify spoils the second copy: a verify that finds nothing has compared
// nothing.
func provesVerify(ctx context.Context, p *pair, v volume) error {
	if err := spoil(p.image(nodeNames[1], v), v.bytes); err != nil {
		return err
	}
	if _, err := p.verify(ctx, v); err != nil {
		return err
	}
	want := uint64(len(spots(v.bytes)) * 4)
	if bad, err := p.outOfSync(ctx, v); err != nil || bad != want {
		return errors.Join(err, fmt.Errorf("verify of a copy that was spoilt: %d KiB out of sync, want %d", bad, want))
	}
	return nil
}

// verify waits for the end of an online verify by the node's event stream.
func (p *pair) verify(ctx context.Context, v volume) (seconds float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, admTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(p.bin, "polluxadm"), "--config", p.settings(nodeNames[0]), "events", v.name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer cmd.Wait() //nolint:errcheck // it is killed below
	defer cancel()
	lines := bufio.NewScanner(out)
	until := func(what string) error {
		for lines.Scan() {
			if strings.Contains(lines.Text(), what) {
				return nil
			}
		}
		return errors.Join(fmt.Errorf("the event stream of %s ended before %q", v.name, what), lines.Err(), ctx.Err())
	}
	if err := until("exists -"); err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := p.adm(ctx, nodeNames[0], "verify", v.name); err != nil {
		return 0, err
	}
	if err := errors.Join(until("replication:VerifyS"), until("replication:Established")); err != nil {
		return 0, err
	}
	return time.Since(begin).Seconds(), nil
}

// outOfSync is how much the first node knows to differ, in KiB.
func (p *pair) outOfSync(ctx context.Context, v volume) (uint64, error) {
	d, err := p.peerDevice(ctx, v)
	return d.OutOfSync, err
}

// A peerDevice is what the first node's status says of the second copy.
type peerDevice struct {
	OutOfSync uint64 `json:"out-of-sync"` // KiB
	Sent      uint64 `json:"sent"`        // KiB, writes and resync
}

func (p *pair) peerDevice(ctx context.Context, v volume) (d peerDevice, err error) {
	text, err := run(ctx, filepath.Join(p.bin, "polluxadm"), "--config", p.settings(nodeNames[0]), "status", "--json", v.name)
	if err != nil {
		return d, err
	}
	var status []struct {
		Connections []struct {
			PeerDevices []peerDevice `json:"peer_devices"`
		} `json:"connections"`
	}
	if err := json.NewDecoder(bytes.NewBufferString(text)).Decode(&status); err != nil {
		return d, fmt.Errorf("status of %s: %w", v.name, err)
	}
	if len(status) != 1 || len(status[0].Connections) != 1 || len(status[0].Connections[0].PeerDevices) != 1 {
		return d, fmt.Errorf("status of %s: want one peer device: %s", v.name, text)
	}
	return status[0].Connections[0].PeerDevices[0], nil
}

// readBoth reads both copies of v at once.
func (s *session) readBoth(ctx context.Context, p *pair, v volume) (seconds float64, err error) {
	if err := warm(p.images(&v)...); err != nil {
		return 0, err
	}
	var uris []string
	for _, image := range p.images(&v) {
		uri, stop, err := s.nbdkit(ctx, "", "file", image)
		if err != nil {
			return 0, err
		}
		defer stop() //nolint:errcheck // it has only read
		uris = append(uris, uri)
	}
	begin := time.Now()
	ended := make(chan error, len(uris))
	for _, uri := range uris {
		go func() {
			_, err := run(ctx, "nbdcopy", uri, "null:")
			ended <- err
		}()
	}
	for range uris {
		err = errors.Join(err, <-ended)
	}
	return time.Since(begin).Seconds(), err
}
