"""Disks that grow: online from each side, offline; and volumes that must not shrink."""
import os

import lab
from bed import LOST, MIB
from scenario import Scenario, scenario

START, STEP = 20 * MIB, 4 * MIB  # sizes of the disks, both alike
# What the kernel says when the one that refuses closes the connection.
TOO_SMALL = (*LOST, 'Timeout')


class Disks:
    """Both nodes' disks of volume 0, which can be enlarged: a partition in the guest, a file here.

    What they grow by holds different data on the two, unless they are to be equal.
    """

    def __init__(self, t):
        self.t, self.size = t, START
        t.broken = True  # the next scenario gets whole disks again
        t.undo.append(self.undo)
        t.k.down()
        t.k.guest.sh(f'addpart /dev/vda 1 0 {START // 512}')
        t.k.devices = ['/dev/vda1', '/dev/vdb']
        self.sizes, t.p.sizes = t.p.sizes, [START]
        t.configure()
        t.new_disks()
        t.p.adm('new-current-uuid', '--clear-bitmap', 'r0/0')
        t.in_sync('Secondary/Secondary')

    def undo(self):
        self.t.k.down()
        self.t.k.guest.sh('delpart /dev/vda 1')
        self.t.k.devices = ['/dev/vda', '/dev/vdb']
        self.t.p.sizes = self.sizes

    def grow(self, equal=False):
        """Makes both disks larger by a step, under the running nodes."""
        old, self.size = self.size, self.size + STEP
        for node in self.t.both_nodes:
            with open(node.images()[0], 'r+b') as f:
                f.seek(old)
                f.write(bytes(STEP) if equal else os.urandom(STEP))
        self.t.k.guest.sh(f'resizepart /dev/vda 1 {self.size // 512}')

    def shrink(self, node, size):
        """Gives node a smaller disk, without data; it is down."""
        if node is self.t.k:
            node.guest.sh(f'resizepart /dev/vda 1 {size // 512}')
        else:
            os.truncate(node.images()[0], size)

    def wait_size(self):
        """Both have the volume at its new size, and agree."""
        lab.wait_for('the new size on both', 20, lambda: all(self.size - MIB < n.size() < self.size for n in self.t.both_nodes))


@scenario('resize online, by each side in each role', name='resize-online')
def resize_online(t):
    """The new part, different on the two, is synced from the Primary."""
    disks = Disks(t)
    for primary, asking in ((t.k, t.k), (t.k, t.p), (t.p, t.k), (t.p, t.p)):
        if disks.size == START + 3 * STEP:
            break
        t.make_primary(primary)
        primary.fio(disks.size - 3 * MIB, 2 * MIB)
        disks.grow()
        asking.adm('resize', 'r0')
        disks.wait_size()
        t.in_sync()
        t.compare()
    return 'resync ' + t.resyncs('SyncSource', 'SyncSource', 'SyncTarget', least=STEP, most=STEP + MIB)


@scenario('resize --assume-clean, by each side', name='resize-assume-clean')
def resize_assume_clean(t):
    """The new part, all zeroes on both, is not synced."""
    disks = Disks(t)
    for primary, words in ((t.k, '-- --assume-clean resize r0'), (t.p, 'resize --assume-clean r0')):
        t.make_primary(primary)
        primary.fio(4 * MIB, MIB)
        disks.grow(equal=True)
        primary.adm(*words.split())
        disks.wait_size()
        # Where the metadata lay is data now, and the two are not equal there: nobody has synced it.
        primary.fio(disks.size - STEP - MIB, MIB)
        t.in_sync()
    t.resyncs()
    return 'no resync'


@scenario('disks that grew while both were down', name='resize-offline', allow=LOST)
def resize_offline(t):
    """The handshake finds them, and leaves the new part out of sync, as two kernels do; the first Primary is its source."""
    disks = Disks(t)
    for primary in t.both_nodes:
        for node in t.both_nodes:
            node.down()
        disks.grow()
        for node in t.both_nodes:
            node.adm('check-resize', 'r0')
            node.adm('up', 'r0')
        t.both('connected, the new part out of sync', 30, cs='Connected', ds='UpToDate/UpToDate', oos=str(STEP >> 10))
        disks.wait_size()
        primary.adm('primary', 'r0')
        t.in_sync()
        t.compare()
    return 'resync ' + t.resyncs('SyncSource', 'SyncTarget', least=STEP, most=STEP + MIB)


@scenario('a peer whose disk is too small is refused, by each side', name='resize-too-small', allow=TOO_SMALL)
def too_small(t):
    """Its new disk, half the size of the other's, is not taken; the large one's data stays as it is."""
    for small in t.both_nodes:
        disks, large = Disks(t), t.other(small)
        large.adm('primary', 'r0')
        large.fio(4 * MIB, MIB)
        large.adm('secondary', 'r0')
        small.down()
        disks.shrink(small, START // 2)
        small.adm('create-md', '--force', 'r0')
        small.adm('up', 'r0')
        lab.wait_for('a refusal', 30, lambda: any(n.state()['cs'] == 'StandAlone' for n in t.both_nodes) or 'too small' in t.p.why())
        t.l.note(f'{small.name} is too small: kernel {t.k.state()}; pollux {t.p.state()}; {t.p.why()}')
        large.wait_state(ds='UpToDate/DUnknown')
        disks.undo()
        t.undo.remove(disks.undo)
    t.fresh(Scenario('', '', None))
