package export_test

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/client"

	"github.com/pollux-project/pollux/blockdev/blocktest"
	"github.com/pollux-project/pollux/blockdev/export"
	"github.com/pollux-project/pollux/protocol/nbd"
)

func TestListenerValidate(t *testing.T) {
	allow := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}
	for _, tt := range []struct {
		l    export.Listener
		want string // in the error; "" for none
	}{
		{export.Listener{Network: "unix", Address: "/run/pollux/nbd.sock"}, ""},
		{export.Listener{Network: "unix"}, "1 to 107 bytes"},
		{export.Listener{Network: "unix", Address: "/" + strings.Repeat("x", 107)}, "1 to 107 bytes"},
		{export.Listener{Network: "tcp", Address: "127.0.0.1:10809"}, ""},
		{export.Listener{Network: "tcp", Address: "[::1]:10809"}, ""},
		{export.Listener{Network: "tcp", Address: "localhost:10809"}, ""},
		{export.Listener{Network: "tcp", Address: "10.1.2.3:10809"}, "plaintext = true"},
		{export.Listener{Network: "tcp", Address: "0.0.0.0:10809", Allow: allow}, "plaintext = true"},
		{export.Listener{Network: "tcp", Address: "[::]:10809", Plaintext: true}, "allow list"},
		{export.Listener{Network: "tcp", Address: "10.1.2.3:10809", Plaintext: true, Allow: allow}, ""},
		{export.Listener{Network: "tcp", Address: "storage:10809"}, "IP:PORT"},
		{export.Listener{Network: "tcp", Address: ":10809"}, "IP:PORT"},
		{export.Listener{Network: "vsock", Address: "3:10809"}, "neither unix nor tcp"},
	} {
		err := tt.l.Validate()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v", tt.l, err)
		}
	}
}

func TestTCP(t *testing.T) {
	r := memRig(t, 1<<20)
	addr, err := r.srv.Listen(export.Listener{Network: "tcp", Address: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	run(t, "nbdinfo", "nbd://"+addr.String()+"/web-root")
	run(t, "qemu-nbd", "--list", "-b", "127.0.0.1", "-p", strconv.Itoa(addr.(*net.TCPAddr).Port))
}

func TestAllowList(t *testing.T) {
	r := memRig(t, 1<<20)
	addr, err := r.srv.Listen(export.Listener{
		Network: "tcp", Address: "127.0.0.1:0", Plaintext: true,
		Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	(&raw{c, t}).mustEnd() // not even a greeting
}

func TestUnixSocketFile(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	r := memRig(t, 1<<20)
	st, err := os.Stat(r.socket)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	other := export.New(export.Config{})
	if _, err := other.Listen(export.Listener{Network: "unix", Address: r.socket}); err == nil || !strings.Contains(err.Error(), "another process listens") {
		t.Errorf("a live socket was taken over: %v", err)
	}
	r.raw(t).enter("").mustWork()

	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	stale := filepath.Join(dir, "stale")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	if _, err := other.Listen(export.Listener{Network: "unix", Address: stale}); err != nil {
		t.Errorf("a stale socket is in the way: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Listen(export.Listener{Network: "unix", Address: file}); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("over a file: %v", err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Error("the file was touched")
	}
	if err := other.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if _, err := other.Listen(export.Listener{Network: "unix", Address: stale}); err == nil {
		t.Error("listening after the end")
	}
}

// go-nbd's own client can list our exports: those without a description, it
// takes the text for further names.
func TestGoNBDList(t *testing.T) {
	r := memRig(t, 1<<20)
	if err := r.srv.Remove(t.Context(), "web-root"); err != nil {
		t.Fatal(err)
	}
	if err := r.srv.Add("web-root", plain{r.backend}); err != nil {
		t.Fatal(err)
	}
	names, err := client.List(r.dial(t))
	if err != nil || len(names) != 1 || names[0] != "web-root" {
		t.Errorf("%q %v", names, err)
	}
}

// A connection without a descriptor is served as well.
func TestPipe(t *testing.T) {
	r := memRig(t, 1<<20)
	ours, theirs := net.Pipe()
	defer ours.Close()
	r.srv.ServeConn(theirs)
	c := (&raw{ours, t}).enter("web-root")
	c.mustWork()
	if e, got := c.do(nbd.Request{Command: nbd.CmdRead, Offset: 1, Length: 4000}, nil, 4000); e != nbd.OK || !bytes.Equal(got, make([]byte, 4000)) {
		t.Errorf("read: %v", e)
	}
}

// A plain Backend has no description.
type plain struct{ *blocktest.Backend }

func (p plain) Info() export.Info {
	i := p.Backend.Info()
	i.Description = ""
	return i
}

// What libnbd lets through when its own checks are off.
func TestPythonOddRequests(t *testing.T) {
	const script = `
import nbd, sys
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
size = h.get_size()
def bad(what, f):
    try:
        f()
    except nbd.Error:
        pass
    else:
        sys.exit(what + " succeeded")
    h.pread(512, 0)
bad("read past the end", lambda: h.pread(1024, size - 512))
bad("read at 2^63", lambda: h.pread(512, 1 << 63))
bad("write past the end", lambda: h.pwrite(bytearray(1024), size - 512))
bad("write of 33 MiB", lambda: h.pwrite(bytearray(33 << 20), 0))
bad("trim past the end", lambda: h.trim(4096, size))
bad("zero past the end", lambda: h.zero(4096, size - 512))
bad("unknown flag", lambda: h.pread(512, 0, 1 << 9))
bad("fast zero", lambda: h.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO))
h.pwrite(b"x" * 512, 512)
assert h.pread(3, 600) == b"xxx"
h.cache(512, 0)
h.flush()
h.shutdown()
`
	r := memRig(t, 40<<20)
	if _, err := tryRun(t, "/usr/bin/python3", "-c", "import nbd"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("python3-libnbd is missing: run scripts/bootstrap")
		}
		t.Skip("python3-libnbd is not installed: run scripts/bootstrap")
	}
	run(t, "/usr/bin/python3", "-c", script, r.uri("web-root"))
}
