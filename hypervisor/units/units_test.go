package units_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pollux-project/pollux/hypervisor"
	"github.com/pollux-project/pollux/hypervisor/hvtest"
	"github.com/pollux-project/pollux/hypervisor/units"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeSystemctl stands for systemd: it keeps units in a directory, runs a real
// process for each, with a file like that of a control group, and answers as
// systemctl does, as far as we ask. A unit UNIT is there if UNIT.unit is, which
// holds its UnitFileState; UNIT.deaf makes it ignore SIGTERM, UNIT.broken makes
// its start fail.
const fakeSystemctl = `#!/bin/sh
D=$(dirname "$0")
block=1; cmd=
for a in "$@"; do
	case $a in
	--no-block) block=0 ;;
	--*) ;;
	*) [ -n "$cmd" ] && us="$us $a" || cmd=$a ;;
	esac
done
lives() { [ -f "$D/$1.pid" ] && [ ! -f "$D/$1.ended" ]; }
first=1
for u in $us; do
	case $cmd in
	show)
		[ $first = 1 ] || echo
		first=0
		load=not-found; file=; [ -f "$D/$u.unit" ] && { load=loaded; file=$(cat "$D/$u.unit"); }
		active=inactive; result=success; pid=0; group=
		if lives "$u"; then
			active=active; pid=$(cat "$D/$u.pid"); group=/$u
			[ -f "$D/$u.stopping" ] && active=deactivating
		elif [ -f "$D/$u.ended" ] && [ ! -f "$D/$u.stopping" ]; then
			active=failed; result=signal
		fi
		printf 'Id=%s\nLoadState=%s\nUnitFileState=%s\nActiveState=%s\nResult=%s\nMainPID=%s\nControlGroup=%s\nMemoryCurrent=4096\n' \
			"$u" "$load" "$file" "$active" "$result" "$pid" "$group"
		;;
	start)
		[ -f "$D/$u.broken" ] && { echo "Job for $u failed." >&2; exit 1; }
		rm -f "$D/$u.pid" "$D/$u.ended" "$D/$u.stopping"
		mkdir -p "$D/cgroup/$u"
		printf 'populated 1\nfrozen 0\n' > "$D/cgroup/$u/cgroup.events"
		(
			if [ -f "$D/$u.deaf" ]; then sh -c 'trap "" TERM; while :; do sleep 0.1; done' & else sleep 1000 & fi
			echo $! > "$D/$u.new"; mv "$D/$u.new" "$D/$u.pid"
			wait $!
			touch "$D/$u.ended"
			printf 'populated 0\nfrozen 0\n' > "$D/cgroup/$u/cgroup.events"
		) </dev/null >/dev/null 2>&1 &
		while [ ! -f "$D/$u.pid" ]; do sleep 0.01; done
		echo "$u" >> "$D/started"
		;;
	stop)
		touch "$D/$u.stopping"
		echo "$u" >> "$D/stopped"
		lives "$u" || continue
		kill -TERM "$(cat "$D/$u.pid")" 2>/dev/null
		while [ $block = 1 ] && lives "$u"; do sleep 0.02; done
		;;
	kill) lives "$u" && kill -KILL "$(cat "$D/$u.pid")" ;;
	reset-failed) ;;
	*) echo "unknown verb $cmd" >&2; exit 1 ;;
	esac
done
exit 0
`

type lab struct {
	t   *testing.T
	dir string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, dir: t.TempDir()}
	l.file("systemctl", fakeSystemctl)
	t.Cleanup(func() {
		pids, _ := filepath.Glob(l.path("*.pid")) // the pattern is right
		for _, p := range pids {
			unit := strings.TrimSuffix(filepath.Base(p), ".pid")
			if _, err := os.Stat(l.path(unit + ".ended")); err != nil {
				l.signal(unit)
			}
			// The last word of what keeps the unit; it would find no directory.
			for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
				if text, _ := os.ReadFile(l.path("cgroup/" + unit + "/cgroup.events")); strings.HasPrefix(string(text), "populated 0\nf") {
					break
				}
			}
		}
	})
	return l
}

func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

func (l *lab) file(name, text string) {
	l.t.Helper()
	if err := os.WriteFile(l.path(name), []byte(text), 0o700); err != nil {
		l.t.Fatal(err)
	}
}

// signal kills the process of a unit.
func (l *lab) signal(unit string) {
	text, err := os.ReadFile(l.path(unit + ".pid"))
	var pid int
	if err == nil {
		_, err = fmt.Sscan(string(text), &pid)
	}
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil && !errors.Is(err, syscall.ESRCH) {
		l.t.Error(err)
	}
}

func (l *lab) open() *units.Units {
	l.t.Helper()
	u, err := units.New(units.Config{RunDir: l.path("run"), CgroupRoot: l.path("cgroup"), Systemctl: l.path("systemctl")})
	if err != nil {
		l.t.Fatal(err)
	}
	return u
}

func (l *lab) guest(name string, temper byte) hypervisor.Guest {
	l.file(name+".service.unit", "disabled")
	if temper == hvtest.Deaf {
		l.file(name+".service.deaf", "")
	}
	return hypervisor.Guest{Name: name, Units: []string{name + ".service"}, Disks: []hypervisor.Disk{{Socket: "/run/nbd.sock", Export: "db/0@7"}}}
}

func TestConformance(t *testing.T) {
	hvtest.Run(t, func(t *testing.T) hvtest.Subject {
		l := newLab(t)
		return hvtest.Subject{
			Open:  func() hypervisor.Hypervisor { return l.open() },
			Guest: l.guest,
			Broken: func(name string) hypervisor.Guest {
				l.file(name+".service.broken", "")
				return l.guest(name, hvtest.Attentive)
			},
			Booted: func(context.Context, string) error { return nil },
			Crash:  func(_ context.Context, name string) error { l.signal(name + ".service"); return nil },
		}
	})
}

// needMount skips where the user may not mount.
func needMount(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "test", dir).CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no mount: %v: %s", err, out)
		}
		t.Skipf("no mount: %v: %s", err, out)
	}
	if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func isMounted(t *testing.T, dir string) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(text), " "+dir+" ")
}

// twoUnits is a database with a mount and two units.
func (l *lab) twoUnits() (g hypervisor.Guest, mount string) {
	l.t.Helper()
	mount = l.path("data")
	if err := os.MkdirAll(mount, 0o700); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = exec.Command("umount", mount).Run() }) // fails if the test has cleaned up
	g = l.guest("db", hvtest.Attentive)
	l.guest("web", hvtest.Attentive)
	g.Units = []string{"db.service", "web.service"}
	g.Mounts = []hypervisor.Mount{{Device: "/test", Dir: mount, Type: "tmpfs", Options: "size=1m"}}
	return g, mount
}

// Mounts come before the units and go after them; units stop in reverse.
func TestMounts(t *testing.T) {
	needMount(t)
	l := newLab(t)
	g, mount := l.twoUnits()
	u := l.open()
	if err := u.Start(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	if !isMounted(t, mount) {
		t.Error("nothing is mounted")
	}
	if err := u.Stop(t.Context(), "db", time.Minute); err != nil {
		t.Fatal(err)
	}
	if isMounted(t, mount) {
		t.Error("it is still mounted")
	}
	for name, want := range map[string]string{"started": "db.service\nweb.service\n", "stopped": "web.service\ndb.service\n"} {
		if got, err := os.ReadFile(l.path(name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
}

// One of two units dies: the VM is ill; both have died: it is gone, unmounted,
// and can be started again.
func TestUnitsDie(t *testing.T) {
	needMount(t)
	l := newLab(t)
	g, mount := l.twoUnits()
	u := l.open()
	if err := u.Start(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	events := make(chan hypervisor.Event, 16)
	ended := make(chan error, 1)
	go func() { ended <- u.Watch(t.Context(), "db", func(e hypervisor.Event) { events <- e }) }()
	next := func(kind hypervisor.EventKind) hypervisor.Event {
		t.Helper()
		select {
		case e := <-events:
			if e.Kind != kind {
				t.Errorf("%v, want %v", e, kind)
			}
			return e
		case <-time.After(5 * time.Second):
			t.Fatalf("no event, want %v: the backstop is 10 s, so the kernel's word was missed", kind)
			return hypervisor.Event{}
		}
	}
	next(hypervisor.EventWatched)
	l.signal("web.service")
	if e := next(hypervisor.EventPaused); e.Detail != "unit web.service is failed" {
		t.Errorf("%v", e)
	}
	st, err := u.State(t.Context(), "db")
	if err != nil || st.Phase != hypervisor.Unknown || st.Reason != "unit web.service is failed" {
		t.Errorf("State = %+v, %v", st, err)
	}
	l.signal("db.service")
	if e := next(hypervisor.EventShutdown); e.Detail != "db.service: signal" {
		t.Errorf("%v", e)
	}
	next(hypervisor.EventGone)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if isMounted(t, mount) {
		t.Error("it is still mounted")
	}
	if err := u.Start(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	if err := u.Kill(t.Context(), "db"); err != nil {
		t.Error(err)
	}
}

// Units that died while nobody watched have left their mount: that is not
// stopped, and both a start and a kill deal with it.
func TestLeftovers(t *testing.T) {
	needMount(t)
	for _, how := range []string{"start", "kill"} {
		t.Run(how, func(t *testing.T) {
			l := newLab(t)
			g, mount := l.twoUnits()
			u := l.open()
			if err := u.Start(t.Context(), g); err != nil {
				t.Fatal(err)
			}
			l.signal("web.service")
			l.signal("db.service")
			var st hypervisor.State
			for deadline := time.Now().Add(5 * time.Second); st.Reason == "" || !strings.HasSuffix(st.Reason, "is still mounted") || strings.Contains(st.Reason, "active,"); {
				var err error
				if st, err = u.State(t.Context(), "db"); err != nil {
					t.Fatal(err)
				}
				if time.Now().After(deadline) {
					t.Fatalf("State = %+v, want that the mount is still there", st)
				}
			}
			if how == "start" {
				if err := u.Start(t.Context(), g); err != nil {
					t.Fatalf("Start over leftovers: %v", err)
				}
			}
			if err := u.Kill(t.Context(), "db"); err != nil {
				t.Errorf("Kill: %v", err)
			}
			if isMounted(t, mount) {
				t.Error("it is still mounted")
			}
		})
	}
}

// A volume that somebody still uses is not given up, and the message says how to
// find them.
func TestBusyMount(t *testing.T) {
	needMount(t)
	l := newLab(t)
	g, mount := l.twoUnits()
	u := l.open()
	if err := u.Start(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(mount, "open"))
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Kill(t.Context(), "db"); err == nil || !strings.Contains(err.Error(), "fuser -vm "+mount) {
		t.Errorf("Kill with a file open: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := u.Kill(t.Context(), "db"); err != nil {
		t.Errorf("Kill after that: %v", err)
	}
}

func TestStartRefuses(t *testing.T) {
	l := newLab(t)
	u := l.open()
	for _, tt := range []struct {
		name   string
		change func(*hypervisor.Guest)
		want   string
	}{
		{"enabled", func(*hypervisor.Guest) { l.file("db.service.unit", "enabled") }, "unit db.service is enabled: systemd starts it at boot, on both nodes; systemctl disable db.service"},
		{"unknown", func(g *hypervisor.Guest) { g.Units = append(g.Units, "none.service") }, `unit none.service: systemd has it as "not-found"`},
		{"a machine", func(g *hypervisor.Guest) {
			*g = hypervisor.Guest{Name: "db", MemoryBytes: 1 << 30, VCPUs: 1, Boot: hypervisor.Boot{Kernel: "/k"}}
		}, "no units"},
		{"mount", func(g *hypervisor.Guest) {
			g.Mounts = []hypervisor.Mount{{Device: "/dev/none", Dir: l.path("none"), Type: "ext4"}}
		}, "mount /dev/none at "},
		{"second unit", func(g *hypervisor.Guest) {
			l.guest("web", hvtest.Attentive)
			l.file("web.service.broken", "")
			g.Units = append(g.Units, "web.service")
		}, "start unit web.service: exit status 1: Job for web.service failed."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := l.guest("db", hvtest.Attentive)
			tt.change(&g)
			err := u.Start(t.Context(), g)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Start = %v, want %q", err, tt.want)
			}
			if list, err := u.List(t.Context()); err != nil || len(list) != 0 {
				t.Errorf("left running: %+v, %v", list, err)
			}
		})
	}
	// A unit that somebody has started by hand.
	g := l.guest("db", hvtest.Attentive)
	if out, err := exec.Command(l.path("systemctl"), "start", "db.service").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := u.Start(t.Context(), g); !errors.Is(err, hypervisor.ErrRunning) {
		t.Errorf("Start = %v, want %v", err, hypervisor.ErrRunning)
	}
}

// The manager is told only after the NBD server has seen the end.
func TestClosed(t *testing.T) {
	l := newLab(t)
	var asked []hypervisor.Disk
	refuse := errors.New("db/0@7 has a client")
	u, err := units.New(units.Config{
		RunDir: l.path("run"), CgroupRoot: l.path("cgroup"), Systemctl: l.path("systemctl"),
		Closed: func(_ context.Context, disks []hypervisor.Disk) error {
			asked = disks
			return refuse
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Start(t.Context(), l.guest("db", hvtest.Attentive)); err != nil {
		t.Fatal(err)
	}
	if err := u.Kill(t.Context(), "db"); !errors.Is(err, refuse) || !errors.Is(err, hypervisor.ErrDisksOpen) || len(asked) != 1 || asked[0].Export != "db/0@7" {
		t.Errorf("Kill = %v after a question about %+v", err, asked)
	}
}

// The records are lost while the units run: they are still seen, watched and stopped by who
// knows their names. One that never knew them has nothing to go by.
func TestLostRecords(t *testing.T) {
	needMount(t)
	for _, how := range []string{"stop", "kill", "die"} {
		t.Run(how, func(t *testing.T) {
			l := newLab(t)
			g, mount := l.twoUnits()
			u := l.open().For(g)
			if err := u.Start(t.Context(), g); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(l.path("run")); err != nil {
				t.Fatal(err)
			}
			if st, err := l.open().State(t.Context(), "db"); err != nil || st.Phase != hypervisor.Stopped {
				t.Errorf("State = %+v, %v of units that nobody has named", st, err)
			}
			if st, err := u.State(t.Context(), "db"); err != nil || st.Phase != hypervisor.Running || st.PID == 0 {
				t.Errorf("State = %+v, %v; want Running", st, err)
			}
			if err := u.Start(t.Context(), g); !errors.Is(err, hypervisor.ErrRunning) {
				t.Errorf("Start: %v, want ErrRunning", err)
			}
			var err error
			switch how {
			case "stop":
				err = u.Stop(t.Context(), "db", time.Minute)
			case "kill":
				err = u.Kill(t.Context(), "db")
			default:
				watched := make(chan struct{}, 8)
				ended := make(chan error, 1)
				go func() { ended <- u.Watch(t.Context(), "db", func(hypervisor.Event) { watched <- struct{}{} }) }()
				<-watched
				l.signal("web.service")
				l.signal("db.service")
				err = <-ended
			}
			if err != nil {
				t.Error(err)
			}
			if st, err := u.State(t.Context(), "db"); err != nil || st.Phase != hypervisor.Stopped || isMounted(t, mount) {
				t.Errorf("State = %+v, %v; want Stopped, and nothing mounted", st, err)
			}
			if err := u.Kill(t.Context(), "db"); !errors.Is(err, hypervisor.ErrNotRunning) {
				t.Errorf("Kill: %v, want ErrNotRunning", err)
			}
			if err := u.Start(t.Context(), g); err != nil {
				t.Error(err)
			}
			if err := u.Kill(t.Context(), "db"); err != nil {
				t.Error(err)
			}
		})
	}
}

// A machine on which systemd is not at work runs no units, whatever is known of them.
func TestNoSystemd(t *testing.T) {
	l := newLab(t)
	g := l.guest("db", hvtest.Attentive)
	l.file("systemctl", "#!/bin/sh\necho 'System has not been booted with systemd as init system' >&2\nexit 1\n")
	if st, err := l.open().For(g).State(t.Context(), "db"); err != nil || st.Phase != hypervisor.Stopped {
		t.Errorf("State = %+v, %v; want Stopped", st, err)
	}
}
