package hatestbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/pollux-project/pollux/cmd/internal/demo/storage"
)

// diskBytes is the size of each copy; metadataBytes is more than what Pollux
// needs of it for 128 MiB.
const (
	diskBytes     = 128 << 20
	metadataBytes = 1 << 20
)

// A Site is a rack with Pollux on it, and everybody who watches.
type Site struct {
	*Rack
	Bin, Guest string // directories of the programs, and of the guest's kernel
	Dir        string
	Arbiter    Arbiter
	patience   time.Duration // until all is well again
	calm       time.Duration // that the client must have been served
	strip      *powerStrip   // with arbiter fence

	Customer *Client // the machine's client
	Watcher  *Watcher
	consoles map[string]*Console
	sights   map[string]*Observer
	daemons  map[string]map[string]*daemon // by host and program

	watching sync.WaitGroup
	quit     context.CancelFunc
}

// NewSite makes the rack and the disks, which are equal and hold an empty
// filesystem. Nothing runs yet. Without an arbiter the resource is managed by hand. Each
// site of a program has a number, 0 to 9.
func NewSite(ctx context.Context, bin, guest, dir string, arbiter Arbiter, number int) (s *Site, err error) {
	s = &Site{Bin: bin, Guest: guest, Dir: dir, Arbiter: arbiter, patience: settleLimit, calm: calm, consoles: map[string]*Console{}, sights: map[string]*Observer{}, daemons: map[string]map[string]*daemon{}}
	if s.Rack, err = NewRack(dir, number); err != nil {
		return nil, err
	}
	image := filepath.Join(dir, "ext4.img")
	if err := storage.MakeFilesystemImage(ctx, image, diskBytes-metadataBytes); err != nil {
		return nil, errors.Join(err, s.Rack.Close())
	}
	for _, h := range s.dataHosts() {
		if h.disk, err = NewDisk(h.path("disk.img"), diskBytes); err == nil {
			err = copyInto(image, h.disk.Device)
		}
		if err != nil {
			return nil, errors.Join(err, s.Rack.Close())
		}
	}
	if err := errors.Join(os.Remove(image), s.configure(guest, arbiter)); err != nil {
		return nil, errors.Join(err, s.Rack.Close())
	}
	s.watch()
	return s, nil
}

func copyInto(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Sync(), out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}

func (s *Site) dataHosts() []*Host { return s.Hosts[:2] }

// other is the other data node.
func (s *Site) other(h *Host) *Host {
	if h == s.Hosts[0] {
		return s.Hosts[1]
	}
	return s.Hosts[0]
}

// watch starts everybody who only looks.
func (s *Site) watch() {
	ctx, quit := context.WithCancel(context.Background())
	s.quit = quit
	s.Watcher, s.Customer = NewWatcher(s.dataHosts()), s.Rack.Client()
	runs := []func(context.Context){s.Watcher.Run, s.Customer.Run}
	for _, h := range s.dataHosts() {
		s.consoles[h.Name] = NewConsole(h.Name, h.path("console.log"))
		s.sights[h.Name] = NewObserver(h.socket("polluxd"))
		runs = append(runs, s.consoles[h.Name].Run, s.sights[h.Name].Run)
	}
	for _, run := range runs {
		s.watching.Go(func() { run(ctx) })
	}
}

// Close ends everything.
func (s *Site) Close() error {
	s.quit()
	var err error
	if s.strip != nil {
		err = s.strip.close()
	}
	err = errors.Join(err, s.Rack.Close())
	s.watching.Wait()
	return err
}

// Start starts a daemon of Pollux on a host and waits until it answers.
func (s *Site) Start(ctx context.Context, h *Host, name string, args ...string) error {
	d, err := h.start(s.Bin, name, args...)
	if err != nil {
		return err
	}
	if s.daemons[h.Name] == nil {
		s.daemons[h.Name] = map[string]*daemon{}
	}
	s.daemons[h.Name][name] = d
	return h.answers(ctx, d, name)
}

// Adm runs polluxadm on a host.
func (s *Site) Adm(ctx context.Context, h *Host, args ...string) (string, error) {
	return h.adm(ctx, s.Bin, nil, args...)
}

// InSync tells whether both copies are good, connected and quiet.
func (s *Site) InSync() bool {
	for _, h := range s.dataHosts() {
		r, ok := s.sights[h.Name].Now()
		if !ok || r.Connection != "Connected" || len(r.Volumes) != 1 {
			return false
		}
		if v := r.Volumes[0]; v.Disk != "UpToDate" || v.PeerDisk != "UpToDate" || v.Resync != nil {
			return false
		}
	}
	return true
}

// Primary returns the data node that is Primary, nil if none or both are.
func (s *Site) Primary() *Host {
	var found *Host
	for _, h := range s.dataHosts() {
		if r, ok := s.sights[h.Name].Now(); ok && r.Role == "Primary" {
			if found != nil {
				return nil
			}
			found = h
		}
	}
	return found
}

// waitFor polls with a limit.
func (s *Site) waitFor(ctx context.Context, limit time.Duration, what string, ready func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %v", limit))
	defer cancel()
	return until(ctx, what, func() (bool, error) { return ready(), nil })
}
