"""twins: two guests, a and b, whose one disk each has one owner after the other.

    with lab.Lab('speed') as l:
        twins.build(l)
        a, b = twins.start(l, cache='unsafe')
        a.up(twins.Kernel, 'C')  # and b; then a.owner.primary(), a.owner.device
        a.down()

They are joined by a link of their own, 10.1.0.1 and 10.1.0.2. An owner is
drbd.ko, polluxd, md RAID-1 over the local disk and an nbd device, the NBD
server that is md's other leg, or nobody. All of them have the same disk, wire
and system calls below them, so what differs is theirs.

What each one guarantees when a write is answered: with DRBD and with Pollux
under protocol C, and with md, both disks have it, md's far one by an O_DIRECT
server (Server) or only the page cache of the far node (CachedServer). A flush
reaches both disks with all of them, but DRBD answers it when its own disk has
flushed: to the peer it sends a barrier. md has no write-behind. It marks the
remote leg write-mostly, so that all of them read locally, and has an internal
bitmap; it has no generations of data and no fencing, and after a split
nothing tells which copy is good.
"""
import os
import re
import shutil
import subprocess

import lab

MIB = 1 << 20
DISK = 72 * MIB
SIZE = 64 * MIB  # of the device that is measured; the rest is for metadata
PROGRAMS = ('polluxd', 'polluxadm')
ADDRESS = {'a': '10.1.0.1', 'b': '10.1.0.2'}
TICK = 100  # of /proc/stat, per second
ROUTE = '/usr/sbin/ip route change 10.1.0.0/24 dev eth1'

RES = """resource r0 {
    meta-disk internal;
    disk { c-plan-ahead 0; resync-rate 4096M; c-min-rate 0; }
    net { protocol %s; }
    on a { device /dev/drbd1 minor 1; disk /dev/vda; address 10.1.0.1:7789; }
    on b { device /dev/drbd1 minor 1; disk /dev/vda; address 10.1.0.2:7789; }
}"""
TOML = """node-name = "%s"
resource-files = ["/etc/r0.res"]
drbd-conf = ""
vm-files = []
control-socket = "adm.sock"
state-dir = "state"
attach-device = "%s"

[nbd]
socket = "nbd.sock"

[log]
level = "info"
format = "json"
"""
# What is counted in a guest; one line each: name, values.
COUNTS = r"""
echo uptime $(cat /proc/uptime)
echo $(head -n 1 /proc/stat)
grep -E '^ctxt' /proc/stat
echo net $(cat /sys/class/net/eth1/statistics/tx_packets /sys/class/net/eth1/statistics/rx_packets /sys/class/net/eth1/statistics/tx_bytes)
echo disk $(cat /sys/block/vda/stat)
[ -e /n/pid ] && echo daemon $(cut -d' ' -f14,15 /proc/$(cat /n/pid)/stat)
[ -e /n/pid ] && echo switches $(cat /proc/$(cat /n/pid)/task/*/status | awk '/ctxt/ { n += $2 } END { print n }')
true
"""
# The end of the process of /n/pid.
END = ('kill $(cat /n/pid); i=0; while [ -e /proc/$(cat /n/pid) ] && [ $i -lt 100 ]; '
       'do i=$((i + 1)); sleep 0.1; done; rm -f /n/pid')


def build(l):
    """The programs for the guests, without cgo: they have no libc of this machine's."""
    subprocess.run(['go', 'build', '-buildvcs=false', '-ldflags=-s -w', '-o', l.run + '/'] + [f'./cmd/{p}' for p in PROGRAMS],
                   cwd=os.environ.get('POLLUX_SRC', lab.ROOT), check=True, env=dict(os.environ, CGO_ENABLED='0'))


def start(l, cache):
    """Boots both and makes DRBD's metadata: a pair that is in sync and down. cache is QEMU's mode of the disks."""
    l.command([os.path.join(lab.HERE, 'build')], limit=180)
    a, b = (Guest(l, n, t, cache) for n, t in ('ab', 'ba'))
    for g in (a, b):
        g.wait()
    for g in (a, b):
        g.prepare(l.run)
    for g in (a, b):
        g.write_file('/etc/drbd.conf', 'global { usage-count no; }\n' + RES % 'C')
        g.sh('drbdadm create-md --force r0')
        g.up(Kernel, 'C')
    a.sh('i=0; until grep -q cs:Connected /proc/drbd; do i=$((i + 1)); [ $i -lt 60 ] || exit 1; sleep 0.5; done')
    # Both disks are all zeroes: that is the same data.
    a.sh('drbdadm new-current-uuid --clear-bitmap r0')
    a.owner.await_sync(20)
    for g in (a, b):
        g.down()
    return a, b


class Guest(lab.Guest):
    """A guest with a plain disk and a second network device to its twin."""

    def __init__(self, l, name, twin, cache):
        self.lab, self.name, self.owner = l, name, None
        self.ssh_port, self.drbd_port = lab.free_ports(2)
        self.run = os.path.join(l.run, name)
        self.disk = os.path.join(self.run, 'vda.raw')
        link = (f'-netdev dgram,id=n1,local.type=unix,local.path={l.run}/link-{name},'
                f'remote.type=unix,remote.path={l.run}/link-{twin} '
                f'-device virtio-net-pci,netdev=n1,mac=52:54:00:00:01:0{ord(name) - ord("a") + 1}')
        self.env = dict(LAB_RUN=self.run, LAB_DISK=self.disk, LAB_SSH_PORT=str(self.ssh_port),
                        LAB_DRBD_PORT=str(self.drbd_port), LAB_CACHE=cache, LAB_QEMU=link)
        os.mkdir(self.run)
        with open(self.disk, 'wb') as f:  # with all its blocks: none is found while it is measured
            for _ in range(DISK // MIB):
                f.write(bytes(MIB))
        l.spawn(name + '-qemu', [os.path.join(lab.HERE, 'guest'), 'run'], self.env)

    def wait(self):
        try:
            # On a busy machine two guests at once may boot for longer than one wait lasts.
            wait = f'{os.path.join(lab.HERE, "guest")} wait'
            self.lab.command(['sh', '-c', f'{wait} || {wait}'], 240, env=self.env)
            self.lab.spawn(self.name + '-ssh', [os.path.join(lab.HERE, 'guest'), 'master'], self.env)
        finally:
            if os.path.exists(f'{self.run}/console'):
                shutil.copy(f'{self.run}/console', os.path.join(self.lab.out, self.name + '-console.txt'))

    def prepare(self, programs):
        for program in PROGRAMS:
            self.lab.command([os.path.join(lab.HERE, 'guest'), 'put', f'{programs}/{program}', f'/usr/sbin/{program}'],
                             60, env=self.env)
        self.sh(f'chmod 755 /usr/sbin/pollux*; hostname {self.name}; mkdir -p /n; modprobe nbd nbds_max=1; '
                f'ip addr add {ADDRESS[self.name]}/24 dev eth1; ip link set eth1 up')

    def up(self, owner, protocol):
        """Gives the disk to an owner, one of the classes below."""
        self.owner = owner(self, protocol)
        self.owner.up()

    def down(self):
        self.owner.down()
        self.owner = None

    def background(self, command, ready):
        """Starts a process that outlives the ssh command, its pid in /n/pid, and waits until ready succeeds."""
        self.sh(f'(cd /n; exec setsid {command}) >>/n/log 2>&1 </dev/null & '
                f'echo $! >/n/pid; i=0; until {ready} >/dev/null 2>&1; do '
                'i=$((i + 1)); [ $i -lt 50 ] || { tail -n 3 /n/log; exit 1; }; sleep 0.2; done')

    def counts(self):
        found = {}
        for line in self.sh(COUNTS).splitlines():
            name, *values = line.split()
            found[name] = [float(v) for v in values]
        cpu, disk = found['cpu'], found['disk']
        return {
            'uptime': found['uptime'][0], 'ctxt': found['ctxt'][0],
            'guest_cpu': (sum(cpu[:3]) + sum(cpu[5:7])) / TICK,
            'tx_packets': found['net'][0], 'rx_packets': found['net'][1], 'tx_bytes': found['net'][2],
            'disk_writes': disk[4], 'disk_flushes': disk[15] if len(disk) > 15 else 0,
            'daemon_cpu': sum(found.get('daemon', [0])) / TICK, 'daemon_ctxt': found.get('switches', [0])[0],
        }

    def log_between(self, mark, begin, end):
        """Seconds between two lines of the kernel's log since that mark, the last of each kind."""
        log = '\n'.join(self.kernel_log_since(mark))
        found = [re.findall(rf'\[ *([\d.]+)\][^\n]*{words}', log) for words in (begin, end)]
        if not all(found):
            raise lab.Failure(f'guest {self.name}: the kernel\'s log since "{mark}" lacks "{begin}" or "{end}"')
        return float(found[1][-1]) - float(found[0][-1])


class Owner:
    """Who has a guest's disk. A subclass says what it needs beyond that: nothing."""
    device = '/dev/vda'
    attach = None  # fio's words for the device; None: the block device

    def __init__(self, guest, protocol):
        self.g, self.protocol = guest, protocol

    def up(self):
        """Takes the disk."""

    def down(self):
        """Gives it back."""

    def primary(self):
        """Makes device writable, with two good copies if there are two."""

    def secondary(self):
        """Ends what primary began."""

    def fio(self):
        return self.attach or f'--filename={self.device} --direct=1 --ioengine=libaio'


class Disk(Owner):
    """Nobody: the disk as it is, beside a twin that has nothing to do."""


class Replicated(Owner):
    """What DRBD and Pollux have in common: the command line."""
    device, tool = '/dev/drbd1', ''

    def adm(self, words, limit=60):
        return self.g.sh(f'{self.tool} {words} 2>&1', limit)

    def primary(self):
        self.await_sync(60)
        self.adm('primary r0')

    def secondary(self):
        self.adm('secondary r0')

    def down(self):
        # fio's last close may come a little later.
        self.g.sh(f'i=0; until {self.tool} down r0; do i=$((i + 1)); [ $i -lt 20 ] || exit 1; sleep 0.5; done')

    def await_sync(self, limit):
        """Waits for two good copies without using much of the one CPU."""
        self.g.sh(f'i=0; until {self.synced}; do i=$((i + 1)); [ $i -lt {limit * 2} ] || exit 1; sleep 0.5; done', limit * 3)


class Kernel(Replicated):
    tool, synced = 'drbdadm', 'grep -q "cs:Connected .* ds:UpToDate/UpToDate" /proc/drbd'

    def up(self):
        self.g.write_file('/etc/r0.res', RES % self.protocol)
        self.g.sh('(echo "global { usage-count no; }"; cat /etc/r0.res) >/etc/drbd.conf; drbdadm up r0')

    def seconds_of_resync(self, mark):
        return self.g.log_between(mark, 'Began resync as', 'Resync done')


class Polluxd(Replicated):
    """polluxd; in a with a block device of the guest's nbd driver."""
    tool = 'polluxadm --config /n/pollux.toml'
    synced = f'{tool} dstate r0 | grep -q ^UpToDate/UpToDate'
    blockdev = 'nbd'

    def up(self):
        g = self.g
        g.write_file('/etc/r0.res', RES % self.protocol)
        g.write_file('/n/pollux.toml', TOML % (g.name, self.blockdev if g.name == 'a' else 'none'))
        g.background('env $(cat /n/env 2>/dev/null) polluxd --config pollux.toml', f'{self.tool} status')
        self.adm('up r0')

    def down(self):
        super().down()
        self.g.sh(END)

    def seconds_of_resync(self, mark):
        begin, end = (daytime(self.g.sh(f"sed -n '/^{mark}$/,$p' /n/log | grep '{words}' | tail -n 1"))
                      for words in ('resync starts', 'resync finished'))
        return (end - begin) % 86400


class PolluxdSocket(Polluxd):
    """The same without a block device: what uses the disk speaks NBD itself, as QEMU does."""
    blockdev = 'none'
    attach = "--ioengine=nbd --uri='nbd+unix:///r0?socket=/n/nbd.sock'"


class Md(Owner):
    """md RAID-1 over the disk of a and, by the guest's nbd driver, that of b."""
    device = '/dev/md0'
    legs = {'a': '/dev/vda', 'b': '/dev/nbd0'}

    def up(self):
        # The rate is md's own limit, not the disk's, unless it is raised.
        # The full paths are Debian's programs: BusyBox's shell would take its own.
        self.g.sh('modprobe raid1; for x in min max; do echo 4000000 >/proc/sys/dev/raid/speed_limit_$x; done; '
                  f'{ROUTE} quickack 1; /usr/sbin/nbd-client {ADDRESS["b"]} 10809 /dev/nbd0 -N "" </dev/null')
        # SIZE leaves the metadata of DRBD at the end of the disk alone.
        self.g.sh(f'export MDADM_NO_UDEV=1; mdadm --create {self.device} --run --quiet --level=1 --raid-devices=2 '
                  f'--metadata=1.2 --bitmap=internal --assume-clean --size={SIZE >> 10} /dev/vda --write-mostly /dev/nbd0')

    def down(self):
        self.g.sh(f'export MDADM_NO_UDEV=1; i=0; until mdadm --stop --quiet {self.device}; do i=$((i + 1)); [ $i -lt 20 ] || exit 1; '
                  'sleep 0.5; done; mdadm --zero-superblock /dev/vda /dev/nbd0; /usr/sbin/nbd-client -d /dev/nbd0; '
                  f'{ROUTE} quickack 0')

    def await_sync(self, limit):
        self.g.sh(f'i=0; until grep -q "\\[UU\\]" /proc/mdstat; do i=$((i + 1)); [ $i -lt {limit * 2} ] || exit 1; sleep 0.5; done',
                  limit * 3)

    def replace(self, side):
        """The leg of that side is lost with all it knew, and a blank one takes its place."""
        leg, words = self.legs[side], '--write-mostly' if side == 'b' else ''
        self.g.sh(f'export MDADM_NO_UDEV=1; mdadm --quiet {self.device} --fail {leg}; '
                  f'i=0; until mdadm --quiet {self.device} --remove {leg}; do i=$((i + 1)); [ $i -lt 20 ] || exit 1; sleep 0.2; done; '
                  f'mdadm --zero-superblock {leg}; mdadm --quiet {self.device} --add {words} {leg}')

    def seconds_of_resync(self, mark):
        return self.g.log_between(mark, 'md: recovery of RAID array md0', 'md: md0: recovery done')


class Server(Owner):
    """md's leg in b: qemu-nbd, which answers a write when the disk has it (O_DIRECT, as DRBD and Pollux write)."""
    command = f'qemu-nbd --format=raw --cache=none --aio=native --persistent --shared=2 --bind={ADDRESS["b"]} --port=10809 /dev/vda'

    def up(self):
        # It sets no TCP_NODELAY: its replies would wait for delayed acknowledgements, but for the quickack of Md's route.
        self.g.background(self.command, 'grep -q ":2A39 " /proc/net/tcp')

    def down(self):
        self.g.sh(END)


class CachedServer(Server):
    """md's leg in b: nbdkit, which answers a write when it is in the page cache."""
    command = f'nbdkit --foreground --ipaddr={ADDRESS["b"]} --port=10809 file /dev/vda'


def daytime(line):
    """Seconds since midnight of a line of polluxd's log."""
    h, m, s = re.search(r'"time":"[^T]*T(\d+):(\d+):([\d.]+)', line).groups()
    return int(h) * 3600 + int(m) * 60 + float(s)
