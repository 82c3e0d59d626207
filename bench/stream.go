package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pollux-project/pollux/bench/result"
)

// streamExperiment writes a whole volume in requests of 1 MiB, one after the
// other, and flushes it: to a pair of Pollux under protocol C, and to what its
// throughput is measured by. The client is the same for all, nbdcopy with
// --flush and one connection, and its source a file in the page cache.
//
//   - one copy's disk: nbdkit's file plugin on a unix socket;
//   - loopback TCP: nbdkit's null plugin, which forgets what it gets.
//
// The bar counts from the slower of the two. Where both nodes share a machine a
// pair writes twice as much to the same disk with the same processors; the
// fourth line tells what that costs somebody who does not replicate: two nbdcopy
// to two nbdkit file servers at once. It has no bar.
var streamExperiment = experiment{
	name: "stream", what: "sequential writes of 1 MiB beside one copy's disk and loopback TCP", standard: true,
	run: func(ctx context.Context, s *session) error { return s.stream(ctx) },
}

const (
	targetOneCopy  = "nbdkit-file"
	targetLoopback = "nbdkit-null-tcp"
	targetTwice    = "nbdkit-file-twice"
	targetLimit    = "min(disk, tcp)"
	streamBar      = 0.9 // Source: the project's requirements for speed.
	streamDepth    = 8   // requests in flight
)

func (s *session) stream(ctx context.Context) error {
	size := int64(s.cfg.SyncMiB) * mib
	if err := checkRoom(s.lab.dir, 5*size); err != nil {
		return err
	}
	s.out.AddTarget(result.Target{Name: targetPollux, Kind: result.KindPollux, Protocol: "C", Detail: "Pollux, protocol C"})
	s.out.AddTarget(result.Target{Name: targetOneCopy, Kind: result.KindCopy, Detail: "nbdkit file on a unix socket: one copy's disk"})
	s.out.AddTarget(result.Target{Name: targetLoopback, Kind: result.KindCopy, Detail: "nbdkit null over loopback TCP"})
	s.out.AddTarget(result.Target{Name: targetTwice, Kind: result.KindCopy, Detail: "two nbdkit file servers on unix sockets at once: two copies on this disk, no replication"})
	v := volume{name: "stream", protocol: 'C', io: "buffered", bytes: size}
	p := s.pair("pair", v)
	source, copies := s.lab.path("source.raw"), []string{s.lab.path("one.raw"), s.lab.path("two.raw")}
	s.say("writing images of %d MiB", 5*s.cfg.SyncMiB)
	for _, path := range append(copies, source) {
		if err := makeImage(path, size, 0); err != nil {
			return err
		}
	}
	if err := p.prepare(ctx); err != nil {
		return err
	}
	if err := p.start(ctx); err != nil {
		return err
	}
	// toFiles writes to each of the files by a server of its own, all at once.
	toFiles := func(paths ...string) func(context.Context) (float64, error) {
		return func(ctx context.Context) (float64, error) {
			var uris []string
			for i, path := range paths {
				uri, stop, err := s.nbdkit(ctx, s.lab.path(fmt.Sprintf("%d.sock", i)), "file", path)
				if err != nil {
					return 0, err
				}
				defer stop() //nolint:errcheck // all is flushed
				uris = append(uris, uri)
			}
			return streamTo(ctx, source, size, paths, uris...)
		}
	}
	r := s.rates("sequential writes of 1 MiB, with a flush at the end")
	if err := s.inTurn(ctx, s.cfg.Rounds,
		r.add(targetPollux, size, func(ctx context.Context) (float64, error) {
			return streamTo(ctx, source, size, p.images(&v), p.uri(v))
		}),
		r.add(targetOneCopy, size, toFiles(copies[0])),
		r.add(targetTwice, size, toFiles(copies...)),
		r.add(targetLoopback, size, func(ctx context.Context) (float64, error) {
			uri, stop, err := s.nbdkit(ctx, "", "null", fmt.Sprint(size))
			if err != nil {
				return 0, err
			}
			defer stop() //nolint:errcheck // it keeps nothing
			return streamTo(ctx, source, size, nil, uri)
		}),
	); err != nil {
		return err
	}
	for i, disk := range r.of[targetOneCopy] {
		r.of[targetLimit] = append(r.of[targetLimit], min(disk, r.of[targetLoopback][i]))
	}
	r.bar(targetPollux, targetLimit, fmt.Sprintf(">= %.1f x min(one copy's disk, loopback TCP)", streamBar), streamBar)
	s.note("sequential writes: both copies of a pair are on one disk here; beside two copies that are written at once without replication it has %.2f x", r.ratio(targetPollux, targetTwice))
	return p.stop()
}

// streamTo writes source to all of uris at once, behind which are the images.
func streamTo(ctx context.Context, source string, size int64, images []string, uris ...string) (seconds float64, err error) {
	for _, image := range images {
		if err := spoil(image, size); err != nil {
			return 0, err
		}
	}
	if err := errors.Join(settle(images), warm(source)); err != nil {
		return 0, err
	}
	begin := time.Now()
	ended := make(chan error, len(uris))
	for _, uri := range uris {
		go func() {
			_, err := run(ctx, "nbdcopy", "--flush", "--connections=1", fmt.Sprintf("--requests=%d", streamDepth),
				fmt.Sprintf("--request-size=%d", mib), source, uri)
			ended <- err
		}()
	}
	for range uris {
		err = errors.Join(err, <-ended)
	}
	if err != nil {
		return 0, err
	}
	seconds = time.Since(begin).Seconds()
	for _, image := range images {
		err = errors.Join(err, isCopied(source, image, size))
	}
	return seconds, err
}
