package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/pollux-project/pollux/bench/load"
	"github.com/pollux-project/pollux/bench/result"
)

// A subject is a target as the latency experiment runs it. Its servers run for
// one sample only, but for Pollux, whose daemons run all the time.
type subject struct {
	result.Target
	needs []string // programs that it can't do without
	// open starts it for a class and returns what to load.
	open func(ctx context.Context, class string) (place string, servers []*process, err error)
	// close ends what open has started, after an error of open as well; nil = nothing.
	close func() error
}

// debianPackage has the package of each program that a target needs.
var debianPackage = map[string]string{
	"fio": "fio", "nbdkit": "nbdkit", "nbdcopy": "libnbd-bin", "qemu-nbd": "qemu-utils", "qemu-storage-daemon": "qemu-system-common",
	"ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux",
}

// lacking says what must be installed for programs, "" if all are there.
func lacking(programs ...string) string {
	var texts []string
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			texts = append(texts, fmt.Sprintf("%s is not installed: apt-get install %s", p, debianPackage[p]))
		}
	}
	return strings.Join(texts, "; ")
}

// subjects are all that the latency experiment can load: the pair, the rivals,
// one copy behind other servers, and the file itself.
func (s *session) subjects(p *pair, q *quorum, single string) map[string]*subject {
	all := map[string]*subject{}
	add := func(x *subject) {
		x.Skipped = lacking(x.needs...)
		all[x.Name] = x
	}
	for _, v := range []struct{ name, detail string }{
		{"pollux-c", "two polluxd, protocol C"},
		{"pollux-b", "two polluxd, protocol B"},
		{"pollux-a", "two polluxd, protocol A"},
		{"pollux-c-tls", "two polluxd, protocol C, TLS between them"},
		{"pollux-alone", "polluxd, protocol C, its peer disconnected"},
	} {
		protocol := string(protocolOf(v.name))
		if v.name == "pollux-alone" {
			protocol = "" // it replicates to nobody, and is set against single copies
		}
		add(&subject{
			Target: result.Target{Name: v.name, Kind: result.KindPollux, Protocol: protocol, Detail: v.detail},
			open: func(_ context.Context, class string) (string, []*process, error) {
				return p.uri(volumeOf(v.name, class, 0)), p.daemons, nil
			},
		})
	}
	for _, how := range []string{"nbdkit", "threads", "native", "io_uring"} {
		r := rival{name: how, aio: how}
		needs := []string{"qemu-storage-daemon"}
		detail := "qemu-storage-daemon's quorum of a file and an NBD export of qemu, aio=" + how
		if how == "nbdkit" {
			r.nbdkit, r.aio = true, "threads"
			needs = append(needs, "nbdkit")
			detail = "qemu-storage-daemon's quorum of a file and an NBD export of nbdkit"
		}
		add(&subject{
			Target: result.Target{Name: "quorum-" + how, Kind: result.KindPair, Detail: detail}, needs: needs,
			open: func(ctx context.Context, class string) (string, []*process, error) {
				r.direct = class == result.ClassDirect
				uri, err := q.start(ctx, r)
				return uri, q.servers, err
			},
			close: q.stop,
		})
	}
	add(&subject{
		Target: result.Target{Name: "file", Kind: result.KindFile, Detail: "the backing file by pwrite, one thread for each request in flight"},
		open:   func(context.Context, string) (string, []*process, error) { return single, nil, nil },
	})
	one := &server{lab: s.lab, image: single}
	add(&subject{
		Target: result.Target{Name: "nbdkit-file", Kind: result.KindCopy, Detail: "one copy, nbdkit file"}, needs: []string{"nbdkit"},
		open: one.nbdkit, close: one.stop,
	})
	add(&subject{
		Target: result.Target{Name: "qemu-nbd", Kind: result.KindCopy, Detail: "one copy, qemu-nbd"}, needs: []string{"qemu-nbd"},
		open: one.qemu, close: one.stop,
	})
	return all
}

// A server exports one file over a unix socket.
type server struct {
	lab     *lab
	image   string
	process *process
}

func (v *server) nbdkit(ctx context.Context, _ string) (string, []*process, error) {
	return v.start(ctx, func(socket string) []string { return []string{"nbdkit", "-f", "-U", socket, "file", v.image} })
}

func (v *server) qemu(ctx context.Context, class string) (string, []*process, error) {
	return v.start(ctx, func(socket string) []string {
		argv := []string{"qemu-nbd", "-k", socket, "-f", "raw", "-t", "-e", "16", "-x", "disk", "--cache=writeback", v.image}
		if class == result.ClassDirect {
			argv[len(argv)-2] = "--cache=none"
		}
		return argv
	})
}

func (v *server) start(ctx context.Context, argv func(socket string) []string) (string, []*process, error) {
	socket := v.lab.path("single.sock")
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", nil, err
	}
	uri := unixURI(socket, "disk")
	args := argv(socket)
	p, err := v.lab.start(args[0], args[1:]...)
	if err != nil {
		return "", nil, err
	}
	v.process = p
	return uri, []*process{p}, v.lab.await(ctx, p, negotiates(uri))
}

func (v *server) stop() error {
	p := v.process
	if v.process = nil; p == nil {
		return nil
	}
	return v.lab.stop(p)
}

// negotiates reports whether an NBD server answers at uri.
func negotiates(uri string) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := load.Probe(ctx, uri)
		return err
	}
}

// protocolOf is the protocol of a target of Pollux: its first word after
// "pollux-" if that has one letter, else C.
func protocolOf(target string) byte {
	rest := strings.TrimPrefix(target, "pollux-")
	if word, _, _ := strings.Cut(rest, "-"); len(word) == 1 {
		return word[0] &^ 0x20
	}
	return 'C'
}

// volumeOf is the resource behind a target of Pollux, for a class of I/O.
func volumeOf(target, class string, size int64) volume {
	io := "buffered"
	if class == result.ClassDirect {
		io = "direct"
	}
	rest := strings.TrimPrefix(target, "pollux-")
	return volume{name: io + "-" + rest, protocol: protocolOf(target), io: io, bytes: size, tls: strings.HasSuffix(rest, "-tls")}
}
