"""Disks that are detached, fail, and come back, with the other copy in their place; two volumes."""
import lab
import nodes
from bed import LOST, MIB
from scenario import scenario
from scenarios.power import kernel_disks, our_disks

# The data area of volume 0: the metadata behind it stays whole.
DATA = 'range=0-{}'.format(31 * MIB)
AT, SIZE = 4 * MIB, 4 * MIB


def reattach(t, node):
    node.adm('attach', 'r0')
    t.in_sync()


@scenario('detach of the Primary: reads and writes through the other copy; attach', roles=True)
def detach_primary(t, primary, secondary):
    primary.fio(AT, SIZE)
    primary.adm('detach', 'r0')
    primary.wait_state(ds='Diskless/UpToDate')
    before = secondary.written()
    primary.fio(AT + SIZE // 2, SIZE)  # reads all of it back
    if secondary.written() - before < SIZE >> 10:
        raise lab.Failure(f'{secondary.name} wrote {secondary.written() - before} KiB while its peer had no disk, less than {SIZE >> 10}')
    reattach(t, primary)
    return 'resync ' + t.resyncs('SyncTarget' if primary is t.k else 'SyncSource', least=SIZE)


@scenario('detach of the Secondary, writes go on; attach', roles=True)
def detach_secondary(t, primary, secondary):
    secondary.adm('detach', 'r0')
    primary.wait_state(ds='UpToDate/Diskless')
    primary.fio(AT, SIZE)
    reattach(t, secondary)
    return 'resync ' + t.resyncs('SyncSource' if primary is t.k else 'SyncTarget', least=SIZE, most=2 * SIZE)


def disk_failed(t, node):
    """The failed disk of node is gone, and the other one serves."""
    node.wait_state(ds='Diskless/UpToDate')
    t.other(node).wait_state(ds='UpToDate/Diskless')


@scenario('write error of Pollux\' disk as Secondary: detached, attached again', name='write-error-pollux-secondary', quick=True, allow=LOST)
def write_error_ours_secondary(t):
    with our_disks(t) as drives:
        t.make_primary(t.k)
        drives[0].wish('write=fail ' + DATA)
        t.k.fio(AT, SIZE)
        disk_failed(t, t.p)
        drives[0].wish()
        reattach(t, t.p)
    return 'resync ' + t.resyncs('SyncSource', least=SIZE)


@scenario('write and read error of Pollux\' disk as Primary: served by the kernel', name='io-error-pollux-primary', allow=LOST)
def io_error_ours_primary(t):
    with our_disks(t) as drives:
        t.make_primary(t.p)
        for wish in 'write', 'read':
            t.p.fio(AT, MIB)
            drives[0].wish(f'{wish}=fail {DATA}')
            t.p.fio(AT, SIZE)
            disk_failed(t, t.p)
            drives[0].wish()
            reattach(t, t.p)
        t.p.adm('secondary', 'r0')
    return 'resync ' + t.resyncs('SyncSource', 'SyncSource')


@scenario('write error of the kernel\'s disk as Secondary: detached, attached again', primary='pollux')
def write_error_kernel_secondary(t):
    with kernel_disks(t, 'write=fail ' + DATA):
        t.p.fio(AT, SIZE)
        disk_failed(t, t.k)
    reattach(t, t.k)
    return 'resync ' + t.resyncs('SyncTarget', least=SIZE)


@scenario('write and read error of the kernel\'s disk as Primary: served by Pollux', primary='kernel')
def io_error_kernel_primary(t):
    for wish in 'write', 'read':
        t.k.fio(AT, MIB)
        with kernel_disks(t, f'{wish}=fail {DATA}'):
            t.k.fio(AT, SIZE)
            disk_failed(t, t.k)
        reattach(t, t.k)
    return 'resync ' + t.resyncs('SyncTarget', 'SyncTarget')


@scenario('on-io-error pass_on: the Secondary\'s disk fails and stays attached', disk={'on-io-error': 'pass_on'}, allow=LOST)
def pass_on(t):
    words = []
    with our_disks(t):
        for failing, drives in ((t.p, t.p.drives), (t.k, t.k.guest.drives)):
            primary = t.other(failing)
            t.make_primary(primary)
            drives[0].wish('write=fail ' + DATA)
            primary.fio(AT, MIB)
            failing.wait_state(ds='Inconsistent/UpToDate')
            primary.wait_state(ds='UpToDate/Inconsistent')
            drives[0].wish()
            words.append(primary.state()['oos'])
            # As two kernels: the next connection brings it in order.
            t.disconnect(primary)
            t.connect(primary)
            t.in_sync()
    return f'{" and ".join(words)} KiB were out of sync, resync ' + t.resyncs('SyncSource', 'SyncTarget')


@scenario('two volumes: full sync, writes to both, outage, resync', roles=True, volumes=2, name='two-volumes')
def two_volumes(t, primary, secondary):
    secondary.adm('invalidate', 'r0')
    t.in_sync(limit=90)
    t.together(*(lambda v=v: primary.fio(MIB, 4 * MIB, volume=v) for v in range(2)))
    t.in_sync()
    t.disconnect(primary)
    t.together(*(lambda v=v: primary.fio(8 * MIB, 2 * MIB, volume=v) for v in range(2)))
    t.connect(primary)
    t.in_sync()
    return 'resync ' + t.resyncs(*['SyncSource' if primary is t.k else 'SyncTarget'] * 4, least=2 * MIB)


@scenario('two volumes, one of them detached: the other is untouched', roles=True, volumes=2, name='two-volumes-detach')
def two_volumes_detach(t, primary, secondary):
    for node in primary, secondary:
        node.adm('detach', 'r0/1')
        node.wait_state(volume=1, ds='Diskless/UpToDate')
        node.wait_state(volume=0, ds='UpToDate/UpToDate')
        t.together(*(lambda v=v: primary.fio(4 * MIB, 2 * MIB, volume=v) for v in range(2)))
        node.adm('attach', 'r0/1')
        t.in_sync()
    ours, theirs = ('SyncTarget', 'SyncSource') if primary is t.k else ('SyncSource', 'SyncTarget')
    return 'resync ' + t.resyncs(ours, theirs, least=2 * MIB)


@scenario('two volumes: FLUSH of one is durable on the kernel\'s disk while the other one is written', volumes=2, primary='pollux')
def two_volumes_flush(t):
    """Each volume's flush comes after its own writes, on its own disk."""
    clients = [nodes.Client(t.p.uri(v)) for v in range(2)]
    try:
        for d in t.k.guest.drives:
            d.wish('flush-delay=30')
        for n in range(20):
            v, at = n % 2, [MIB + 4096 * (8 * n + i) for i in range(8)]
            begin = clients[v].now()
            clients[v].write(at)
            clients[1 - v].write([MIB + 4096 * (8 * n)])
            answered = clients[v].flush()
            log = [e for e in t.k.guest.disk_log(v) if e[0] >= begin]
            written = max(min(e[1] for e in log if e[2] == 'W' and e[3] <= o and o + 4096 <= e[3] + e[4]) for o in at)
            if not any(e[2] == 'F' and e[0] >= written and e[1] <= answered for e in log):
                raise lab.Failure(f'volume {v}: the FLUSH was answered before the kernel\'s disk was flushed after the last write')
    finally:
        for d in t.k.guest.drives:
            d.wish()
        for c in clients:
            c.close()
    return '20 flushes'


def disk_reads(node):
    """KiB read from the node's disk, for whomever."""
    return int(node.guest.proc_drbd()['dr']) if isinstance(node, nodes.Kernel) else int(node.status()['devices'][0]['read'])


@scenario('read-balancing round-robin: the Secondary serves its share of verified reads', roles=True, name='read-balancing',
          disk={'read-balancing': 'round-robin'})
def read_balancing(t, primary, secondary):
    before = disk_reads(primary), disk_reads(secondary)
    primary.fio(AT, SIZE)
    read = [disk_reads(n) - b for n, b in zip((primary, secondary), before)]
    if min(read) < SIZE >> 12:
        raise lab.Failure(f'{primary.name} read {read[0]} KiB from its disk, {secondary.name} {read[1]} KiB')
    return f'{read[0]} KiB by the Primary, {read[1]} KiB by the Secondary'
