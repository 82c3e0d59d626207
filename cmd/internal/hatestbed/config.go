package hatestbed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Names in the story.
const (
	resourceName = "web"
	vmName       = "web"
)

// Relative paths count from the file's directory: a whole host in one place.
const settingsFile = `node-name = %q
resource-files = ["*.res"]
vm-files = ["*.vm.toml"]
drbd-conf = ""
control-socket = "run/polluxd.sock"
state-dir = "state"

[nbd]
socket = "run/nbd.sock"

[ha]
socket = "run/polluxha.sock"
embedded-etcd = %t

[log]
format = "console"
`

const managedTable = `
[resource.web]
manager = "internal"
`

// The times of the connection are short enough for the speeds that are promised,
// and long enough for a machine that is shared.
const resourceFile = `global { disable-ip-verification; }

resource %s {
    device     /dev/drbd1 minor 1;
    meta-disk  internal;
    net {
        protocol      C;
        connect-int   2;
        ping-int      2;
        ping-timeout  10;
        timeout       15;
    }
    disk {
        on-io-error  detach;
        resync-rate  100M;
        c-max-rate   200M;
        c-min-rate   100M;
    }
%s}
`

// The console shows the first line of the kernel at once: its time is when the
// kernel starts.
const vmFile = `name = %q
resources = [%q]
memory = "192M"
network = "tap:%s"
console = "console.log"
stop-timeout = "40s"
target-role = "stopped"
extra-args = ["-no-reboot"]

[boot]
kernel = %q
initrd = %q
cmdline = "console=ttyS0 earlycon=uart8250,io,0x3f8 loglevel=6 panic=-1 mitigations=off pollux.ip=%s/24"
`

const replicationPort = 7788

// configure writes the files of all hosts. The resource's and the machine's are
// the same everywhere, as they are in real life.
func (r *Rack) configure(guest string, arbiter Arbiter) error {
	var on strings.Builder
	for _, h := range r.Hosts {
		if h.Data {
			fmt.Fprintf(&on, "    on %s {\n        disk       %q;\n        address    ipv4 %s:%d;\n    }\n",
				h.Name, h.disk.Device, h.Address(Replication), replicationPort)
		}
	}
	resource := fmt.Sprintf(resourceFile, resourceName, on.String())
	vm := fmt.Sprintf(vmFile, vmName, resourceName, machineTap,
		filepath.Join(guest, "vmlinuz"), filepath.Join(guest, "initramfs.cpio"), machineAddress)
	for _, h := range r.Hosts {
		files := map[string]string{"pollux.toml": fmt.Sprintf(settingsFile, h.Name, arbiter == ArbiterEtcd)}
		if h.Data {
			files["web.res"], files["web.vm.toml"] = resource, vm
			if arbiter != "" {
				files["pollux.toml"] += managedTable
			}
		}
		errs := []error{os.MkdirAll(h.path("run"), 0o700)}
		for name, text := range files {
			errs = append(errs, os.WriteFile(h.path(name), []byte(text), 0o600))
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	return nil
}
