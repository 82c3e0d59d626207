package e2e

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// A manager is what systemd is for a service: it listens to its notifications.
type manager struct {
	conn *net.UnixConn
	got  chan string
}

func newManager(t *testing.T) (m *manager, env string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	m = &manager{conn: conn, got: make(chan string, 1000)}
	t.Cleanup(func() { conn.Close(); os.RemoveAll(dir) })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			m.got <- string(buf[:n])
		}
	}()
	return m, "NOTIFY_SOCKET=" + path
}

// expect waits for a notification with these words in it.
func (m *manager) expect(t *testing.T, words ...string) {
	t.Helper()
	deadline := time.After(waitLimit)
next:
	for {
		select {
		case s := <-m.got:
			for _, w := range words {
				if !strings.Contains(s, w) {
					continue next
				}
			}
			return
		case <-deadline:
			t.Fatalf("systemd was not told %q", words)
		}
	}
}

func TestE2EService(t *testing.T) {
	begin(t, "qemu-io")
	p := configured(t, options{global: quick})
	m, env := newManager(t)
	p.a.env = []string{env, "WATCHDOG_USEC=2000000"}
	p.up()
	m.expect(t, "READY=1", "STATUS=1 of 1 resources are up")
	m.expect(t, "WATCHDOG=1")

	// A good reload: an option and a new resource.
	p.a.write("r0.res", p.resource(p.a, "net { connect-int 3; ping-int 4; timeout 20; }"))
	p.a.disk("r1.img", 8<<20)
	p.a.write("r1.res", strings.NewReplacer("resource r0", "resource r1", "minor 0", "minor 1", "disk.img", "r1.img", ":7789", ":7790",
		"global { disable-ip-verification; usage-count no; }\n", "").Replace(p.resource(p.a, quick)))
	p.a.must("create-md", "r1")
	p.a.signal(syscall.SIGHUP)
	m.expect(t, "RELOADING=1", "MONOTONIC_USEC=")
	m.expect(t, "READY=1", "STATUS=2 of 2 resources are up")
	if st := p.a.status(); !healthy(st) || st.Role != "Primary" {
		t.Errorf("r0 after the reload: %+v", st)
	}
	if st := p.a.statusOf("r1"); st.State != adm.StateUp {
		t.Errorf("r1 after the reload: %+v", st)
	}

	// A bad one changes nothing and says where the mistake is.
	good := readText(p.a.path("r0.res"))
	p.a.write("r0.res", strings.Replace(good, "ping-int 4", "ping-int four", 1))
	p.a.signal(syscall.SIGHUP)
	m.expect(t, "READY=1", "STATUS=2 of 2 resources are up")
	poll(t, "the log names the mistake", func() bool { return strings.Contains(p.a.log(), "r0.res:3:31: ") })
	if !strings.Contains(p.a.log(), "the old configuration stays in force") {
		t.Error("the log does not say that nothing has changed")
	}
	mustIO(t, p.a.uri("r0"), "write -P 5 0 64k", "flush")
	p.a.refused(10, []string{"r0.res:3:31: "}, "adjust", "r0")
	p.a.write("r0.res", good)

	// A resource that is no longer configured goes down.
	if err := os.Remove(p.a.path("r1.res")); err != nil {
		t.Fatal(err)
	}
	p.a.signal(syscall.SIGHUP)
	m.expect(t, "READY=1", "STATUS=1 of 1 resources are up")

	// The stop, while a client writes.
	w := startWriter(t, p.a, loadBytes)
	p.written()
	if took := p.a.stop(); took > 12*time.Second {
		t.Errorf("the stop took %v", took)
	}
	m.expect(t, "STOPPING=1")
	w.end()
	p.b.wait("alpha has left", func(b adm.Resource) bool { return b.Connection != "Connected" })
	p.b.must("primary", "r0")
	w.check(p.b)
	p.b.must("secondary", "r0")
	if exists(p.a.path("ctl")) || exists(p.a.path("nbd")) {
		t.Error("sockets are left behind")
	}
	// Within the same boot it goes on as Primary.
	p.a.start()
	p.a.wait("Primary again", func(a adm.Resource) bool { return a.Role == "Primary" })
	w.check(p.a)
	p.inSync()
	p.equalDisks("disk.img", usable32)
}

// A clean restart must not be worse for a VM than a crash: its NBD client
// repeats what was not answered, but hands an error answer to the guest.
func TestE2ERestartUnderLoad(t *testing.T) {
	begin(t, "fio", "qemu-storage-daemon")
	p := newPair(t, options{size: 64 << 20, global: quick})
	through := proxy(t, p.a)
	l := startLoad(t, through, 15, 4*time.Second)
	for range 3 {
		p.written()
		time.Sleep(randomMoment())
		p.a.stop()
		p.a.start()
		p.a.wait("Primary again", func(a adm.Resource) bool { return a.Role == "Primary" })
		p.inSync()
	}
	l.end()
	p.inSync()
	l.verify(through)
	p.equalDisks("disk.img", usable64)
}
