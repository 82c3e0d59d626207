"""pair: two guests, alpha and bravo, as an admin has them: DRBD and Pollux installed on both.

    with lab.Lab('adopt') as l:
        alpha, bravo = pair.start(l, size)
        bravo.sh('drbdadm up web-root')

They are joined by a network of their own, 10.1.1.31 and 10.1.1.32. /dev/vg0/web-root is
the disk; /etc, /var/lib and the programs lie on a second one, so what a program
made durable there outlives a crash. boot() starts what systemctl has enabled.
"""
import os
import re
import shutil
import socket
import subprocess

import lab

PROGRAMS = ('polluxd', 'polluxadm', 'polluxmeta')
KEPT = ('/etc/drbd.conf', '/etc/drbd.d', '/etc/pollux', '/etc/pollux.d', '/etc/systemd', '/var/lib/pollux', '/var/lib/drbd')

# As Debian's, but without Debian's comments; the rate only shortens the run.
DRBD_CONF = 'include "drbd.d/global_common.conf";\ninclude "drbd.d/*.res";\n'
GLOBAL_COMMON = 'global { usage-count no; }\ncommon { disk { c-plan-ahead 0; resync-rate 400M; c-min-rate 0; } }\n'

# The few words of systemctl that a document about these two needs; the guest has
# no systemd. What enable makes is what systemd's makes: a link.
SYSTEMCTL = r"""#!/bin/sh
wants=/etc/systemd/system/multi-user.target.wants
word=$1; shift
if [ "$1" = --now ]; then now=1; shift; fi
case $1 in *.*) unit=$1 ;; *) unit=$1.service ;; esac
mkdir -p $wants
case $word in
enable) ln -sf "/lib/systemd/system/$unit" "$wants/$unit"; [ -z "$now" ] || exec "$0" start "$unit" ;;
disable) rm -f "$wants/$unit"; [ -z "$now" ] || exec "$0" stop "$unit" ;;
start)
    case $unit in
    polluxd.service)
        polluxadm status >/dev/null 2>&1 && exit 0
        (setsid polluxd >>/keep/polluxd.log 2>&1 </dev/null & echo $! >/run/polluxd.pid)
        until polluxadm status >/dev/null 2>&1; do
            kill -0 "$(cat /run/polluxd.pid)" 2>/dev/null || { tail -3 /keep/polluxd.log; exit 1; }
            sleep 0.2
        done ;;
    drbd.service) drbdadm up all ;;
    drbd@*.target) name=${unit#drbd@}; drbdadm up "${name%.target}" ;;
    *) echo "Unit $unit not found." >&2; exit 5 ;;
    esac ;;
stop)
    case $unit in
    polluxd.service) kill "$(cat /run/polluxd.pid)"; while polluxadm status >/dev/null 2>&1; do sleep 0.2; done ;;
    drbd.service) drbdadm down all ;;
    esac ;;
boot) for link in "$wants"/*; do [ ! -L "$link" ] || "$0" start "${link##*/}"; done ;;
*) echo "systemctl: no $word here" >&2; exit 1 ;;
esac
"""

PREPARE = """
hostname {name}; echo '127.0.0.1 localhost {name}' >/etc/hosts
ip link set eth1 up; ip addr add {address}/24 dev eth1
modprobe ext4; modprobe nbd nbds_max=4
mkdir -p /keep /srv/web /run/systemd/system /dev/vg0
mount -t ext4 /dev/vdb /keep
for p in {kept}; do rm -rf $p; mkdir -p ${{p%/*}}; ln -s /keep$p $p; done
for p in /keep/usr/sbin/*; do ln -sf $p /usr/sbin/; done
ln -s /dev/vda /dev/vg0/web-root
"""


def build(l):
    """The programs for the guests, without cgo: they have no libc of this machine's."""
    where = os.path.join(l.run, 'programs')
    os.mkdir(where)
    subprocess.run(['go', 'build', '-buildvcs=false', '-o', where + '/'] + [f'./cmd/{p}' for p in PROGRAMS],
                   cwd=os.environ.get('POLLUX_SRC', lab.ROOT), check=True, env=dict(os.environ, CGO_ENABLED='0'))
    return where


def free_udp_ports():
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for s in socks:
        s.bind(('127.0.0.1', 0))
    ports = [s.getsockname()[1] for s in socks]
    for s in socks:
        s.close()
    return ports


def start(l, size, resource):
    """Boots both; resource is the text of /etc/drbd.d/web-root.res. The disks are blank."""
    programs, (a, b) = build(l), free_udp_ports()
    return Node(l, 'alpha', 31, size, (a, b), programs, resource), Node(l, 'bravo', 32, size, (b, a), programs, resource)


class Node(lab.Guest):
    def __init__(self, l, name, number, size, ports, programs, resource):
        self.lab, self.name, self.size = l, name, size
        self.address = f'10.1.1.{number}'
        self.drives = []  # plain files, no logdisks
        self.ssh_port, self.drbd_port = lab.free_ports(2)
        self.run = os.path.join(l.run, name)
        self.disk, self.state = os.path.join(self.run, 'vda.raw'), os.path.join(self.run, 'vdb.ext4')
        os.mkdir(self.run)
        self.lab.command([os.path.join(lab.HERE, 'build')], limit=180)
        with open(self.disk, 'wb') as f:
            f.truncate(size)
        self.make_state(programs, resource)
        mine, theirs = ports
        self.env = dict(
            LAB_RUN=self.run, LAB_DISK=self.disk, LAB_DISK_B=self.state, LAB_SSH_PORT=str(self.ssh_port),
            LAB_DRBD_PORT=str(self.drbd_port),
            LAB_QEMU=f'-netdev socket,id=n1,udp=127.0.0.1:{theirs},localaddr=127.0.0.1:{mine} '
                     f'-device virtio-net-pci,netdev=n1,mac=52:54:00:10:01:{number}')
        self.boot()

    def make_state(self, programs, resource):
        """The second disk: a file system with what is installed and configured."""
        root = os.path.join(self.run, 'root')
        for d in ('etc/drbd.d', 'etc/pollux', 'etc/pollux.d', 'etc/systemd', 'var/lib/pollux', 'var/lib/drbd', 'usr/sbin'):
            os.makedirs(os.path.join(root, d))
        for path, text in (('etc/drbd.conf', DRBD_CONF), ('etc/drbd.d/global_common.conf', GLOBAL_COMMON),
                           ('etc/drbd.d/web-root.res', resource), ('usr/sbin/systemctl', SYSTEMCTL)):
            with open(os.path.join(root, path), 'w') as f:
                f.write(text)
        os.chmod(os.path.join(root, 'usr/sbin/systemctl'), 0o755)
        for p in PROGRAMS:
            shutil.copy(os.path.join(programs, p), os.path.join(root, 'usr/sbin', p))
        self.lab.command(['/usr/sbin/mkfs.ext4', '-q', '-F', '-d', root, self.state, '192M'])
        shutil.rmtree(root)

    def boot(self):
        super().boot()
        self.sh(PREPARE.format(name=self.name, address=self.address, kept=' '.join(KEPT)), 60)
        self.sh('systemctl boot', 60)

    def state_of(self, minor=1):
        """cs, ro and ds of the kernel's minor; empty if it does not have it."""
        p = self.proc_drbd(minor)
        return ' '.join(f'{k}:{p[k]}' for k in ('cs', 'ro', 'ds')) if 'ro' in p else ''

    def resyncs_since(self, mark, minors=(1,)):
        """[(role of this node, bits)] of the resyncs of these minors that began in the kernel since that mark."""
        found = re.findall(r'drbd(\d+): Began resync as (\w+) \(will sync \d+ KB \[(\d+) bits set\]', '\n'.join(self.kernel_log_since(mark)))
        return [(role, int(bits)) for minor, role, bits in found if int(minor) in minors]

    def keep_logs(self):
        for what, command in (('dmesg', 'dmesg'), ('polluxd', 'cat /keep/polluxd.log')):
            try:
                with open(os.path.join(self.lab.out, f'{self.name}.{what}'), 'w') as f:
                    f.write(self.sh(command, 20, None))
            except lab.Failure:
                pass  # the guest is gone; the rest is worth keeping


def data_bytes(size):
    """What internal metadata leaves of a disk of size bytes (a multiple of 4 KiB): the bitmap's beginning."""
    return size - 4096 - 8 * 4096 - 4096 * -(-size // (128 << 20))


def differ(alpha, bravo):
    """The first place where the two disks differ outside the metadata, or None."""
    left = data_bytes(alpha.size)
    with open(alpha.disk, 'rb') as a, open(bravo.disk, 'rb') as b:
        at = 0
        while left > 0:
            n = min(left, 1 << 20)
            x, y = a.read(n), b.read(n)
            if x != y:
                return at + next(i for i in range(n) if x[i] != y[i])
            at, left = at + n, left - n
    return None
