"""Online verify that finds what is damaged; flushes that reach the peer's disk."""
import time

import lab
import nodes
from bed import MIB
from scenario import scenario


def verified(t, node, damaged):
    """A verify by node marks just the blocks with these damages, on both nodes; the kernel's log names them."""
    blocks = {offset // 4096 for offset in damaged}
    t.mark_log(f'verify by {node.name}')
    node.adm('verify', 'r0')
    t.wait_said('Online verify done')
    t.both('end of the verify', 60, cs='Connected', ds='UpToDate/UpToDate', oos=str(4 * len(blocks)))
    found = set()
    for start, size in t.said(r'Out of sync: start=(\d+), size=(\d+)'):
        found |= set(range(int(start) // 8, (int(start) + int(size) + 7) // 8))
    if found != blocks:
        raise lab.Failure(f'the kernel found the blocks {sorted(found)} out of sync; damaged are {sorted(blocks)}')


@scenario('control: the comparison of the disks sees one byte that differs', name='control', quick=True)
def control(t):
    at = t.k.size() - 1
    t.p.damage(at)
    try:
        t.compare()
    except lab.Failure:
        t.p.damage(at)  # flipped back
        return
    raise lab.Failure('equal, although a byte was flipped')


@scenario('online verify from each side finds damaged blocks; invalidate repairs', name='verify-finds', quick=True)
def verify_finds(t):
    t.make_primary(t.k)
    for node in t.both_nodes:
        damaged = (5 * MIB + 7, 5 * MIB + 4096, t.k.size() - 1)
        for offset in damaged:
            t.p.damage(offset)
        verified(t, node, damaged)
        t.p.adm('invalidate', 'r0')
        t.wait_said('Began resync')
        t.in_sync('Primary/Secondary', 90)


@scenario('online verify from each side while fio writes; reconnect repairs', roles=True)
def verify_under_load(t, primary, secondary):
    for node in t.both_nodes:
        secondary.damage(20 * MIB + 4711)
        with t.load(primary, seconds=5):
            verified(t, node, (20 * MIB + 4711,))
        t.disconnect(primary)
        t.connect(primary)
        t.in_sync()
        if t.k.data(20 * MIB, 8192) != t.p.data(20 * MIB, 8192):
            raise lab.Failure('the damaged block is still damaged')


@scenario('FLUSH and FUA of our client are answered after the kernel\'s disk flushed', name='flush-proof', quick=True)
def flush_proof(t):
    """NBD FLUSH under protocol C: when it is answered, the kernel's disk was flushed after the last write."""
    t.make_primary(t.p)
    client, slowest, proofs = nodes.Client(t.p.uri()), 0, 0
    try:
        # (milliseconds a flush of the kernel's disk takes, writes before each of our flushes, pause before it)
        for delay, blocks, pause, rounds in ((300, 1, 0, 3), (300, 24, 0, 3), (300, 8, 0.1, 3), (20, 5, 0, 20), (0, 16, 0, 40)):
            t.k.guest.flush_delay(delay)
            for n in range(rounds):
                begin = time.monotonic_ns()
                offsets = [16 * MIB + 8192 * (n * blocks + i) for i in range(blocks)]
                client.write(offsets)
                time.sleep(pause)
                answered = client.flush()
                flushed_before(t, answered, begin, offsets)
                proofs += 1
                slowest = max(slowest, answered - begin)
        # Two at once, and one with nothing written since the last: answered, and soon.
        t.k.guest.flush_delay(300)
        begin = time.monotonic_ns()
        client.write([24 * MIB])
        client.finish([client.h.aio_flush(), client.h.aio_flush()])
        flushed_before(t, time.monotonic_ns(), begin, [24 * MIB])
        client.flush()
        # FUA: the same without a flush of ours.
        begin = time.monotonic_ns()
        flushed_before(t, client.write([25 * MIB], fua=True), begin, [25 * MIB])
        # Control: the delay works, and a plain write does not wait for it. The flush before it takes
        # care of the FUA write's epoch: the kernel reads nothing while it flushes after a P_BARRIER.
        client.flush()
        t.k.guest.flush_delay(2000)
        begin = time.monotonic_ns()
        if client.write([26 * MIB]) - begin > 1900e6:
            raise lab.Failure('control: a plain write took as long as a flush')
        t.k.guest.flush_delay(0)
        client.flush()
    finally:
        t.k.guest.flush_delay(0)
        client.close()
    return f'{proofs} flushes'


def flushed_before(t, answered, begin, offsets):
    log = [e for e in t.k.guest.disk_log() if e[0] >= begin]
    ends = []
    for offset in offsets:
        covering = [e[1] for e in log if e[2] == 'W' and e[3] <= offset and offset + 4096 <= e[3] + e[4]]
        if not covering:
            raise lab.Failure(f'the write at {offset} did not reach the kernel\'s disk before our FLUSH was answered')
        ends.append(min(covering))
    if not any(e[2] == 'F' and e[0] >= max(ends) and e[1] <= answered for e in log):
        flushes = [f'{(e[0] - begin) / 1e6:.1f}..{(e[1] - begin) / 1e6:.1f}' for e in log if e[2] == 'F']
        raise lab.Failure(f'answered at {(answered - begin) / 1e6:.1f} ms, last write on the kernel\'s disk at '
                          f'{(max(ends) - begin) / 1e6:.1f} ms, its flushes at {", ".join(flushes) or "never"} ms')
