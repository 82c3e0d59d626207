package units

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/hypervisor"
)

const (
	// backstop is how often systemd is asked although the kernel has told
	// nothing: a unit without processes (a mount, a oneshot) changes silently.
	backstop = 10 * time.Second
	// settle is how long systemd needs to notice what the kernel has told.
	settle = 100 * time.Millisecond
)

// Watch implements [hypervisor.Hypervisor]. The kernel tells, by inotify on
// cgroup.events, when a unit's last process ends; then, and every 10 s, systemd
// is asked. What is left of units that died by themselves is unmounted before
// EventGone.
func (u *Units) Watch(ctx context.Context, name string, report func(hypervisor.Event)) error {
	return fail("watch", name, u.watch(ctx, name, report))
}

func (u *Units) watch(ctx context.Context, name string, report func(hypervisor.Event)) error {
	first, err := u.State(ctx, name)
	if err != nil {
		return unwrapVM(err)
	}
	r, err := u.find(name)
	if err != nil {
		return err
	}
	if r == nil || first.Phase == hypervisor.Stopped {
		return hypervisor.ErrNotRunning
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stirs, err := u.stirring(ctx, &wg, r.Units)
	if err != nil {
		return err
	}
	tell := func(kind hypervisor.EventKind, detail string) {
		report(hypervisor.Event{Name: name, Kind: kind, Detail: detail, At: time.Now()})
	}
	tell(hypervisor.EventWatched, first.Phase.String())
	timer := time.NewTimer(0) // something may have happened before stirring
	defer timer.Stop()
	before := first.Reason
	for {
		select {
		case <-stirs:
			timer.Reset(settle)
			continue
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		now, result, err := u.reaped(ctx, name, *r)
		if err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			now.Reason = err.Error() // told once; asked again later
		} else if now.Phase == hypervisor.Stopped {
			tell(hypervisor.EventShutdown, result)
			tell(hypervisor.EventGone, "")
			return nil
		}
		if now.Reason != before && now.Reason != "" {
			tell(hypervisor.EventPaused, now.Reason)
		} else if now.Reason != before {
			tell(hypervisor.EventResumed, "")
		}
		before = now.Reason
		timer.Reset(backstop)
		if now.Phase != hypervisor.Running {
			timer.Reset(time.Second) // on its way to somewhere
		}
	}
}

// reaped returns the state, after the mounts of units that have all died were
// removed, and how they ended.
func (u *Units) reaped(ctx context.Context, name string, r record) (hypervisor.State, string, error) {
	list, err := u.show(ctx, r.Units)
	if err != nil {
		return hypervisor.State{Phase: hypervisor.Unknown}, "", err
	}
	result := ""
	for _, s := range list {
		if s.isLive() || u.isPopulated(s) {
			now, err := u.state(ctx, name, &r)
			return now, "", err
		}
		if s.Result != "" && s.Result != "success" && result == "" {
			result = s.ID + ": " + s.Result
		}
	}
	if result == "" {
		result = "success"
	}
	unlock, err := u.lock(ctx, name)
	if err != nil {
		return hypervisor.State{Phase: hypervisor.Unknown}, "", err
	}
	defer unlock()
	// Somebody may have ended it properly and started it again meanwhile.
	now, err := u.read(name)
	if err != nil {
		return hypervisor.State{Phase: hypervisor.Unknown}, "", err
	}
	if now == nil && r.lost || now != nil && now.Since.Equal(r.Since) {
		if err := u.release(ctx, name, r); err != nil {
			return hypervisor.State{Phase: hypervisor.Unknown}, "", err
		}
	}
	return hypervisor.State{Name: name}, result, nil
}

// stirring returns a channel on which something comes when the kernel tells of a
// change in a unit's control group, until ctx is done; wg waits for the end of
// that. A unit without a group is left to the backstop.
func (u *Units) stirring(ctx context.Context, wg *sync.WaitGroup, names []string) (<-chan struct{}, error) {
	list, err := u.show(ctx, names)
	if err != nil {
		return nil, err
	}
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch control groups: %w", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	for _, s := range list {
		if s.Group == "" || s.Group == "/" {
			continue
		}
		_, err := unix.InotifyAddWatch(fd, u.eventsFile(s), unix.IN_MODIFY|unix.IN_DELETE_SELF)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
			_ = f.Close() // never used
			return nil, fmt.Errorf("watch %s: %w", filepath.Join(strings.TrimPrefix(s.Group, "/"), "cgroup.events"), err)
		}
	}
	stirs := make(chan struct{}, 1)
	context.AfterFunc(ctx, func() { _ = f.Close() }) // also ends the goroutine below
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			if _, err := f.Read(buf); err != nil {
				return
			}
			select {
			case stirs <- struct{}{}:
			default: // there is one to be taken already
			}
		}
	})
	return stirs, nil
}
