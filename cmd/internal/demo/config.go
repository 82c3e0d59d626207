package demo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/pollux-project/pollux/cmd/internal/demo/storage"
)

// Names in the story.
const (
	resourceName = "web"
	vmName       = "web"
	clusterName  = "demo"
)

// Ports of each node: replication, and what polluxha listens on.
const (
	replicationPort = 7788
	managerPort     = 7790
)

// wanted are all ports that a node listens on; the last two are etcd's.
var wanted = []int{replicationPort, managerPort, 2379, 2380}

// freeNetwork returns the first bytes of three loopback addresses on which
// nobody listens: all of 127.0.0.0/8 is this machine's.
func freeNetwork() (string, error) {
	var failed error
	for range 20 {
		network := fmt.Sprintf("127.%d.%d.", 64+rand.IntN(128), rand.IntN(256))
		if failed = free(network); failed == nil {
			return network, nil
		}
	}
	return "", fmt.Errorf("no free ports on the loopback: %w", failed)
}

func free(network string) error {
	for number := 1; number <= 3; number++ {
		for _, port := range wanted {
			l, err := net.Listen("tcp4", fmt.Sprintf("%s%d:%d", network, number, port))
			if err != nil {
				return err
			}
			if err := l.Close(); err != nil {
				return err
			}
		}
	}
	return nil
}

// configure writes the nodes' files and disks. The resource's and the VM's are
// the same on both data nodes, as they are on two real ones.
func configure(ctx context.Context, data [2]*node, witness *node, guest string, volumeBytes int64) error {
	var on strings.Builder
	for _, n := range data {
		fmt.Fprintf(&on, "    on %s {\n        disk       %q;\n        address    ipv4 %s:%d;\n    }\n", n.name, n.image(), n.address, replicationPort)
	}
	files := map[string]string{
		"web.res":     fmt.Sprintf(resourceFile, resourceName, on.String()),
		"web.vm.toml": fmt.Sprintf(vmFile, vmName, resourceName, filepath.Join(guest, "vmlinuz"), filepath.Join(guest, "initramfs.cpio")),
	}
	for _, n := range []*node{data[0], data[1], witness} {
		if err := os.Mkdir(n.dir, 0o700); err != nil {
			return err
		}
		errs := []error{os.WriteFile(n.path("pollux.toml"), fmt.Appendf(nil, settingsFile, n.name), 0o600)}
		for name, text := range files {
			if !n.witness {
				errs = append(errs, os.WriteFile(n.path(name), []byte(text), 0o600))
			}
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	// The first node's disk has a filesystem already, the other one's is empty.
	if err := storage.MakeFilesystemImage(ctx, data[0].image(), volumeBytes-metadataBytes); err != nil {
		return err
	}
	if err := os.Truncate(data[0].image(), volumeBytes); err != nil {
		return err
	}
	return storage.MakeImage(data[1].image(), volumeBytes)
}

// metadataBytes is more than what Pollux's metadata take at a disk's end.
const metadataBytes = 1 << 20

// Relative paths count from the file's directory: a whole node in one place.
const settingsFile = `node-name = %q
resource-files = ["*.res"]
vm-files = ["*.vm.toml"]
drbd-conf = ""
control-socket = "polluxd.sock"
state-dir = "state"

[nbd]
socket = "nbd.sock"

[ha]
socket = "polluxha.sock"
embedded-etcd = true

[resource.web]
manager = "internal"

[log]
format = "console"
`

// All nodes have one machine here, so their names can't be told from addresses.
const resourceFile = `global { disable-ip-verification; }

resource %s {
    device     /dev/drbd1 minor 1;
    meta-disk  internal;
    net {
        protocol     C;
        connect-int  1;
    }
    disk {
        resync-rate  100M;
        c-max-rate   200M;
        c-min-rate   100M;
    }
%s}
`

const vmFile = `name = %q
resources = [%q]
memory = "192M"
console = "console.log"
stop-timeout = "40s"
target-role = "stopped"
extra-args = ["-no-reboot"]

[boot]
kernel = %q
initrd = %q
cmdline = "console=ttyS0 quiet loglevel=1 panic=-1 mitigations=off"
`
