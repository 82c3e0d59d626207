package bench

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A Resync is one copy of a whole volume to another node, from the order to
// the end of an fdatasync of the target.
type Resync struct {
	Round   int     `json:"round"`
	System  string  `json:"system"` // Pollux, PolluxTLS or Nbdcopy
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
}

// Nbdcopy is the rival in copying: nbdcopy --flush between two nbdkit file
// servers over loopback TCP.
const Nbdcopy = "nbdcopy"

// PolluxTLS is a resync by Pollux over TLS.
const PolluxTLS = "pollux, TLS"

// MiBps is the throughput in MiB/s.
func (r Resync) MiBps() float64 { return float64(r.Bytes) / mib / r.Seconds }

// resyncBar is the least throughput as a multiple of nbdcopy's. Source: the
// project's requirements for speed.
const resyncBar = 0.7

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
func resyncPollux(ctx context.Context, p *pair, v volume, round int) (Resync, error) {
	r := Resync{Round: round, System: Pollux, Bytes: v.bytes}
	if v.tls {
		r.System = PolluxTLS
	}
	source, target := p.image(nodeNames[0], v), p.image(nodeNames[1], v)
	if err := prepareCopy(source, target, v.bytes); err != nil {
		return r, err
	}
	begin := time.Now()
	for _, order := range []string{"invalidate", "wait-sync"} {
		if err := p.adm(ctx, nodeNames[1], order, v.name); err != nil {
			return r, err
		}
	}
	var err error
	r.Seconds, err = endCopy(begin, source, target, v.bytes)
	return r, err
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

func (c *copyPair) copy(ctx context.Context, round int) (r Resync, err error) {
	r = Resync{Round: round, System: Nbdcopy, Bytes: c.bytes}
	source, target := c.images()[0], c.images()[1]
	if err := prepareCopy(source, target, c.bytes); err != nil {
		return r, err
	}
	args := []string{"--flush"}
	for _, image := range c.images() {
		port, err := freePort()
		if err != nil {
			return r, err
		}
		p, err := c.lab.start("nbdkit", "-f", "-i", "127.0.0.1", "-p", fmt.Sprint(port), "file", image)
		if err != nil {
			return r, err
		}
		defer func() {
			if serr := c.lab.stop(p); err == nil {
				err = serr
			}
		}()
		uri := fmt.Sprintf("nbd://127.0.0.1:%d", port)
		if err := c.lab.await(ctx, p, negotiates(uri)); err != nil {
			return r, err
		}
		args = append(args, uri)
	}
	begin := time.Now()
	if _, err := run(ctx, "nbdcopy", args...); err != nil {
		return r, err
	}
	r.Seconds, err = endCopy(begin, source, target, c.bytes)
	return r, err
}
