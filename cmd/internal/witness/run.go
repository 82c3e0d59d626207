package witness

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/cmd/internal/service"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/witness"
)

// run serves until SIGTERM.
func (p *program) run([]string) int {
	addr, err := netip.ParseAddrPort(p.listen)
	if err != nil || addr.Port() == 0 {
		return p.fail(exitUsage, "--listen %q: expected IP:PORT or [IPV6]:PORT", p.listen)
	}
	log, err := service.NewLogger(p.stderr, p.logLevel, p.logFormat)
	if err != nil {
		return p.fail(exitUsage, "%v", err)
	}
	unix.Umask(0o077) // state files and the socket are the owner's alone
	release, err := service.LockStateDir(p.dir, "pollux-witness")
	if err != nil {
		return p.fail(exitEnvironment, "%v", err)
	}
	defer release()
	s, err := witness.NewServer(witness.Config{Dir: p.dir, Log: log})
	if err != nil {
		return p.fail(exitEnvironment, "%v", err)
	}
	l, err := net.Listen("tcp", addr.String())
	if err != nil {
		return p.fail(exitEnvironment, "listen: %v", err)
	}
	control, err := service.ListenPrivate(p.socketPath())
	if err != nil {
		l.Close()
		return p.fail(exitEnvironment, "control socket: %v", err)
	}
	log.Info().Str("version", service.Version).Stringer("listen", l.Addr()).Str("fingerprint", s.Fingerprint()).Int("clusters", len(s.Status().Clusters)).Msg("pollux-witness is ready")
	if err := serve(s, l, control, log); err != nil {
		return p.fail(exitEnvironment, "%v", err)
	}
	log.Info().Msg("pollux-witness has stopped")
	return exitOK
}

// serve answers nodes and the own program until a signal or an error.
func serve(s *witness.Server, l net.Listener, control *net.UnixListener, log zerolog.Logger) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	own := &http.Server{Handler: controlHandler(s), ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 8 << 10}
	ended := make(chan error, 2)
	go func() { ended <- s.Serve(l) }()
	go func() { ended <- own.Serve(control) }()
	notify(log, sd.SdNotifyReady)
	var beat <-chan time.Time // of systemd's watchdog
	if every, err := sd.SdWatchdogEnabled(false); err == nil && every > 0 {
		t := time.NewTicker(every / 3)
		defer t.Stop()
		beat = t.C
	}
	var err error
	for isRunning := true; isRunning; {
		select {
		case <-ctx.Done():
			isRunning = false
		case err = <-ended:
			isRunning = false
		case <-hup:
			notify(log, sd.SdNotifyReloading+"\nMONOTONIC_USEC="+service.MonotonicMicros())
			if err := s.Reload(); err != nil {
				log.Error().Err(err).Msg("reload failed")
			}
			notify(log, sd.SdNotifyReady)
		case <-beat:
			s.Status() // takes the locks: whoever holds one for ever is noticed
			notify(log, sd.SdNotifyWatchdog)
		}
	}
	notify(log, sd.SdNotifyStopping)
	_ = own.Close() // nothing of it is kept
	if cerr := s.Close(); err == nil {
		err = cerr
	}
	return err
}

func notify(log zerolog.Logger, state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		log.Warn().Err(err).Msg("systemd was not told")
	}
}

// controlHandler answers add, remove and status of this program.
func controlHandler(s *witness.Server) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.Status()) // who has gone asks again
	})
	mux.HandleFunc("POST /reload", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.Reload(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}
