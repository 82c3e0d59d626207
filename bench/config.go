package bench

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/bench/load"
	"github.com/pollux-project/pollux/bench/result"
)

// Config says what to measure. Zero values of numbers mean the defaults.
type Config struct {
	Bin           string           // directory of polluxd and polluxadm
	Dir           string           // images go below it, on the disk to be measured; "" = the system's directory for temporary files
	Rounds        int              // over all targets; default 5
	Seconds       float64          // of one sample; default 1.2
	Warmup        float64          // seconds before each sample that don't count; default 0.25
	SizeMiB       int              // of each volume that is written to; default 256
	SyncMiB       int              // of the volume that is resynced; default 1024
	Only          *regexp.Regexp   // of the names of experiments; nil = all that are standard
	Guests        bool             // the experiment with the kernel's DRBD and md in guests as well
	Count         int64            // requests in a sample, instead of Seconds; 0 = by Seconds
	Custom        *result.Workload // instead of the rows of the suite; nil = those
	Target        string           // a running resource or an NBD URI to measure, and nothing else; "" = pairs of our own
	DestroyData   string           // the target's name once more: it may be written to
	Settings      string           // pollux.toml of the polluxd that has Target
	Quick         bool             // the rows with bars only, and short ones: about 3 minutes
	Isolated      bool             // this process is in a namespace that Isolate made
	DelayMicros   float64          // on each way between the nodes; 0 = none
	BandwidthMbit float64          // between the nodes; 0 = not limited
	Progress      io.Writer        // one line a run
}

// Defaults of our own: long enough to settle, short enough for a coffee.
const (
	defaultRounds  = 5
	defaultSeconds = 1.2
	defaultWarmup  = 0.25
	defaultSizeMiB = 256
	defaultSyncMiB = 1024
)

// metaRoom is what a Pollux image has besides its data, in bytes: activity
// log, bitmap and superblock of internal metadata for up to 16 GiB.
const metaRoom = 1 << 20

// The defaults of a quick run.
const (
	quickRounds  = 3
	quickSeconds = 0.4
	quickWarmup  = 0.1
	quickSizeMiB = 128
	quickSyncMiB = 256
)

func (c *Config) setDefaults() {
	rounds, size, sync, seconds, warmup := defaultRounds, defaultSizeMiB, defaultSyncMiB, defaultSeconds, defaultWarmup
	if c.Quick {
		rounds, size, sync, seconds, warmup = quickRounds, quickSizeMiB, quickSyncMiB, quickSeconds, quickWarmup
	}
	for _, d := range []struct {
		field *int
		value int
	}{{&c.Rounds, rounds}, {&c.SizeMiB, size}, {&c.SyncMiB, sync}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if c.Seconds == 0 {
		c.Seconds = seconds
	}
	if c.Warmup == 0 {
		c.Warmup = warmup
	}
	if c.Progress == nil {
		c.Progress = io.Discard
	}
}

// Validate reports what would make the measurement fail or mean nothing.
func (c Config) Validate() error {
	c.setDefaults()
	var errs []error
	if c.Rounds < 1 || c.Seconds < 0.1 || c.Warmup < 0 {
		errs = append(errs, fmt.Errorf("%d rounds, samples of %g s after %g s of warm-up: at least 1 round, 0.1 s and 0 s are needed", c.Rounds, c.Seconds, c.Warmup))
	}
	if c.SizeMiB < 16 || c.SyncMiB < 16 || c.SizeMiB > 8192 || c.SyncMiB > 8192 {
		errs = append(errs, fmt.Errorf("volumes of %d and %d MiB: 16 to 8192 are possible", c.SizeMiB, c.SyncMiB))
	}
	if c.Count < 0 {
		errs = append(errs, fmt.Errorf("%d requests in a sample: 1 or more are possible", c.Count))
	}
	if c.DestroyData != "" && c.Target == "" {
		errs = append(errs, fmt.Errorf("-destroy-data %s: there is no -target %s", c.DestroyData, c.DestroyData))
	}
	if c.Custom != nil {
		spec := load.Spec{Workload: *c.Custom, SizeBytes: int64(c.SizeMiB) * mib, Count: 1}
		if err := spec.Validate(); err != nil {
			errs = append(errs, err)
		}
	}
	if c.DelayMicros < 0 || c.BandwidthMbit < 0 || c.DelayMicros > 1e6 || c.BandwidthMbit > 0 && c.BandwidthMbit < 1 {
		errs = append(errs, fmt.Errorf("a delay of %g us and %g Mbit/s between the nodes: 0 to 1 s and 1 Mbit/s or more are possible", c.DelayMicros, c.BandwidthMbit))
	}
	for _, program := range []string{"polluxd", "polluxadm"} {
		if _, err := os.Stat(filepath.Join(c.Bin, program)); err != nil {
			errs = append(errs, fmt.Errorf("%w: run `make build`", err))
		}
	}
	return errors.Join(errs...)
}

// checkRoom reports whether dir has the space for all images.
func checkRoom(dir string, images int64) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return fmt.Errorf("free space of %s: %w", dir, err)
	}
	if free := int64(s.Bavail) * s.Bsize; free < images+images/10 {
		return fmt.Errorf("%s has %d MiB free, the images take %d MiB: choose another -dir or smaller -size and -sync-size", dir, free>>20, images>>20)
	}
	return nil
}
