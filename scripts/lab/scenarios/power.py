"""Power cuts and crashes under load: what was acknowledged is in both copies, what was flushed survives."""
import contextlib
import os
import subprocess
import threading
import time

import lab
import nodes
from bed import LOST, MIB
from scenario import scenario

EXTENT = 4 * MIB  # of the activity log: what a crashed Primary resyncs
AREA = (4 * MIB, 8 * MIB)  # offset and size of what is written here: two extents
# The log of a Primary may still name what the scenario before has written.
HOT = AREA[1] + 2 * EXTENT


class GuestRecorder(threading.Thread):
    """Writes blocks of 4 KiB on the guest's device, one pass after the other, and keeps which were acknowledged.

    The guest tells it by ssh as it happens. In pass p block b gets block b + p of
    the source: acknowledged is {b: p}, the last pass.
    """

    def __init__(self, kernel, area=AREA, writers=2):
        super().__init__(daemon=True)
        guest, (offset, size) = kernel.guest, area
        self.source = os.urandom(size)
        path = os.path.join(guest.run, 'blocks')
        with open(path, 'wb') as f:
            f.write(self.source)
        guest.lab.command([os.path.join(lab.HERE, 'guest'), 'put', path, '/tmp/blocks'], env=guest.env)
        self.offset, self.blocks, self.acknowledged, self.count = offset, size // 4096, {}, 0
        # Coprime steps: each writer jumps about, and no two write the same block.
        n = self.blocks // writers
        script = ''.join(
            f'(i=0; while [ ! -e /tmp/enough ]; do b=$(({w} + {writers} * ((i * 97) % {n}))); p=$((i / {n})); '
            f'dd if=/tmp/blocks of={kernel.device()} bs=4k count=1 skip=$(((b + p) % {self.blocks})) seek=$((b + {offset // 4096})) '
            'oflag=direct conv=notrunc 2>/dev/null || break; echo $b $p; i=$((i + 1)); done) & ' for w in range(writers))
        self.guest = guest
        self.ssh = subprocess.Popen([os.path.join(lab.HERE, 'guest'), 'sh', 'rm -f /tmp/enough; ' + script + 'wait'], env=dict(guest.lab.env, **guest.env),
                                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        guest.lab.children.append(('recorder', self.ssh))
        self.start()

    def run(self):
        for line in self.ssh.stdout:
            if line.endswith('\n'):  # a line that the crash cut is none
                block, turn = map(int, line.split())
                self.acknowledged[block] = turn
                self.count += 1

    def stop(self):
        self.guest.sh('touch /tmp/enough')
        self.end()

    def end(self, limit=60):
        """All lines are read: the guest is gone, or the writes are over."""
        self.join(limit)
        if self.is_alive():
            raise lab.Failure(f'writes in the guest: no end within {limit} s')
        self.ssh.wait()

    def content(self, block, turn):
        start = 4096 * ((block + turn) % self.blocks)
        return self.source[start:start + 4096]

    def lost(self, node):
        """Acknowledged writes that the node's disk does not hold, nor what may have replaced them."""
        return [b for b, turn in self.acknowledged.items()
                if node.data(self.offset + 4096 * b, 4096) not in (self.content(b, turn), self.content(b, turn + 1))]


class Steady(nodes.Recorder):
    """Writes some 2000 blocks a second at most: a peer that is away or emulated must not starve beside it."""

    def __init__(self, uri, area=AREA):
        super().__init__(uri, *area)

    def pause(self):
        time.sleep(0.008)


class Flushed(nodes.Recorder):
    """Writes a batch and flushes; flushed is {offset: content} of what a FLUSH that was answered covers."""

    def __init__(self, uri, area=AREA):
        self.flushed = {}
        super().__init__(uri, *area)

    def run(self):
        try:
            while not self.stopped:
                batch = {o: self.rng.randbytes(4096) for o in self.rng.sample(self.range, self.depth)}
                for o, block in batch.items():
                    self.acknowledged.setdefault(o, []).append(block)
                self.client.write(list(batch), blocks=list(batch.values()))
                self.client.flush()
                self.acknowledged.update((o, [block]) for o, block in batch.items())
                self.flushed.update(batch)
                self.count += len(batch)
        except self.client.nbd.Error as e:
            self.died = e

    def lost(self, node):
        return [o for o in self.flushed if node.data(o, 4096) not in self.acknowledged[o]]


def recorder(t, primary, area=AREA):
    """Recorded writes on the device of the Primary."""
    return GuestRecorder(t.k, area) if primary is t.k else Steady(t.p.uri(), area)


def check(recorder, *which):
    for node in which:
        lost = recorder.lost(node)
        if lost:
            raise lab.Failure(f'{node.name}: {len(lost)} of {recorder.count} acknowledged writes are lost, the first at {min(lost)}')


@contextlib.contextmanager
def our_disks(t, wish=''):
    """polluxd works on disks that do as they wish, while the block runs."""
    t.p.plug(wish)
    try:
        t.p.start()
        t.in_sync()
        yield t.p.drives
    finally:
        t.p.unplug()
        t.p.start()


@contextlib.contextmanager
def kernel_disks(t, wish):
    for d in t.k.guest.drives:
        d.wish(wish)
    try:
        yield t.k.guest.drives
    finally:
        for d in t.k.guest.drives:
            d.wish()


@contextlib.contextmanager
def unflushed(kernel):
    """Many writes at a time on the guest's device, none of them flushed, while the block runs."""
    before = kernel.written()
    kernel.guest.sh(f'fio --name=unflushed --rw=randwrite --bs=16k --direct=1 --ioengine=libaio --iodepth=16 --filename={kernel.device()} '
                    f'--offset={16 * MIB} --size={8 * MIB} --time_based --runtime=600 --minimal >/dev/null 2>&1 </dev/null & echo $! >/tmp/unflushed')
    try:
        lab.wait_for('unflushed writes', 30, lambda: kernel.written() > before + 2048)
        yield
    finally:
        kernel.guest.sh('kill $(cat /tmp/unflushed); while kill -0 $(cat /tmp/unflushed) 2>/dev/null; do sleep 0.1; done', 60, ok=None)


def again(t):
    """The guest boots, and its DRBD comes up."""
    t.k.start()
    t.k.adm('up', 'r0')


def enough(recorder, count, limit=60):
    before = recorder.count
    lab.wait_for(f'{count} more acknowledged writes', limit, lambda: recorder.count >= before + count)


@scenario('QEMU killed under writes, kernel Primary', primary='kernel', allow=LOST)
def crash_kernel_primary(t):
    """It comes back and resyncs what its activity log names; our copy has had all of it already."""
    r = GuestRecorder(t.k)
    enough(r, 100)
    t.k.kill()
    r.end()
    t.p.wait_state(cs='WFConnection')
    check(r, t.k, t.p)
    again(t)
    t.in_sync('Secondary/Secondary')
    check(r, t.k, t.p)
    return f'{r.count} writes, resync ' + t.resyncs('SyncSource', least=4096, most=HOT)


@scenario('power cut of the kernel under writes, Pollux Primary', primary='pollux', allow=LOST)
def power_cut_kernel_secondary(t):
    """Of its disk's unflushed writes some are lost; our writes go on, and a resync brings them all."""
    with kernel_disks(t, 'lose=1 flush-delay=300'):  # slow, so that there is always something to lose
        r = Steady(t.p.uri())
        enough(r, 1000)
        lost = t.k.kill()
        enough(r, 500)
        again(t)
        t.in_sync('Secondary/Primary')
        r.stop()
        t.in_sync('Secondary/Primary')
    check(r, t.k, t.p)
    return f'{r.count} writes, {lost} sectors lost, resync ' + t.resyncs('SyncTarget', least=4096, most=HOT)


@scenario('power cut of Pollux under writes, kernel Primary', allow=LOST)
def power_cut_pollux_secondary(t):
    with our_disks(t, 'lose=2'):
        t.make_primary(t.k)
        r = GuestRecorder(t.k)
        with unflushed(t.k):
            enough(r, 100)
            lost = t.p.power_cut()
        t.p.start()
        t.in_sync('Primary/Secondary')
        r.stop()
        t.in_sync('Primary/Secondary')
        check(r, t.k, t.p)
    return f'{r.count} writes, {lost} sectors lost, resync ' + t.resyncs('SyncSource', most=4 * EXTENT)


@scenario('power cut of both under flushed writes, Pollux Primary; the kernel is promoted', quick=True, allow=LOST)
def flush_on_kernel(t):
    """What our FLUSH has answered for is on the kernel's disk, although both disks lose all that was not flushed."""
    with our_disks(t, 'lose=all'), kernel_disks(t, 'lose=all flush-delay=100'):
        t.make_primary(t.p)
        r, more = Flushed(t.p.uri()), Steady(t.p.uri(), (16 * MIB, 8 * MIB))
        enough(r, 500)
        lost = t.p.power_cut(), t.k.kill()
        r.join(30)
        more.join(30)
        check(r, t.k, t.p)
        again(t)
        t.k.adm('primary', 'r0')
        t.k.fio(20 * MIB, MIB)
        check(r, t.k)
        t.p.start()
        t.in_sync('Primary/Secondary')
        check(r, t.k, t.p)
    return f'{r.count} writes, {lost[0]} and {lost[1]} sectors lost, resync ' + t.resyncs('SyncSource', least=MIB)


@scenario('power cut of the kernel under ext4 with fsync; Pollux is promoted', primary='kernel', allow=LOST)
def flush_on_pollux(t):
    """Every file that fsync has returned for is whole on our disk, and the file system is sound."""
    k, size = t.k, 16384
    with kernel_disks(t, 'lose=all'):
        k.guest.sh(f'modprobe ext4 && mkfs.ext4 -q -F {k.device()} 2>&1 && mkdir -p /mnt && mount {k.device()} /mnt')
        source = os.urandom(64 * size)
        path = os.path.join(k.guest.run, 'files')
        with open(path, 'wb') as f:
            f.write(source)
        t.l.command([os.path.join(lab.HERE, 'guest'), 'put', path, '/tmp/files'], env=k.guest.env)
        script = f'i=0; while dd if=/tmp/files of=/mnt/f$i bs={size} count=1 skip=$((i % 64)) conv=fsync 2>/dev/null; do echo $i; i=$((i + 1)); done'
        writer = subprocess.Popen([os.path.join(lab.HERE, 'guest'), 'sh', script], env=dict(t.l.env, **k.guest.env),
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        t.l.children.append(('writer', writer))
        done = []
        for line in writer.stdout:
            done.append(int(line))
            if len(done) == 40:
                break
        lost = k.kill()
        done += [int(line) for line in writer.stdout if line.endswith('\n')]
        t.p.wait_state(cs='WFConnection')
        t.p.adm('primary', 'r0')
        found = files(t, size)
        bad = [i for i in done if found.get(f'f{i}') != source[i % 64 * size:][:size]]
        if bad:
            raise lab.Failure(f'of {len(done)} files with fsync {len(bad)} are not on our disk: {bad[:5]}')
        t.p.fio(28 * MIB, MIB)
        again(t)
        t.in_sync('Secondary/Primary')
    return f'{len(done)} files, {lost} sectors lost, resync ' + t.resyncs('SyncTarget', least=MIB)


def files(t, size):
    """The files of the ext4 on our disk: {name: content}, by fsck and debugfs on a copy."""
    copy, out = os.path.join(t.l.run, 'ext4.img'), os.path.join(t.l.run, 'ext4')
    with open(copy, 'wb') as f:
        f.write(t.p.data(0, t.p.size()))
    os.makedirs(out)
    path = dict(PATH='/usr/sbin:/sbin:' + os.environ['PATH'])
    t.l.command(['e2fsck', '-p', copy], 60, ok=(0, 1), env=path)  # replays the journal, repairs nothing that is wrong
    t.l.command(['e2fsck', '-f', '-n', copy], 60, env=path)
    t.l.command(['debugfs', '-R', f'rdump / {out}', copy], 60, env=path)
    found = {}
    for name in os.listdir(out):
        file = os.path.join(out, name)
        if os.path.isfile(file):
            with open(file, 'rb') as f:
                found[name] = f.read()
    return found
