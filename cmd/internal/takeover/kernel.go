package takeover

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pollux-project/pollux/conf"
)

// drbdMajor is the major number of /dev/drbdN. Source: Linux devices.txt.
const drbdMajor = 147

// Kernel says whether drbd.ko has any part of r: a minor, or the port of its
// connection.
func (m Machine) Kernel(r *conf.Resource) []Finding {
	var fs []Finding
	version, loaded := m.module()
	for _, v := range r.Volumes {
		if f, held := m.minor(r.Name, v); held {
			fs = append(fs, f)
		}
	}
	if f, taken := m.listener(r); taken {
		if f.Do == nil && len(fs) == 0 {
			f.Do = []string{"drbdadm down " + r.Name}
		}
		fs = append(fs, f)
	}
	if len(fs) > 0 {
		return fs
	}
	text := "drbd.ko is not loaded"
	if loaded {
		text = fmt.Sprintf("drbd.ko %sis loaded and does not have it", version)
	}
	return []Finding{{About: "kernel", Text: text}}
}

// KernelLoaded reports whether drbd.ko is there.
func (m Machine) KernelLoaded() bool {
	_, loaded := m.module()
	return loaded
}

func (m Machine) module() (version string, loaded bool) {
	if _, err := os.Stat(m.path("/sys/module/drbd")); err != nil {
		if _, err := os.Stat(m.path("/proc/drbd")); err != nil {
			return "", false
		}
	}
	b, err := os.ReadFile(m.path("/sys/module/drbd/version"))
	if err != nil {
		return "", true // built in, or without one
	}
	return strings.TrimSpace(string(b)) + " ", true
}

var procLine = regexp.MustCompile(`(?m)^ *(\d+): cs:(\S+)(?: ro:(\S+) ds:(\S+))?`)

// minor looks for a volume's minor in drbd.ko. /proc/drbd is 8.4's; the block
// device is there with every version.
func (m Machine) minor(name string, v conf.Volume) (f Finding, held bool) {
	how := ""
	b, _ := os.ReadFile(m.path("/proc/drbd")) // without the module there is none
	for _, g := range procLine.FindAllStringSubmatch(string(b), -1) {
		if g[1] == strconv.Itoa(v.Minor) {
			how = "cs:" + g[2]
			if g[3] != "" {
				how += " ro:" + g[3] + " ds:" + g[4]
			}
		}
	}
	sys := m.path(fmt.Sprintf("/sys/block/drbd%d", v.Minor))
	_, err := os.Stat(sys)
	isDevice := err == nil
	if (how == "" || how == "cs:Unconfigured") && !isDevice {
		return f, false
	}
	f = Finding{Verdict: Wrong, About: "kernel", Text: fmt.Sprintf("drbd.ko has minor %d, volume %d of %s", v.Minor, v.Number, name)}
	if how != "" {
		f.Text += ": " + how
	}
	mounts := m.mountsOf(fmt.Sprintf("%d:%d", drbdMajor, v.Minor))
	holders := names(filepath.Join(sys, "holders"))
	if len(mounts) > 0 {
		f.Text += ", mounted on " + strings.Join(mounts, ", ")
		for _, at := range mounts {
			f.Do = append(f.Do, "umount "+at)
		}
	}
	if len(holders) > 0 {
		f.Text += ", used by " + strings.Join(holders, ", ")
		f.Do = append(f.Do, fmt.Sprintf("end what uses /dev/drbd%d: %s (LVM: vgchange -an)", v.Minor, strings.Join(holders, ", ")))
	}
	f.Do = append(f.Do, "drbdadm down "+name)
	return f, true
}

// mountsOf lists where a block device, given as MAJOR:MINOR, is mounted.
func (m Machine) mountsOf(device string) []string {
	var at []string
	b, _ := os.ReadFile(m.path("/proc/self/mountinfo")) // unreadable: O_EXCL will tell
	for line := range strings.Lines(string(b)) {
		if w := strings.Fields(line); len(w) > 4 && w[2] == device && !slices.Contains(at, w[4]) {
			at = append(at, w[4])
		}
	}
	return at
}

func names(dir string) []string {
	entries, _ := os.ReadDir(dir) // a directory that isn't there has none
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// listener looks for a socket that listens where r would.
func (m Machine) listener(r *conf.Resource) (f Finding, taken bool) {
	const listening = "0A"
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, _ := os.ReadFile(m.path(file)) // no IPv6: no such file
		for line := range strings.Lines(string(b)) {
			w := strings.Fields(line)
			if len(w) < 10 || w[3] != listening {
				continue
			}
			at, ok := parseProcAddr(w[1])
			if !ok || at.Port() != r.Local.Addr.Port() || !at.Addr().IsUnspecified() && at.Addr().Unmap() != r.Local.Addr.Addr().Unmap() {
				continue
			}
			f = Finding{Verdict: Wrong, About: "port", Text: fmt.Sprintf("%s, where the peer connects to, is taken", r.Local.Addr)}
			if who := m.socketOwner(w[9]); who != "" {
				f.Text += " by " + who
				f.Do = []string{"end " + who + ", or give the resource another port on both nodes"}
			} else {
				f.Text += " by the kernel: DRBD has a connection of it up"
			}
			return f, true
		}
	}
	return f, false
}

// parseProcAddr reads HEX:PORT of /proc/net/tcp: 32-bit words in the machine's
// byte order, which is little-endian wherever Pollux runs.
func parseProcAddr(s string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(s, ":")
	if !ok || len(host)%8 != 0 || len(host) == 0 || len(host) > 32 {
		return netip.AddrPort{}, false
	}
	var raw []byte
	for ; host != ""; host = host[8:] {
		n, err := strconv.ParseUint(host[:8], 16, 32)
		if err != nil {
			return netip.AddrPort{}, false
		}
		raw = append(raw, byte(n), byte(n>>8), byte(n>>16), byte(n>>24))
	}
	p, err := strconv.ParseUint(port, 16, 16)
	addr, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr, uint16(p)), ok && err == nil
}

// socketOwner names a process that has the socket open, "" if none has: it is the
// kernel's own then.
func (m Machine) socketOwner(inode string) string {
	want := "socket:[" + inode + "]"
	fds, _ := filepath.Glob(m.path("/proc/[0-9]*/fd/*")) // the pattern is right
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && to == want {
			dir := filepath.Dir(filepath.Dir(fd))
			comm, err := os.ReadFile(filepath.Join(dir, "comm"))
			if err != nil {
				return "process " + filepath.Base(dir)
			}
			return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(comm)), filepath.Base(dir))
		}
	}
	return ""
}
