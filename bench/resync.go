package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/bench/result"
)

// resyncExperiment compares a resync of a whole volume with nbdcopy --flush
// between two nbdkit file servers over loopback TCP, from the order to the end
// of an fdatasync of the target.
var resyncExperiment = experiment{
	name: "resync", what: "resync of a whole volume beside nbdcopy between two nbdkit servers", standard: true,
	run: func(ctx context.Context, s *session) error { return s.resync(ctx) },
}

// Targets of copies.
const (
	targetNbdcopy   = "nbdcopy"
	targetPollux    = "pollux-c"
	targetPolluxTLS = "pollux-c-tls"
)

// resyncBar is the least throughput as a multiple of nbdcopy's. Source: the
// project's requirements for speed.
const resyncBar = 0.9

func (s *session) resync(ctx context.Context) error {
	size := int64(s.cfg.SyncMiB) * mib
	nbdcopy := result.Target{Name: targetNbdcopy, Kind: result.KindCopy, Detail: "nbdcopy --flush between two nbdkit file servers over loopback TCP", Skipped: lacking("nbdcopy", "nbdkit")}
	if err := checkRoom(s.lab.dir, 6*size); err != nil {
		return err
	}
	s.out.AddTarget(result.Target{Name: targetPollux, Kind: result.KindPollux, Protocol: "C", Detail: "Pollux, protocol C"})
	s.out.AddTarget(result.Target{Name: targetPolluxTLS, Kind: result.KindPollux, Protocol: "C", Detail: "Pollux, protocol C, TLS"})
	s.out.AddTarget(nbdcopy)
	plain := volume{name: "resync", protocol: 'C', io: "buffered", bytes: size}
	secret := volume{name: "resync-tls", protocol: 'C', io: "buffered", bytes: size, tls: true}
	p, c := s.pair("pair", plain, secret), &copyPair{lab: s.lab, bytes: size}
	s.say("writing images of %d MiB", 6*s.cfg.SyncMiB)
	if err := errors.Join(p.prepare(ctx), c.prepare()); err != nil {
		return err
	}
	if err := p.start(ctx); err != nil {
		return err
	}
	rate := map[string][]float64{}
	add := func(target string, copy func(context.Context) (float64, error)) func(context.Context, int) error {
		return func(ctx context.Context, round int) error {
			seconds, err := copy(ctx)
			if err != nil {
				return err
			}
			mibps := float64(size) / mib / seconds
			rate[target] = append(rate[target], mibps)
			s.measure(result.Measure{Name: "resync of a whole volume", Target: target, Round: round, Value: mibps, Unit: "MiB/s"})
			return nil
		}
	}
	do := []func(context.Context, int) error{
		add(targetPollux, func(ctx context.Context) (float64, error) { return resyncPollux(ctx, p, plain) }),
		add(targetPolluxTLS, func(ctx context.Context) (float64, error) { return resyncPollux(ctx, p, secret) }),
	}
	if nbdcopy.Skipped == "" {
		do = append(do, add(targetNbdcopy, c.copy))
	}
	if err := s.inTurn(ctx, s.cfg.Rounds, do...); err != nil || nbdcopy.Skipped != "" {
		return errors.Join(err, p.stop())
	}
	ours, theirs := result.Median(rate[targetPollux]), result.Median(rate[targetNbdcopy])
	s.bar(ours/theirs >= resyncBar, ours/theirs, "resync of a whole volume", fmt.Sprintf(">= %.1f x nbdcopy", resyncBar),
		"%.2f x: %.0f MiB/s to %.0f MiB/s", ours/theirs, ours, theirs)
	return p.stop()
}

// prepareCopy brings source and target into the state in which each copy
// begins: the source cached, the target not, and known to differ.
func prepareCopy(source, target string, size int64) error {
	if err := spoil(target, size); err != nil {
		return err
	}
	if err := settle([]string{target}); err != nil {
		return err
	}
	return warm(source)
}

// endCopy makes the target durable and looks whether it was copied at all.
func endCopy(begin time.Time, source, target string, size int64) (seconds float64, err error) {
	if err := eachImage([]string{target}, func(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }); err != nil {
		return 0, err
	}
	seconds = time.Since(begin).Seconds()
	return seconds, isCopied(source, target, size)
}

// resyncPollux has the second node's copy of v invalidated and made anew.
func resyncPollux(ctx context.Context, p *pair, v volume) (seconds float64, err error) {
	source, target := p.image(nodeNames[0], v), p.image(nodeNames[1], v)
	if err := prepareCopy(source, target, v.bytes); err != nil {
		return 0, err
	}
	begin := time.Now()
	for _, order := range []string{"invalidate", "wait-sync"} {
		if err := p.adm(ctx, nodeNames[1], order, v.name); err != nil {
			return 0, err
		}
	}
	return endCopy(begin, source, target, v.bytes)
}

// copyPair is nbdkit's source and target.
type copyPair struct {
	lab   *lab
	bytes int64
}

func (c *copyPair) images() []string {
	return []string{c.lab.path("source.raw"), c.lab.path("target.raw")}
}

func (c *copyPair) prepare() error {
	for _, path := range c.images() {
		if err := makeImage(path, c.bytes, 0); err != nil {
			return err
		}
	}
	return nil
}

func (c *copyPair) copy(ctx context.Context) (seconds float64, err error) {
	source, target := c.images()[0], c.images()[1]
	if err := prepareCopy(source, target, c.bytes); err != nil {
		return 0, err
	}
	args := []string{"--flush"}
	for _, image := range c.images() {
		port, err := c.lab.nextPort()
		if err != nil {
			return 0, err
		}
		p, err := c.lab.start("nbdkit", "-f", "-i", "127.0.0.1", "-p", fmt.Sprint(port), "file", image)
		if err != nil {
			return 0, err
		}
		defer func() {
			if serr := c.lab.stop(p); err == nil {
				err = serr
			}
		}()
		uri := fmt.Sprintf("nbd://127.0.0.1:%d", port)
		if err := c.lab.await(ctx, p, negotiates(uri)); err != nil {
			return 0, err
		}
		args = append(args, uri)
	}
	begin := time.Now()
	if _, err := run(ctx, "nbdcopy", args...); err != nil {
		return 0, err
	}
	return endCopy(begin, source, target, c.bytes)
}
