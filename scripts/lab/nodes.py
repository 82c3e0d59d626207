"""nodes: the two sides of the interop test, with one set of commands.

Kernel is a guest's drbd.ko, Pollux is polluxd and polluxadm on this machine.
A Kernel can stand in for Pollux: then the test is checked against the original.
"""
import json
import os
import re
import signal
import socket

import lab

# fio's common part: every block is read back and compared. direct=1 keeps the
# guest's page cache out; one flush in 64 writes ends epochs in between.
FIO = ('--name=verify --rw=randwrite --bsrange=4k-64k --blockalign=4k --direct=1 --iodepth=8 --fsync=64 '
       '--verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0 --minimal').split()


# Net options of both nodes.
NET = 'verify-alg crc32c;'


class State(dict):
    """cs, ro and ds as in /proc/drbd, each from this node's point of view; oos in KiB."""

    def __str__(self):
        return ' '.join(f'{k}:{v}' for k, v in self.items())


def fio_arguments(offset, size, more=()):
    return [*FIO, f'--offset={offset}', f'--size={size}', *more]


class Kernel:
    def __init__(self, guest):
        self.guest, self.name = guest, guest.name
        self.listen_port = guest.drbd_port

    def prepare(self, peer_port, net=''):
        """Fresh metadata for a resource whose peer listens on that port of this machine."""
        self.configure(peer_port, net)
        self.guest.sh('drbdadm create-md --force r0')

    def configure(self, peer_port, net=''):
        self.guest.configure(peer_port, net=NET + net)

    def adm(self, *words):
        return self.guest.sh('drbdadm ' + ' '.join(words))

    def state(self):
        p = self.guest.proc_drbd()
        return State((k, p.get(k, 'none')) for k in ('cs', 'ro', 'ds', 'oos'))

    def fio(self, offset, size):
        self.guest.sh('fio ' + ' '.join(fio_arguments(offset, size, ['--ioengine=libaio', '--filename=/dev/drbd1'])), 90)

    def discard(self, offset, size):
        """Discard of the range, then zeroes over as much behind it: P_TRIM and P_ZEROES."""
        tool = '/usr/sbin/blkdiscard'  # the shell's own has no -z
        self.guest.sh(f'{tool} -o {offset} -l {size} /dev/drbd1 && {tool} -z -o {offset + size} -l {size} /dev/drbd1')

    def checksum(self, size):
        """md5 of the first size bytes (a multiple of 64 KiB) of the backing disk, read in the guest past its page cache."""
        return self.guest.sh(f'dd if=/dev/vda iflag=direct bs=64k count={size >> 16} 2>/dev/null | md5sum', 60).split()[0]

    def image(self):
        return self.guest.disk

    def resynced(self, mark):
        """[(role of this node, KiB)] of the resyncs that began since that mark of the kernel's log."""
        found = re.findall(r'Began resync as (\w+) \(will sync (\d+) KB', '\n'.join(self.guest.kernel_log_since(mark)))
        return [(role, int(kib)) for role, kib in found]


class Pollux:
    def __init__(self, l, size):
        self.lab, self.name = l, 'pollux'
        self.listen_port = lab.free_ports(1)[0]
        self.bin = os.path.abspath(os.environ.get('POLLUX_BIN', os.path.join(lab.ROOT, 'bin')))
        self.dir = os.path.join(l.run, 'pollux')
        self.toml = os.path.join(self.dir, 'pollux.toml')
        self.uri = f'nbd+unix:///r0?socket={self.dir}/nbd.sock'
        os.mkdir(self.dir)
        with open(self.image(), 'wb') as f:
            f.truncate(size)
        for program in ('polluxd', 'polluxadm'):
            if not os.access(os.path.join(self.bin, program), os.X_OK):
                raise lab.Failure(f'{self.bin}/{program} is not there: run make build')

    def configure(self, peer_port, net=''):
        with open(f'{self.dir}/r0.res', 'w') as f:
            f.write(lab.resource_file(self.image(), ('pollux', '127.0.0.1', self.listen_port),
                                      ('kernel', '127.0.0.1', peer_port), net=NET + net))

    def prepare(self, peer_port, net=''):
        self.configure(peer_port, net)
        with open(self.toml, 'w') as f:
            f.write("""node-name = "pollux"
resource-files = ["r0.res"]
drbd-conf = ""
vm-files = []
control-socket = "adm.sock"
state-dir = "state"
attach-device = "none"

[nbd]
socket = "nbd.sock"

[log]
level = "info"
format = "json"
""")
        self.adm('create-md', '--force', 'r0')
        self.start()

    def start(self):
        self.lab.spawn('polluxd', [os.path.join(self.bin, 'polluxd'), '--config', self.toml])
        lab.wait_for("polluxd's control socket", 10, self.answers)

    def damage(self, offset):
        """Flips a byte of the disk, as a disk that lies would."""
        with open(self.image(), 'r+b') as f:
            f.seek(offset)
            byte = f.read(1)
            f.seek(offset)
            f.write(bytes([byte[0] ^ 0xff]))

    def answers(self):
        """Whether polluxd takes commands; a socket that a killed one left behind does not."""
        try:
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(f'{self.dir}/adm.sock')
            return True
        except OSError:
            return False

    def kill(self):
        """The crash of the daemon: kill -9 at whatever it is doing."""
        self.lab.end('polluxd', signal.SIGKILL)

    def adm(self, *words, limit=30):
        return self.lab.command([os.path.join(self.bin, 'polluxadm'), '--config', self.toml, *words], limit, merge=False)

    def state(self):
        """By cstate, role and dstate; oos from status --json."""
        cs, ro, ds = (self.adm(word, 'r0').strip() for word in ('cstate', 'role', 'dstate'))
        peer = self.status()['connections']
        oos = peer[0]['peer_devices'][0]['out-of-sync'] if peer and peer[0]['peer_devices'] else 'none'
        return State(cs=cs, ro=ro, ds=ds, oos=str(oos))

    def status(self):
        """Of r0, in the names of drbdsetup status --json."""
        return json.loads(self.adm('status', '--json', 'r0'))[0]

    def disagreement(self, ro):
        """What status --json shows differently from Connected UpToDate/UpToDate and roles ro, or None."""
        r = self.status()
        c = r['connections'][0]
        d, p = r['devices'][0], c['peer_devices'][0]
        seen = (c['connection-state'], p['replication-state'], r['role'] + '/' + c['peer-role'],
                d['disk-state'] + '/' + p['peer-disk-state'])
        want = ('Connected', 'Established', ro, 'UpToDate/UpToDate')
        return None if seen == want else f'status --json shows {seen}, expected {want}'

    def fio(self, offset, size):
        self.lab.command(['fio', *fio_arguments(offset, size, ['--ioengine=nbd', '--uri=' + self.uri])], 90)

    def discard(self, offset, size):
        """TRIM of the range, then WRITE_ZEROES over as much behind it, half of that without holes."""
        client = Client(self.uri)
        try:
            client.h.trim(size, offset)
            client.h.zero(size // 2, offset + size)
            client.h.zero(size // 2, offset + size + size // 2, flags=client.nbd.CMD_FLAG_NO_HOLE)
        finally:
            client.close()

    def image(self):
        return f'{self.dir}/r0.img'


class Client:
    """An NBD client that knows when each reply came, in ns of CLOCK_MONOTONIC."""

    def __init__(self, uri):
        import nbd  # python3-libnbd: only this part needs it
        import time
        self.nbd, self.now = nbd, time.monotonic_ns
        self.h = nbd.NBD()
        self.h.connect_uri(uri)

    def finish(self, cookies):
        while cookies:
            self.h.poll(20000)
            cookies = [c for c in cookies if not self.h.aio_command_completed(c)]

    def write(self, offsets, size=4096, fua=False, blocks=None):
        """Writes blocks (random unless given) at all the offsets at once; returns when all are answered."""
        flags = self.nbd.CMD_FLAG_FUA if fua else 0
        buffers = [self.nbd.Buffer.from_bytearray(bytearray(b)) for b in blocks or [os.urandom(size) for _ in offsets]]
        self.finish([self.h.aio_pwrite(b, o, flags=flags) for b, o in zip(buffers, offsets)])
        return self.now()

    def flush(self):
        self.h.flush()
        return self.now()

    def close(self):
        self.h.shutdown()
