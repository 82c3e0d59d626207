package ha

import (
	"context"
	"crypto/rand"
	"encoding/hex"
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

	"github.com/pollux-project/pollux/cmd/internal/service"
	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor/hook"
)

// Exit statuses of polluxha.
const (
	exitOK          = 0
	exitUsage       = 1
	exitConfig      = 10
	exitEnvironment = 20
)

// Main is polluxha with the arguments args, the program's name not among them.
// It returns the exit status: 0 after a clean stop, 1 usage, 10 wrong
// configuration, 20 what it needs of the machine can't be had.
func Main(args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("polluxha", flag.ContinueOnError)
	fs.SetOutput(stderr)
	config := fs.String("config", "", "read this pollux.toml (default: $POLLUX_CONFIG or "+conf.DefaultDaemonFile+")")
	check := fs.Bool("check", false, "only read the cluster's file and the VMs' files, and say what is wrong with them")
	version := fs.Bool("version", false, "print the version and end")
	etcd := fs.Bool("embedded-etcd", false, "run a member of etcd inside this process, as ha.embedded-etcd in pollux.toml says")
	hold := fs.Duration("drill-hold", 0, "used by polluxadm drill: play dead for this long, then start")
	fs.Usage = func() {
		fmt.Fprint(stderr, "polluxha decides which node runs which virtual machine. It runs in the foreground until SIGTERM, which\n"+
			"leaves everything running; SIGHUP reads the VMs' files again. polluxadm controls it.\n\nusage: polluxha [--config FILE]\n")
		fs.PrintDefaults()
	}
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil || fs.NArg() > 0:
		if err == nil {
			fmt.Fprintf(stderr, "polluxha: unexpected argument %q\n", fs.Arg(0))
		}
		return exitUsage
	case *version:
		fmt.Fprintf(stdout, "polluxha %s\n", service.Version)
		return exitOK
	}
	path, named, err := service.SettingsPath(*config)
	if err != nil {
		fmt.Fprintf(stderr, "polluxha: %v\n", err)
		return exitEnvironment
	}
	settings, err := readSettings(path, named)
	if err != nil {
		fmt.Fprintf(stderr, "%v\n", err)
		return exitConfig
	}
	settings.HA.EmbeddedEtcd = settings.HA.EmbeddedEtcd || *etcd
	if *check {
		return checkFiles(settings, stdout, stderr)
	}
	unix.Umask(0o077) // state files and sockets are the owner's alone
	log, err := service.NewLogger(stderr, settings.Log.Level, settings.Log.Format)
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", path, err)
		return exitConfig
	}
	if *hold > 0 {
		playDead(settings, *hold, killAll(settings, log), log)
		log.Error().Err(restart(args)).Msg("polluxha could not start again after a drill")
		return exitEnvironment
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	n := &node{path: settings.File, settings: settings, log: log, hup: hup, protect: true, args: args}
	if err := n.run(ctx); err != nil {
		log.Error().Err(err).Msg("polluxha could not go on")
		return exitEnvironment
	}
	return exitOK
}

// checkFiles reads everything and says what is wrong with it.
func checkFiles(settings *conf.Daemon, stdout, stderr io.Writer) int {
	c, err := readAll(settings)
	if err != nil {
		fmt.Fprintf(stderr, "%v\n", err)
		return exitConfig
	}
	if c.cluster == nil {
		fmt.Fprintf(stdout, "this node is in no cluster: there is no %s\n", settings.HA.ClusterFile)
		return exitOK
	}
	bad := len(c.problems)+len(c.left) > 0
	for _, f := range c.left {
		fmt.Fprintf(stderr, "vm %s: %s\n", f.name, f.why)
	}
	for _, name := range sortedKeys(c.problems) {
		fmt.Fprintf(stderr, "vm %s: %s\n", name, c.problems[name])
	}
	if _, err := c.core(time.Now()); err != nil {
		fmt.Fprintf(stderr, "%v\n", err)
		bad = true
	}
	if bad {
		return exitConfig
	}
	fmt.Fprintf(stdout, "cluster %s: %d nodes, %d VMs\n", c.cluster.Name, len(c.cluster.Nodes), len(c.vms))
	return exitOK
}

// Options are for programs that run polluxha inside themselves, tests above all.
type Options struct {
	Settings string    // path of pollux.toml
	Log      io.Writer // nil: discarded
	Ready    func()    // called when everything is started
}

// Run runs polluxha until ctx is done. It leaves the process as it is.
func Run(ctx context.Context, o Options) error {
	path, err := filepath.Abs(o.Settings)
	if err != nil {
		return err
	}
	settings, err := readSettings(path, true)
	if err != nil {
		return err
	}
	log := zerolog.Nop()
	if o.Log != nil {
		if log, err = service.NewLogger(o.Log, settings.Log.Level, settings.Log.Format); err != nil {
			return err
		}
	}
	n := &node{path: settings.File, settings: settings, log: log, ready: o.Ready}
	return n.run(ctx)
}

// killAll ends all VMs that the files of this node describe, for a drill.
func killAll(settings *conf.Daemon, log zerolog.Logger) func(context.Context) error {
	return func(ctx context.Context) error {
		c, err := readWhatCanBe(settings)
		if err == nil {
			err = c.recall(func(*conf.VM) bool { return true }, time.Now())
		}
		if err != nil {
			return err
		}
		e, err := newEquipment(settings, &polluxd{socket: settings.ControlSocket, log: log}, func(hook.Result) {}, func(string) {})
		if err != nil {
			return err
		}
		defer e.close()
		return e.kill(ctx, c.vms)
	}
}

// newSession names one run of polluxha: 16 hexadecimal digits, never the same again.
func newSession() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func notify(log zerolog.Logger, state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		log.Warn().Err(err).Msg("systemd could not be told")
	}
}

// restart replaces this process by a new polluxha with the same arguments, less
// those of a drill.
func restart(args []string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	return syscall.Exec(exe, append([]string{os.Args[0]}, withoutHold(args)...), os.Environ())
}
