package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/blockdev/attach"
	"github.com/pollux-project/pollux/blockdev/export"
	"github.com/pollux-project/pollux/cmd/internal/service"
	"github.com/pollux-project/pollux/conf"
)

// Exit statuses of polluxd.
const (
	exitOK          = 0
	exitUsage       = 1
	exitConfig      = 10
	exitEnvironment = 20
)

// Main is polluxd with the arguments args, the program's name not among them.
// It returns the exit status: 0 after a clean stop, 1 usage, 10 wrong
// configuration, 20 what it needs of the machine can't be had.
func Main(args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("polluxd", flag.ContinueOnError)
	fs.SetOutput(stderr)
	config := fs.String("config", "", "read this pollux.toml (default: $POLLUX_CONFIG or "+conf.DefaultDaemonFile+")")
	check := fs.Bool("check", false, "only read the configuration, and say what is wrong with it")
	version := fs.Bool("version", false, "print the version and end")
	fs.Usage = func() {
		fmt.Fprint(stderr, "polluxd holds this node's replicated disks. It runs in the foreground until SIGTERM;\n"+
			"SIGHUP reads the configuration again. polluxadm controls it.\n\nusage: polluxd [--config FILE]\n")
		fs.PrintDefaults()
	}
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil || fs.NArg() > 0:
		if err == nil {
			fmt.Fprintf(stderr, "polluxd: unexpected argument %q\n", fs.Arg(0))
		}
		return exitUsage
	case *version:
		fmt.Fprintf(stdout, "polluxd %s\n", service.Version)
		return exitOK
	}
	path, named, err := service.SettingsPath(*config)
	if err != nil {
		fmt.Fprintf(stderr, "polluxd: %v\n", err)
		return exitEnvironment
	}
	flusherErr := error(nil)
	if !*check {
		unix.Umask(0o077)             // state files and sockets are the owner's alone
		flusherErr = prepareThreads() // restarts the program if it can
	}
	loaded, err := load(path, named)
	if err != nil {
		fmt.Fprintf(stderr, "%v\n", err)
		return exitConfig
	}
	if *check {
		fmt.Fprintf(stdout, "%d resources\n", len(loaded.specs))
		return exitOK
	}
	log, err := service.NewLogger(stderr, loaded.settings.Log.Level, loaded.settings.Log.Format)
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", path, err)
		return exitConfig
	}
	if flusherErr != nil {
		log.Warn().Err(flusherErr).Msg("under memory pressure the kernel may wait for polluxd while polluxd waits for memory")
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, loaded, log, hooks{reload: hup, protect: true}); err != nil {
		log.Error().Err(err).Msg("polluxd could not start")
		return exitEnvironment
	}
	return exitOK
}

// Options are for programs that run a daemon inside themselves, tests above all.
type Options struct {
	Settings string    // path of pollux.toml
	Log      io.Writer // nil: discarded
	Ready    func()    // called when everything is started
}

// Run runs a daemon until ctx is done, then stops it cleanly. It leaves the
// process as it is: no locked memory, no changed limits, no signals.
func Run(ctx context.Context, o Options) error {
	path, err := filepath.Abs(o.Settings)
	if err != nil {
		return err
	}
	loaded, err := load(path, true)
	if err != nil {
		return err
	}
	log := zerolog.Nop()
	if o.Log != nil {
		if log, err = service.NewLogger(o.Log, loaded.settings.Log.Level, loaded.settings.Log.Format); err != nil {
			return err
		}
	}
	return run(ctx, loaded, log, hooks{ready: o.Ready})
}

// hooks are what differs between the program and a daemon within another.
type hooks struct {
	reload  <-chan os.Signal
	protect bool   // lock memory and so on; tell systemd
	ready   func() // may be nil
	// engines and attacher replace the real ones in tests.
	engines  func(spec resourceSpec, log zerolog.Logger) (engineAPI, error)
	attacher attach.Attacher
}

func run(ctx context.Context, l *loadedConfig, log zerolog.Logger, h hooks) error {
	boot, err := service.BootID()
	if err != nil {
		return err
	}
	d := &Daemon{
		log: log, pid: os.Getpid(), bootID: boot, settings: l.settings, files: l.files, resources: map[string]*resource{},
		nbd: export.New(export.Config{Log: log}), newEngine: h.engines,
	}
	d.guard = leaseGuard{d: d, since: map[string]time.Time{}}
	if d.newEngine == nil {
		d.newEngine = d.realEngine
	}
	if d.devices, err = newDeviceMaker(l.settings); err != nil {
		return err
	}
	if h.attacher != nil {
		d.devices.attacher = h.attacher
	}
	for _, w := range l.warnings {
		log.Warn().Msg(w)
	}
	for _, spec := range l.specs {
		d.resources[spec.Name] = newResource(d, spec)
	}
	tuneMemory(0, 0)
	tuneScheduler()
	log.Info().Str("version", service.Version).Str("node", l.settings.NodeName).Int("pid", d.pid).Str("boot", boot).
		Int("resources", len(l.specs)).Msg("polluxd starts")
	stop, err := startAll(d.components(l.settings), log)
	if err != nil {
		return err
	}
	if h.protect {
		protectProcess(log)
		d.notify(sd.SdNotifyReady + "\nSTATUS=" + d.summary())
		go d.feedWatchdog(ctx)
	}
	log.Info().Msg("polluxd is ready: " + d.summary())
	if h.ready != nil {
		h.ready()
	}
	d.wait(ctx, h)
	log.Info().Msg("polluxd stops")
	if h.protect {
		d.notify(sd.SdNotifyStopping)
	}
	stop()
	log.Info().Msg("polluxd has stopped")
	return nil
}

// wait serves SIGHUP until the daemon is to end.
func (d *Daemon) wait(ctx context.Context, h hooks) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.reload:
			d.notify(sd.SdNotifyReloading + "\nMONOTONIC_USEC=" + service.MonotonicMicros())
			if err := d.reload(); err != nil {
				d.log.Error().Err(err).Msg("reload failed: the old configuration stays in force")
			}
			d.notify(sd.SdNotifyReady + "\nSTATUS=" + d.summary())
		}
	}
}

func (d *Daemon) notify(state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		d.log.Warn().Err(err).Msg("systemd could not be told")
	}
}

// feedWatchdog tells systemd at half its interval that this process works:
// that every resource still answers. If one does not (its lock is stuck, its
// disk hangs it) the watchdog ends this process; metadata is right at any moment.
func (d *Daemon) feedWatchdog(ctx context.Context) {
	interval, err := sd.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		if err != nil {
			d.log.Warn().Err(err).Msg("systemd watchdog")
		}
		return
	}
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	alive := make(chan struct{}, 1)
	asking := false
	for {
		if !asking {
			asking = true
			go func() {
				for _, r := range d.sorted() {
					r.status()
				}
				alive <- struct{}{}
			}()
		}
		select {
		case <-ctx.Done():
			return
		case <-alive:
			asking = false
			d.notify(sd.SdNotifyWatchdog + "\nSTATUS=" + d.summary())
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}
}
