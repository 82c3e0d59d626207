package hatestbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// How long things may take before a round has failed: generous, the bars are
// compared with what was measured.
const (
	outcomeLimit = 60 * time.Second
	settleLimit  = 120 * time.Second
	controlLimit = 30 * time.Second // without the check of terms it may never be well again
)

// Kinds of a run.
const (
	Mixed   = ""        // all kinds of faults in turns
	Short   = "short"   // one round of each kind that is marked so
	Speed   = "speed"   // what has a promised speed, many times
	Control = "control" // polluxd lacks the check of terms: each job has to see harm, and ends with it
)

// Config says what to do.
type Config struct {
	Bin     string // directory of the programs
	Guest   string // directory of vmlinuz and initramfs.cpio (scripts/demo/build-guest)
	Dir     string // work directory; must not exist
	Kind    string
	Rounds  int // with each arbiter; with Speed of each promise
	Seed    uint64
	Arbiter Arbiter // "": all that the kind has
	Only    string  // faults whose name contains this; "": all
	Beside  int     // so many racks at the same time
	Out     io.Writer
}

// Validate says what is wrong.
func (cfg *Config) Validate() error {
	switch {
	case cfg.Rounds < 1:
		return fmt.Errorf("%d rounds: at least one is wanted", cfg.Rounds)
	case cfg.Beside < 1 || cfg.Beside > 10:
		return fmt.Errorf("%d racks beside one another: 1 to 10 are possible", cfg.Beside)
	case !slices.Contains([]Arbiter{"", ArbiterEtcd, ArbiterWitness, ArbiterFence}, cfg.Arbiter):
		return fmt.Errorf("arbiter %q: %s, %s or %s is wanted", cfg.Arbiter, ArbiterEtcd, ArbiterWitness, ArbiterFence)
	case len(cfg.jobs()) == 0:
		return fmt.Errorf("no round of kind %q fits: arbiter %q, faults with %q in their name", cfg.Kind, cfg.Arbiter, cfg.Only)
	}
	return nil
}

// A job is some rounds on a rack of their own, one after the other.
type job struct {
	arbiter Arbiter
	list    []fault
}

// jobs are what is to be done, by the seed.
func (cfg *Config) jobs() (jobs []job) {
	random := rand.New(rand.NewPCG(cfg.Seed, 0)) //nolint:gosec // a seed is to repeat the rounds
	switch cfg.Kind {
	case Control:
		for _, f := range faults() {
			if f.blind != "" {
				jobs = append(jobs, job{f.blind, []fault{f, f}})
			}
		}
	case Speed:
		jobs = speedJobs(random, cfg.Rounds)
	default:
		for _, a := range []Arbiter{ArbiterEtcd, ArbiterWitness} {
			list := draw(random, cfg.Only, a, cfg.Rounds)
			if cfg.Kind == Short {
				list = short(random, a)
			}
			jobs = append(jobs, job{a, list})
		}
	}
	for i := range jobs {
		jobs[i].list = slices.DeleteFunc(jobs[i].list, func(f fault) bool { return !strings.Contains(f.name, cfg.Only) })
	}
	return slices.DeleteFunc(jobs, func(j job) bool { return len(j.list) == 0 || cfg.Arbiter != "" && j.arbiter != cfg.Arbiter })
}

// draw mixes the kinds: each comes once before any comes twice.
func draw(random *rand.Rand, only string, arbiter Arbiter, rounds int) (list []fault) {
	kinds := slices.DeleteFunc(faults(), func(f fault) bool {
		return f.only != "" && f.only != arbiter || !strings.Contains(f.name, only)
	})
	for len(list) < rounds && len(kinds) > 0 {
		random.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
		list = append(list, kinds...)
	}
	return list[:min(rounds, len(list))]
}

// short are the kinds of the short form.
func short(random *rand.Rand, arbiter Arbiter) []fault {
	list := slices.DeleteFunc(faults(), func(f fault) bool { return f.short != arbiter })
	random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// speedJobs are the promises, each so many times: takeovers with etcd, half of them
// from the host that leads it, takeovers after a fence, and with the witness planned
// moves and I/O alone.
func speedJobs(random *rand.Rand, rounds int) []job {
	kind := func(name string, before act) fault {
		all := faults()
		f := all[slices.IndexFunc(all, func(f fault) bool { return f.name == name })]
		f.before = before
		return f
	}
	var etcd, fence, witness []fault
	for i := range rounds {
		lead := (*Site).LeaderToWitness
		if i%2 == 1 {
			lead = (*Site).LeaderToPrimary
		}
		etcd = append(etcd, kind(killPrimary, lead))
		fence = append(fence, kind(killPrimary, nil))
		witness = append(witness, kind("planned move", nil), kind("secondary host loses power", nil))
	}
	random.Shuffle(len(etcd), func(i, j int) { etcd[i], etcd[j] = etcd[j], etcd[i] })
	return []job{{ArbiterEtcd, etcd}, {ArbiterFence, fence}, {ArbiterWitness, witness}}
}

// Run does all rounds and prints each. The report is whole if err is nil; what
// was found wrong is in its Faults.
func Run(ctx context.Context, cfg Config) (rep *Report, err error) {
	rep = &Report{Config: cfg, Started: time.Now()}
	defer func() { rep.Ended = time.Now() }()
	jobs := cfg.jobs()
	if err := cfg.check(jobs); err != nil {
		return rep, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(jobs))
	free := make(chan struct{}, cfg.Beside)
	var running sync.WaitGroup
	for i, j := range jobs {
		free <- struct{}{}
		running.Go(func() {
			defer func() { <-free }()
			dir := filepath.Join(cfg.Dir, fmt.Sprintf("%d-%s", i, j.arbiter))
			harm, err := runJob(ctx, cfg, j, dir, i, rep)
			if err == nil {
				return
			}
			errs[i] = fmt.Errorf("with arbiter %s (%s): %w", j.arbiter, dir, err)
			// The control breaks what it can: the other jobs go on.
			if cfg.Kind != Control {
				cancel()
			} else if harm > 0 {
				errs[i] = nil
			}
		})
	}
	running.Wait()
	return rep, errors.Join(errs...)
}

// check looks for what the rounds need.
func (cfg *Config) check(jobs []job) error {
	files := []string{
		filepath.Join(cfg.Bin, "polluxd"), filepath.Join(cfg.Bin, "polluxha"), filepath.Join(cfg.Bin, "polluxadm"),
		filepath.Join(cfg.Guest, "vmlinuz"), filepath.Join(cfg.Guest, "initramfs.cpio"),
	}
	if slices.ContainsFunc(jobs, func(j job) bool { return j.arbiter == ArbiterWitness }) {
		files = append(files, filepath.Join(cfg.Bin, "pollux-witness"))
	}
	for _, file := range files {
		if _, err := os.Stat(file); err != nil {
			return fmt.Errorf("%w; 'make ha' makes it", err)
		}
	}
	return nil
}

// runJob does its rounds, on a rack of its own, and tells how much harm they saw.
func runJob(ctx context.Context, cfg Config, j job, dir string, number int, rep *Report) (harm int, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	rep.say("arbiter %s: two data nodes, a machine with a client; %d rounds, seed %d\n", j.arbiter, len(j.list), cfg.Seed)
	s, err := NewSite(ctx, cfg.Bin, cfg.Guest, dir, j.arbiter, number)
	if err != nil {
		return 0, err
	}
	defer func() {
		rep.count(len(s.Customer.Acked(time.Time{})) + len(s.consoleAcks()))
		err = errors.Join(err, s.Close())
	}()
	if err := s.BringUp(ctx); err != nil {
		return 0, err
	}
	if err := s.Hosts[0].order(ctx, adm.HARequest{Cmd: adm.HAVMStart, VM: vmName}, nil); err != nil {
		return 0, err
	}
	if err := s.settled(ctx, s.patience); err != nil {
		return 0, fmt.Errorf("the machine does not come up: %w", err)
	}
	if cfg.Kind == Control {
		s.patience = controlLimit
	}
	for _, f := range j.list {
		if err := s.settled(ctx, s.patience); err != nil {
			return harm, err
		}
		m := s.round(ctx, f)
		if err := ctx.Err(); err != nil {
			return harm, err
		}
		rep.add(m, func(number int) string {
			return s.keepLogs(filepath.Join(cfg.Dir, keptDir, fmt.Sprintf("round-%d", number)), m.Struck)
		})
		if harm += m.Harm; cfg.Kind == Control && harm > 0 {
			return harm, nil
		}
	}
	if err := s.settled(ctx, s.patience); err != nil {
		return harm, err
	}
	return harm, s.finish(ctx, rep)
}

// keptDir has the logs of rounds that were slower than promised, or wrong.
const keptDir = "rounds"

// keepLogs copies all logs of the rack as they are now, with the moment of the fault,
// and returns where, or why not.
func (s *Site) keepLogs(dir string, struck time.Time) string {
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "struck"), []byte(struck.Format("2006-01-02 15:04:05.000\n")), 0o600)
	}
	for _, h := range s.Hosts {
		logs, _ := filepath.Glob(h.path("*.log")) // the pattern is right
		for _, log := range logs {
			b, rerr := os.ReadFile(log)
			if rerr == nil {
				rerr = os.WriteFile(filepath.Join(dir, h.Name+"-"+filepath.Base(log)), b, 0o600)
			}
			err = errors.Join(err, rerr)
		}
	}
	if err != nil {
		return fmt.Sprintf("its logs could not be kept: %v", err)
	}
	return dir
}

// Clear removes what rounds have left in their directory, but for logs that were kept.
func Clear(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	left := false
	for _, e := range entries {
		if e.Name() == keptDir {
			left = true
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	if left {
		return nil
	}
	return os.Remove(dir)
}
