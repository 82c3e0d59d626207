package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// The resources that are resynced.
const (
	syncVolume    = "resync"
	syncVolumeTLS = "resync-tls"
)

// session is one benchmark under way.
type session struct {
	cfg    Config
	lab    *lab
	pair   *pair
	quorum *quorum
	copy   *copyPair
	report *Report
	began  time.Time
}

// Run measures what cfg asks for. It ends everything it has started, also
// when ctx is cancelled. After an error its directory stays, with the logs.
func Run(ctx context.Context, cfg Config) (report *Report, err error) {
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &session{cfg: cfg, began: time.Now()}
	if s.lab, err = newLab(cfg.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if cerr := s.lab.close(err != nil); cerr != nil {
			err = errors.Join(err, cerr)
		}
		if err != nil {
			s.say("what was made is in %s", s.lab.dir)
		}
	}()
	if cfg.Isolated {
		if err := acknowledgeAtOnce(ctx); err != nil {
			return nil, err
		}
	}
	list := cases(cfg)
	if err := s.prepare(ctx, list); err != nil {
		return nil, err
	}
	s.report = newReport(ctx, cfg, s.lab.dir)
	for round := 1; round <= cfg.Rounds; round++ {
		if err := s.round(ctx, list, round); err != nil {
			return nil, err
		}
	}
	s.say("polluxd at rest for %v", idleTime)
	if s.report.Footprints, err = footprints(ctx, s.pair); err != nil {
		return nil, err
	}
	if err := s.pair.stop(); err != nil {
		return nil, err
	}
	s.report.judge()
	return s.report, nil
}

func (s *session) say(format string, args ...any) {
	fmt.Fprintf(s.cfg.Progress, "%6.1f s  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// resyncs reports whether copies are wanted.
func (s *session) resyncs() bool {
	return s.cfg.Only == nil || s.cfg.Only.MatchString(syncVolume)
}

// volumeName is the resource for a case: its class of I/O, its protocol, and TLS.
func volumeName(c Case) string {
	return ioOf(c.Class) + "-" + strings.ToLower(strings.ReplaceAll(c.Variant, ", ", "-"))
}

func ioOf(c Class) string {
	if c == Direct {
		return "direct"
	}
	return "buffered"
}

// prepare makes all images and starts the pair.
func (s *session) prepare(ctx context.Context, list []Case) error {
	size, syncSize := int64(s.cfg.SizeMiB)*mib, int64(s.cfg.SyncMiB)*mib
	s.pair = &pair{lab: s.lab, bin: s.cfg.Bin}
	s.quorum = &quorum{lab: s.lab, bytes: size}
	s.copy = &copyPair{lab: s.lab, bytes: syncSize}
	for _, c := range list {
		if c.System == Pollux && s.volume(volumeName(c)) == nil {
			s.pair.volumes = append(s.pair.volumes, volume{name: volumeName(c), protocol: c.Variant[0], io: ioOf(c.Class), bytes: size, tls: c.Variant == withTLS})
		}
	}
	if s.resyncs() {
		for _, name := range []string{syncVolume, syncVolumeTLS} {
			s.pair.volumes = append(s.pair.volumes, volume{name: name, protocol: 'C', io: "buffered", bytes: syncSize, tls: name == syncVolumeTLS})
		}
	}
	if len(s.pair.volumes) == 0 {
		return fmt.Errorf("no case of Pollux has a name that %q matches", s.cfg.Only)
	}
	room := 2*s.pair.imageBytes() + 2*size + 2*syncSize
	if err := s.cfg.checkRoom(s.lab.dir, room); err != nil {
		return err
	}
	s.say("writing images, up to %d MiB in %s", room>>20, s.lab.dir)
	if err := s.pair.prepare(ctx); err != nil {
		return err
	}
	if err := s.quorum.prepare(); err != nil {
		return err
	}
	if s.resyncs() {
		if err := s.copy.prepare(); err != nil {
			return err
		}
	}
	s.say("starting two polluxd, first sync of %d volumes", len(s.pair.volumes))
	return s.pair.start(ctx)
}

func (s *session) volume(name string) *volume {
	for i := range s.pair.volumes {
		if s.pair.volumes[i].name == name {
			return &s.pair.volumes[i]
		}
	}
	return nil
}

// round measures every case once. Each round begins at another case, so that
// none always follows the same one.
func (s *session) round(ctx context.Context, list []Case, round int) error {
	for i := range list {
		c := list[(i+(round-1)*len(list)/s.cfg.Rounds)%len(list)]
		r, err := s.measure(ctx, c, round)
		if err != nil {
			return err
		}
		s.report.Runs = append(s.report.Runs, r)
		s.say("round %d of %d  %-36s %8.0f IOPS  p50 %7.1f us", round, s.cfg.Rounds, c, r.IOPS, r.P50)
	}
	if !s.resyncs() {
		return nil
	}
	copies := []func() (Resync, error){
		func() (Resync, error) { return resyncPollux(ctx, s.pair, *s.volume(syncVolume), round) },
		func() (Resync, error) { return resyncPollux(ctx, s.pair, *s.volume(syncVolumeTLS), round) },
		func() (Resync, error) { return s.copy.copy(ctx, round) },
	}
	for i := range copies {
		r, err := copies[(i+round)%len(copies)]()
		if err != nil {
			return err
		}
		s.report.Resyncs = append(s.report.Resyncs, r)
		s.say("round %d of %d  %-36s %8.0f MiB/s", round, s.cfg.Rounds, "resync "+r.System, r.MiBps())
	}
	return nil
}

func (s *session) measure(ctx context.Context, c Case, round int) (r Sample, err error) {
	if err := settle(append(s.pair.images(nil), s.quorum.images()...)); err != nil {
		return r, err
	}
	if c.System == Pollux {
		return fio(ctx, s.cfg, c, s.pair.uri(*s.volume(volumeName(c))), round, s.pair.daemons)
	}
	defer func() { err = errors.Join(err, s.quorum.stop()) }()
	for _, rival := range rivals(c.Class, s.cfg.Isolated) {
		if rival.name != c.Variant {
			continue
		}
		uri, err := s.quorum.start(ctx, rival)
		if err != nil {
			return r, err
		}
		return fio(ctx, s.cfg, c, uri, round, s.quorum.servers)
	}
	return r, fmt.Errorf("%v: no such rival", c)
}
