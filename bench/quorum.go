package bench

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/pollux-project/pollux/bench/result"
)

// A rival is one way to build qemu's network RAID-1.
type rival struct {
	name   string
	nbdkit bool   // the far side is nbdkit, not qemu
	direct bool   // O_DIRECT on both sides
	aio    string // how qemu does its I/O
}

// rivals are the names of the targets that are fair in a class. Without a
// namespace of our own only nbdkit is a peer whose replies don't wait for
// acknowledgements.
func rivals(class string, isolated bool) []string {
	switch {
	case class == result.ClassDirect && isolated:
		return []string{"quorum-threads", "quorum-native", "quorum-io_uring"}
	case class == result.ClassDirect:
		return nil // nbdkit's file plugin has no O_DIRECT
	case !isolated:
		return []string{"quorum-nbdkit"}
	case class == result.ClassBuffered:
		return []string{"quorum-nbdkit", "quorum-threads", "quorum-io_uring"}
	}
	return []string{"quorum-nbdkit", "quorum-threads"}
}

// quorum is qemu's network RAID-1; its servers run for one measurement only.
type quorum struct {
	lab     *lab
	link    *link // what is between the two sides; nil = loopback
	bytes   int64
	servers []*process
}

func (q *quorum) images() []string { return []string{q.lab.path("near.raw"), q.lab.path("far.raw")} }

func (q *quorum) prepare() error {
	for _, path := range q.images() {
		if err := makeImage(path, q.bytes, 0); err != nil {
			return err
		}
	}
	return nil
}

// start starts both sides and returns the export's URI.
func (q *quorum) start(ctx context.Context, r rival) (uri string, err error) {
	port, err := q.lab.nextPort()
	if err != nil {
		return "", err
	}
	socket := q.lab.path("quorum.sock")
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	near, far := q.images()[0], q.images()[1]
	if err := q.server(ctx, fmt.Sprintf("nbd://%s:%d/far", q.link.host(1), port), q.link.onNode(1, farSide(r, far, q.link.host(1), port)...)); err != nil {
		return "", err
	}
	uri = unixURI(socket, "pair")
	return uri, q.server(ctx, uri, nearSide(r, near, q.link.host(1), port, socket))
}

func (q *quorum) server(ctx context.Context, uri string, argv []string) error {
	p, err := q.lab.start(argv[0], argv[1:]...)
	if err != nil {
		return err
	}
	q.servers = append(q.servers, p)
	return q.lab.await(ctx, p, negotiates(uri))
}

func farSide(r rival, image, host string, port int) []string {
	if r.nbdkit {
		return []string{"nbdkit", "-f", "-i", host, "-p", fmt.Sprint(port), "file", image}
	}
	return []string{
		"qemu-storage-daemon", "--blockdev", blockdevOf("far", image, r),
		"--nbd-server", fmt.Sprintf("addr.type=inet,addr.host=%s,addr.port=%d", host, port),
		"--export", "type=nbd,id=export,node-name=far,name=far,writable=on",
	}
}

func nearSide(r rival, image, host string, port int, socket string) []string {
	return []string{
		"qemu-storage-daemon", "--blockdev", blockdevOf("near", image, r),
		"--blockdev", fmt.Sprintf("driver=nbd,server.type=inet,server.host=%s,server.port=%d,export=far,node-name=remote", host, port),
		"--blockdev", "driver=quorum,node-name=pair,vote-threshold=1,read-pattern=fifo,children.0=near,children.1=remote",
		"--nbd-server", "addr.type=unix,addr.path=" + socket,
		"--export", "type=nbd,id=export,node-name=pair,name=pair,writable=on",
	}
}

func blockdevOf(node, image string, r rival) string {
	direct := "off"
	if r.direct {
		direct = "on"
	}
	return fmt.Sprintf("driver=file,filename=%s,node-name=%s,cache.direct=%s,aio=%s", image, node, direct, r.aio)
}

// stop ends the near side, then the far one.
func (q *quorum) stop() error {
	var errs []error
	for len(q.servers) > 0 {
		last := len(q.servers) - 1
		errs = append(errs, q.lab.stop(q.servers[last]))
		q.servers = q.servers[:last]
	}
	return errors.Join(errs...)
}
