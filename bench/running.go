package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/pollux-project/pollux/bench/load"
	"github.com/pollux-project/pollux/bench/result"
	"github.com/pollux-project/pollux/conf"
)

// runningExperiment measures what is there already: a resource of this machine
// or any NBD export. It never runs by name, only for Config.Target.
var runningExperiment = experiment{
	name: "running", what: "a running resource or NBD export, see -target",
	run: func(ctx context.Context, s *session) error { return s.running(ctx) },
}

// A running is a target that this program did not make.
type running struct {
	name   string // that Config.DestroyData must repeat before anything is written
	uri    string
	detail string
	bytes  int64
}

// runningRows are the workloads for it; those that write only if its data may
// be destroyed.
func runningRows(cfg Config) (list []result.Workload) {
	if cfg.Custom != nil {
		return []result.Workload{*cfg.Custom}
	}
	buffered := result.ClassBuffered
	for _, depth := range []int{1, 32} {
		list = append(list, workload(result.OpRead, result.PatternRandom, 4096, depth, 1, buffered))
	}
	list = append(list, workload(result.OpRead, result.PatternSequential, mib, 4, 1, buffered))
	if cfg.DestroyData == "" {
		return list
	}
	for _, depth := range []int{1, 4, 16, 32, 128} {
		list = append(list, workload(result.OpWrite, result.PatternRandom, 4096, depth, 1, buffered))
	}
	for _, depth := range []int{1, 16} {
		list = append(list, workload(result.OpWrite, result.PatternRandom, 4096, depth, 1, result.ClassFlush))
	}
	return append(list, workload(result.OpWrite, result.PatternSequential, mib, 4, 1, buffered))
}

// checkRunning finds the target and refuses one that must not be loaded, before
// anything is done.
func checkRunning(ctx context.Context, cfg Config) (*running, error) {
	t, err := findRunning(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return t, mayLoad(t, runningRows(cfg), cfg.DestroyData)
}

func (s *session) running(ctx context.Context) error {
	t, list := s.target, runningRows(s.cfg)
	bytes := min(t.bytes, int64(s.cfg.SizeMiB)*mib)
	s.cfg.SizeMiB = int(bytes / mib)
	s.out.Settings.SizeBytes = bytes
	s.out.AddTarget(result.Target{Name: t.name, Kind: result.KindPollux, Detail: t.detail})
	s.say("%s: %s, the first %d of its %d MiB", t.name, t.uri, bytes/mib, t.bytes/mib)
	var do []func(context.Context, int) error
	for _, w := range list {
		do = append(do, func(ctx context.Context, round int) error {
			sample, err := s.sample(ctx, w, t.uri, round, nil)
			if err == nil {
				sample.OthersCPUs = 0 // the target's servers are among them
				s.keep(w, t.name, sample)
			}
			return err
		})
	}
	return s.inTurn(ctx, s.cfg.Rounds, do...)
}

// mayLoad refuses what would destroy data that nobody gave up by name.
func mayLoad(t *running, list []result.Workload, destroyData string) error {
	if destroyData != "" && destroyData != t.name {
		return fmt.Errorf("target %s: -destroy-data names %s: nothing was read or written; name the same resource twice, or leave -destroy-data out to read only", t.name, destroyData)
	}
	for _, w := range list {
		if w.Op != result.OpRead && destroyData == "" {
			return fmt.Errorf("target %s: workload %s writes: it would destroy what the resource holds; add -destroy-data %s if nobody needs that any more", t.name, w.Name, t.name)
		}
	}
	if t.bytes < 16*mib {
		return fmt.Errorf("target %s: it has %d bytes: at least 16 MiB are needed", t.name, t.bytes)
	}
	return nil
}

// findRunning finds an NBD URI's export, or a resource by asking its polluxd.
func findRunning(ctx context.Context, cfg Config) (*running, error) {
	if strings.Contains(cfg.Target, "://") {
		a, err := load.ParseURI(cfg.Target)
		if err != nil {
			return nil, err
		}
		info, err := load.Probe(ctx, cfg.Target)
		if err != nil {
			return nil, fmt.Errorf("target %s: %w", cfg.Target, err)
		}
		name := a.Export
		if name == "" {
			name = cfg.Target // the default export has no name to repeat
		}
		return &running{name: name, uri: cfg.Target, detail: "NBD export at " + a.Host, bytes: int64(info.Size)}, nil
	}
	settings, err := conf.LoadDaemon(cfg.Settings)
	if err != nil {
		return nil, fmt.Errorf("target %s: %w: say with -config where polluxd's pollux.toml is", cfg.Target, err)
	}
	text, err := run(ctx, filepath.Join(cfg.Bin, "polluxadm"), "--config", cfg.Settings, "status", "--json", cfg.Target)
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", cfg.Target, err)
	}
	return ofStatus(cfg.Target, settings.NBD.Socket, text)
}

// statusJSON is the part of `polluxadm status --json` that counts.
type statusJSON []struct {
	Name    string `json:"name"`
	Role    string `json:"role"`
	Devices []struct {
		Volume      int    `json:"volume"`
		DiskState   string `json:"disk-state"`
		Open        bool   `json:"open"`
		SizeKiB     int64  `json:"size"`
		Export      string `json:"pollux-export"`
		BlockDevice string `json:"pollux-block-device"`
	} `json:"devices"`
	Connections []struct {
		State    string `json:"connection-state"`
		Protocol string `json:"pollux-protocol"`
	} `json:"connections"`
}

// errRunning wraps the reasons why a resource is not loaded.
var errRunning = errors.New("it is not measured")

// ofStatus reads a resource's state and refuses one that is not ours alone.
// name is RES, or RES/VOLUME of one with several volumes.
func ofStatus(name, socket, text string) (*running, error) {
	refuse := func(format string, args ...any) (*running, error) {
		return nil, fmt.Errorf("target %s: %w: %s", name, errRunning, fmt.Sprintf(format, args...))
	}
	var all statusJSON
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return nil, fmt.Errorf("target %s: status: %w", name, err)
	}
	if len(all) != 1 {
		return refuse("%d resources go by this name; name one", len(all))
	}
	r := all[0]
	if r.Role != "Primary" {
		return refuse("it is %s: run `polluxadm primary %s` on the node that is to be measured", r.Role, r.Name)
	}
	_, volume, oneOfMany := strings.Cut(name, "/")
	for _, d := range r.Devices {
		if oneOfMany && strconv.Itoa(d.Volume) != volume || !oneOfMany && len(r.Devices) > 1 {
			continue
		}
		switch {
		case d.BlockDevice != "":
			return refuse("its volume %d is attached as %s: unmount it and run `polluxadm secondary %s`, then primary without attach-device", d.Volume, d.BlockDevice, r.Name)
		case d.Open:
			return refuse("its volume %d is open by somebody else: end its clients first", d.Volume)
		case d.Export == "":
			return refuse("its volume %d is not exported", d.Volume)
		}
		detail := "resource " + r.Name + ", disk " + d.DiskState
		for _, c := range r.Connections {
			detail += ", peer " + c.State
			if c.Protocol != "" {
				detail += ", protocol " + c.Protocol
			}
		}
		return &running{name: name, uri: unixURI(socket, d.Export), detail: detail, bytes: d.SizeKiB << 10}, nil
	}
	return refuse("it has %d volumes: name one, as %s/0", len(r.Devices), r.Name)
}
