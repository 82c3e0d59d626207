package bench

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/pollux-project/pollux/bench/result"
)

// rates are the throughputs of copies by target, MiB/s, one a round.
type rates struct {
	s    *session
	name string // of the measure
	of   map[string][]float64
}

func (s *session) rates(name string) *rates { return &rates{s, name, map[string][]float64{}} }

// add is a turn (see session.inTurn) that moves so many bytes; move returns the
// seconds that it took.
func (r *rates) add(target string, bytes int64, move func(context.Context) (float64, error)) func(context.Context, int) error {
	return func(ctx context.Context, round int) error {
		seconds, err := move(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", target, err)
		}
		mibps := float64(bytes) / mib / seconds
		r.of[target] = append(r.of[target], mibps)
		r.s.measure(result.Measure{Name: r.name, Target: target, Round: round, Value: mibps, Unit: "MiB/s"})
		return nil
	}
}

func (r *rates) median(target string) float64 { return result.Median(r.of[target]) }

// ratio is the median over the rounds of what target did beside the rival of its round.
func (r *rates) ratio(target, rival string) float64 {
	var all []float64
	for i, x := range r.of[target] {
		all = append(all, x/r.of[rival][i])
	}
	return result.Median(all)
}

// bar demands least times the rival's throughput.
func (r *rates) bar(target, rival, want string, least float64) {
	ratio := r.ratio(target, rival)
	r.s.bar(ratio >= least, ratio, r.name, want, "%.2f x: %.0f MiB/s to %.0f MiB/s", ratio, r.median(target), r.median(rival))
}

// nbdkit starts an nbdkit server for one measurement; stop ends it. On a unix
// socket if socket is not "", else on loopback TCP.
func (s *session) nbdkit(ctx context.Context, socket string, plugin ...string) (uri string, stop func() error, err error) {
	args := []string{"-f", "-U", socket}
	uri = unixURI(socket, "")
	if socket != "" {
		if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", nil, err // nbdkit leaves it behind
		}
	} else {
		port, err := s.lab.nextPort()
		if err != nil {
			return "", nil, err
		}
		args = []string{"-f", "-i", "127.0.0.1", "-p", fmt.Sprint(port)}
		uri = fmt.Sprintf("nbd://127.0.0.1:%d", port)
	}
	p, err := s.lab.start("nbdkit", append(args, plugin...)...)
	if err != nil {
		return "", nil, err
	}
	if err := s.lab.await(ctx, p, negotiates(uri)); err != nil {
		return "", nil, errors.Join(err, s.lab.stop(p))
	}
	return uri, func() error { return s.lab.stop(p) }, nil
}
