"""nodes: the two sides of the interop test, with one set of commands.

Kernel is a guest's drbd.ko, Pollux is polluxd and polluxadm on this machine.
Sections of drbd.conf are dicts here: {'protocol': 'A', 'ping-int': 1}.
"""
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import threading
import time

import faults
import lab

MIB = 1 << 20

# fio's common part: every block is read back and compared. direct=1 keeps the
# guest's page cache out; one flush in 64 writes ends epochs in between.
FIO = ('--name=verify --rw=randwrite --bsrange=4k-64k --blockalign=4k --direct=1 --iodepth=8 --fsync=64 '
       '--verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0 --minimal').split()

# What both nodes have unless a scenario wants something else. A lost connection
# is tried again each second (10 is the default): the test would wait for it.
NET = {'protocol': 'C', 'verify-alg': 'crc32c', 'connect-int': 1}
DISK = {'c-plan-ahead': 0, 'resync-rate': '400M', 'c-min-rate': 0}


class State(dict):
    """cs, ro and ds as in /proc/drbd, each from this node's point of view; oos in KiB."""

    def __str__(self):
        return ' '.join(f'{k}:{v}' for k, v in self.items())


def section(defaults, options):
    """The inside of a section: defaults with options over them; an option that is None is left out."""
    return ' '.join(f'{k} {v};' for k, v in {**defaults, **options}.items() if v is not None)


def fio_arguments(offset, size, more=()):
    return [*FIO, f'--offset={offset}', f'--size={size}', *more]


def rate_arguments(size, seconds):
    """Slows fio down so that writing size bytes takes about that long."""
    return [f'--rate=,{round(size / seconds)}'] if seconds else []


class Node:
    """What the two have in common; a subclass has name, listen_port, volumes, adm, state, images."""

    def is_primary(self):
        return self.state()['ro'].startswith('Primary')

    def resource_text(self, disks, me, peer, net, disk, more):
        return lab.resource_file(disks, me, peer, section(NET, net), section(DISK, disk), more)

    def wait_state(self, limit=20, volume=0, **want):
        """Waits until this node shows one of the values for each key: wait_state(cs=('StandAlone',))."""
        want = {k: v if isinstance(v, tuple) else (v,) for k, v in want.items()}
        lab.wait_for(f'{self.name}: {want}', limit, lambda: all(self.state(volume)[k] in v for k, v in want.items()))

    def blank(self, full=False):
        """Makes the disks all zeroes, or full of random data, behind the node's back: it is down."""
        for image, size in zip(self.images(), self.sizes):
            with open(image, 'r+b') as f:
                f.truncate(0)
                f.write(os.urandom(size) if full else b'')
                f.truncate(size)

    def damage(self, offset, volume=0):
        """Flips a byte of the disk, as a disk that lies would."""
        with open(self.images()[volume], 'r+b') as f:
            f.seek(offset)
            byte = f.read(1)
            f.seek(offset)
            f.write(bytes([byte[0] ^ 0xff]))

    def data(self, offset, size, volume=0):
        """What the disk holds there."""
        with open(self.images()[volume], 'rb') as f:
            f.seek(offset)
            return f.read(size)

    def image_sum(self, size, volume=0):
        return hashlib.md5(self.data(0, size, volume)).hexdigest()


class Kernel(Node):
    def __init__(self, guest, sizes):
        self.guest, self.name, self.conf = guest, guest.name, ''
        self.sizes, self.volumes = sizes, len(sizes)
        self.devices = ['/dev/vda', '/dev/vdb']
        self.listen_port = guest.drbd_port

    def device(self, volume=0):
        return f'/dev/drbd{volume + 1}'

    def revive(self):
        """Boots the guest again if it is off or does not answer."""
        try:
            if not self.guest.lab.alive(self.guest.name + '-qemu'):
                raise lab.Failure('the guest is off')
            self.guest.sh('true', 20)
        except lab.Failure:
            self.kill()
            self.start()

    def configure(self, peer_port, net, disk, more=''):
        self.conf = self.resource_text(self.devices[:self.volumes], ('kernel', lab.GUEST_IP, lab.GUEST_PORT),
                                       ('peer', lab.HOST_IN_GUEST, peer_port), net, disk, more)
        self.guest.write_file('/etc/drbd.conf', self.conf)

    def kill(self):
        """The crash of the node: what reached its disks stays, or not, as they wish. Returns the sectors lost."""
        return sum(self.guest.kill())

    def start(self):
        """Boots it again after kill; nothing is up then."""
        self.guest.boot()
        self.guest.write_file('/etc/drbd.conf', self.conf)

    def adm(self, *words, limit=30, ok=(0,)):
        return self.guest.sh('drbdadm ' + ' '.join(words), limit, ok)

    def down(self):
        """Down, whatever state it is in; a kernel that does not answer gets a new boot."""
        try:
            self.guest.sh('drbdadm down r0 || { drbdadm disconnect --force r0; drbdadm detach --force r0; drbdadm down r0; }', 20)
        except lab.Failure:
            self.kill()
            self.start()

    def renew(self, full):
        """Blank disks with new metadata, for the file that configure wrote."""
        self.down()
        self.blank(full)
        self.adm('create-md', '--force', 'r0')

    def state(self, volume=0):
        p = self.guest.proc_drbd(1 + volume)
        return State((k, p.get(k, 'none')) for k in ('cs', 'ro', 'ds', 'oos'))

    def protocol(self):
        """The letter of the protocol in force."""
        found = re.search(r'^ *1: .* ds:\S+ (\w) ', self.guest.sh('cat /proc/drbd'), re.M)
        return found.group(1) if found else 'none'

    def written(self, volume=0):
        """KiB written to the local disk since it was attached."""
        return int(self.guest.proc_drbd(1 + volume).get('dw', 0))

    def size(self, volume=0):
        """Bytes that the volume holds: what both nodes agreed on."""
        return 512 * int(self.guest.sh(f'cat /sys/block/drbd{volume + 1}/size'))

    def fio(self, offset, size, seconds=0, volume=0, more=()):
        arguments = fio_arguments(offset, size, [*rate_arguments(size, seconds), '--ioengine=libaio', '--filename=' + self.device(volume), *more])
        self.guest.sh('fio ' + ' '.join(arguments), 120 + seconds)

    def discard(self, offset, size):
        """Discard of the range, then zeroes over as much behind it: P_TRIM and P_ZEROES."""
        tool = '/usr/sbin/blkdiscard'  # the shell's own has no -z
        self.guest.sh(f'{tool} -o {offset} -l {size} /dev/drbd1 && {tool} -z -o {offset + size} -l {size} /dev/drbd1')

    def checksum(self, size):
        """md5 of the first size bytes (a multiple of 64 KiB) of the backing disk, read in the guest past its page cache."""
        return self.guest.sh(f'dd if=/dev/vda iflag=direct bs=64k count={size >> 16} 2>/dev/null | md5sum', 60).split()[0]

    def images(self):
        return self.guest.disks

    def log(self, mark):
        return '\n'.join(self.guest.kernel_log_since(mark))

    def resynced(self, mark):
        """[(role of this node, KiB)] of the resyncs that began since that mark of the kernel's log."""
        return [(role, int(kib)) for role, kib in re.findall(r'Began resync as (\w+) \(will sync (\d+) KB', self.log(mark))]


class Pollux(Node):
    def __init__(self, l, sizes):
        self.lab, self.name = l, 'pollux'
        self.sizes, self.volumes = sizes, len(sizes)
        self.listen_port = lab.free_ports(1)[0]
        self.bin = os.path.abspath(os.environ.get('POLLUX_BIN', os.path.join(lab.ROOT, 'bin')))
        self.dir = os.path.join(l.run, 'pollux')
        self.toml = os.path.join(self.dir, 'pollux.toml')
        os.mkdir(self.dir)
        for image in self.images():
            open(image, 'wb').close()
        self.blank()
        for program in ('polluxd', 'polluxadm'):
            if not os.access(os.path.join(self.bin, program), os.X_OK):
                raise lab.Failure(f'{self.bin}/{program} is not there: run make build')
        self.drives = []
        self.write_toml()

    def write_toml(self):
        # Through a logdisk's file every read goes to the disk: none is answered by the page cache.
        more = '\n[resource.r0]\nio = "direct"\n' if self.drives else ''
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
""" + more)

    def uri(self, volume=0):
        export = f'r0/{volume}' if self.volumes > 1 else 'r0'
        return f'nbd+unix:///{export}?socket={self.dir}/nbd.sock'

    def configure(self, peer_port, net, disk, more=''):
        with open(f'{self.dir}/r0.res', 'w') as f:
            f.write(self.resource_text(self.paths(), ('pollux', '127.0.0.1', self.listen_port),
                                       ('kernel', '127.0.0.1', peer_port), net, disk, more))

    def paths(self):
        """Its disks as polluxd opens them."""
        return [d.mount for d in self.drives] or self.images()

    def plug(self, wish=''):
        """Makes its disks logdisks with that wish, for the next start: polluxd is ended."""
        self.lab.end('polluxd')
        before = self.paths()
        self.drives = [faults.Disk(self.lab, f'pollux-{i}', size, image)
                       for i, (image, size) in enumerate(zip(self.images(), self.sizes))]
        for d in self.drives:
            d.wish(wish)
            d.plug()
        self.use_paths(before)

    def unplug(self):
        """The opposite of plug; nothing is lost."""
        self.lab.end('polluxd')
        before = self.paths()
        for d in self.drives:
            d.wish()
            d.unplug()
            d.close()
        self.drives = []
        self.use_paths(before)

    def use_paths(self, before):
        with open(f'{self.dir}/r0.res') as f:
            text = f.read()
        for old, new in zip(before, self.paths()):
            text = text.replace(f'disk {old};', f'disk {new};')
        with open(f'{self.dir}/r0.res', 'w') as f:
            f.write(text)
        self.write_toml()

    def power_cut(self):
        """polluxd stops at once, and its disks lose what was not flushed, as they wish. Returns the sectors lost."""
        daemon = self.process()
        daemon.send_signal(signal.SIGSTOP)
        lab.wait_for('polluxd to stop', 5, lambda: open(f'/proc/{daemon.pid}/stat').read().rsplit(')', 1)[1].split()[0] == 'T')
        lost = sum(d.unplug() for d in self.drives)
        self.kill()
        for d in self.drives:
            d.plug()
        return lost

    def process(self):
        return next(child for name, child in self.lab.children if name == 'polluxd')

    def start(self):
        self.lab.spawn('polluxd', [os.path.join(self.bin, 'polluxd'), '--config', self.toml])
        lab.wait_for("polluxd's control socket", 20, self.answers)

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

    def down(self):
        """Down, whatever state it is in; a polluxd that does not do it is killed and started again."""
        try:
            self.adm('down', 'r0')
        except lab.Failure:
            self.kill()
            self.start()
            self.adm('down', 'r0')

    def renew(self, full):
        """Blank disks with new metadata, under a new polluxd, for the file that configure wrote."""
        self.lab.end('polluxd')
        shutil.rmtree(f'{self.dir}/state', ignore_errors=True)  # it may have been Primary
        self.blank(full)
        self.adm('create-md', '--force', 'r0')
        self.start()

    def adm(self, *words, limit=30, ok=(0,), merge=False):
        return self.lab.command([os.path.join(self.bin, 'polluxadm'), '--config', self.toml, *words], limit, ok, merge=merge)

    def state(self, volume=0):
        """By cstate, role and dstate; oos from status --json."""
        cs, ro, ds = (self.adm(word, f'r0/{volume}', ok=None).strip() for word in ('cstate', 'role', 'dstate'))
        peer = self.status()['connections']
        oos = peer[0]['peer_devices'][volume]['out-of-sync'] if peer and peer[0]['peer_devices'] else 'none'
        return State(cs=cs, ro=ro, ds=ds, oos=str(oos))

    def status(self):
        """Of r0, in the names of drbdsetup status --json."""
        return json.loads(self.adm('status', '--json', 'r0'))[0]

    def why(self):
        return self.status().get('pollux-why') or ''

    def protocol(self):
        return self.status()['connections'][0]['pollux-protocol']

    def last_error(self):
        """Why it is not connected, as status says it."""
        return self.status().get('pollux-last-error') or ''

    def written(self, volume=0):
        return int(self.status()['devices'][volume]['written'])

    def size(self, volume=0):
        return int(self.status()['devices'][volume]['size']) << 10

    def disagreement(self, ro):
        """What status --json shows differently from Connected UpToDate/UpToDate and roles ro, or None."""
        r = self.status()
        c = r['connections'][0]
        for d, p in zip(r['devices'], c['peer_devices']):
            seen = (c['connection-state'], p['replication-state'], r['role'] + '/' + c['peer-role'],
                    d['disk-state'] + '/' + p['peer-disk-state'])
            want = ('Connected', 'Established', ro, 'UpToDate/UpToDate')
            if seen != want:
                return f'status --json shows {seen}, expected {want}'
        return None

    def log_size(self):
        return os.path.getsize(os.path.join(self.lab.out, 'polluxd.out'))

    def log(self, since=0):
        """polluxd's log from that byte on."""
        with open(os.path.join(self.lab.out, 'polluxd.out'), errors='replace') as f:
            f.seek(since)
            return f.read()

    def fio(self, offset, size, seconds=0, volume=0, more=()):
        arguments = fio_arguments(offset, size, [*rate_arguments(size, seconds), '--ioengine=nbd', '--uri=' + self.uri(volume), *more])
        self.lab.command(['fio', *arguments], 120 + seconds)

    def discard(self, offset, size):
        """TRIM of the range, then WRITE_ZEROES over as much behind it, half of that without holes."""
        client = Client(self.uri())
        try:
            client.h.trim(size, offset)
            client.h.zero(size // 2, offset + size)
            client.h.zero(size // 2, offset + size + size // 2, flags=client.nbd.CMD_FLAG_NO_HOLE)
        finally:
            client.close()

    def images(self):
        return [f'{self.dir}/r0-{i}.img' for i in range(self.volumes)]


class Client:
    """An NBD client that knows when each reply came, in ns of CLOCK_MONOTONIC."""

    def __init__(self, uri):
        import nbd  # python3-libnbd: only this part needs it
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


class Recorder(threading.Thread):
    """A client of our NBD export that writes blocks of 4 KiB and keeps what was acknowledged.

    It writes each block of its range again and again until stop(), or until the
    export goes away (died is the error then): acknowledged is {offset: [contents]},
    the last acknowledged one first, then those that may have replaced it.
    """

    def __init__(self, uri, offset, size, depth=16, seed=1):
        super().__init__(daemon=True)
        self.client, self.range, self.depth = Client(uri), range(offset, offset + size, 4096), depth
        self.rng, self.acknowledged, self.count, self.died, self.stopped = random.Random(seed), {}, 0, None, False
        self.start()

    def run(self):
        try:
            while not self.stopped:
                batch = {o: self.rng.randbytes(4096) for o in self.rng.sample(self.range, self.depth)}
                for o, block in batch.items():
                    self.acknowledged[o] = self.acknowledged.get(o, [bytes(4096)])[:1] + [block]
                self.client.write(list(batch), blocks=list(batch.values()))
                self.acknowledged.update((o, [block]) for o, block in batch.items())
                self.count += len(batch)
                self.pause()
        except self.client.nbd.Error as e:
            self.died = e

    def pause(self):
        """Between two batches."""

    def stop(self, limit=60):
        """Ends the writing; the last batch is answered then."""
        self.stopped = True
        self.join(limit)
        if self.is_alive():
            raise lab.Failure(f'writes to our export: no answer within {limit} s')
        if not self.died:
            self.client.close()

    def lost(self, node):
        """Acknowledged writes that the node's disk does not hold."""
        return [o for o, contents in self.acknowledged.items() if node.data(o, 4096) not in contents]
