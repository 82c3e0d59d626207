"""The role goes from one node to the other, or is with both."""
import os
import random

import lab
import nodes
from bed import LOST, MIB
from scenario import scenario

TWO = {'allow-two-primaries': 'yes'}


def refused(what, node, *words):
    """The command is refused; returns what it said."""
    said = node.adm(*words, ok=None, merge=True) if isinstance(node, nodes.Pollux) else node.adm(*words, ok=None)
    if node.is_primary() != (words[0] == 'secondary'):
        raise lab.Failure(f'{node.name} changed its role while {what}; it said {said.strip()!r}')
    return said


@scenario('role swap under load: demote and promote refused while open, then handed over', name='role-swap')
def role_swap(t):
    """What a cluster manager does, five times: it stops the user, demotes, promotes, starts the user."""
    t.make_primary(t.k)
    for turn in range(5):
        old = t.k if turn % 2 == 0 else t.p
        new = t.other(old)
        with t.load(old, offset=turn * MIB, size=4 * MIB, seconds=4):
            refused('it was open', old, 'secondary', 'r0')
            refused('the peer was Primary', new, 'primary', 'r0')
        t.in_sync('Primary/Secondary' if old is t.k else 'Secondary/Primary')
        before = old.data(0, 12 * MIB)
        old.adm('secondary', 'r0')
        new.adm('primary', 'r0')
        if new.data(0, 12 * MIB) != before:
            raise lab.Failure(f'handed over from {old.name} to {new.name}, but it holds other data')
    return '5 times'


@scenario('role handed over in the middle of a resync', name='role-swap-resync', disk={'resync-rate': '4M'})
def role_swap_resync(t):
    for old in t.both_nodes:
        new = t.other(old)
        t.make_primary(old)
        t.disconnect(new)
        old.fio(4 * MIB, 8 * MIB)
        t.connect(new)
        t.both('a resync', 20, cs='SyncSource' if old is t.k else 'SyncTarget')
        old.adm('secondary', 'r0')
        new.adm('primary', 'r0')  # reads what it has not yet from the peer
        new.fio(8 * MIB, 6 * MIB)
        t.in_sync('Primary/Secondary' if new is t.k else 'Secondary/Primary')


@scenario('two Primaries: fio verify on both, disjoint ranges', quick=True, net=TWO)
def two_primaries(t):
    for node in t.both_nodes:
        node.adm('primary', 'r0')
    t.together(lambda: t.k.fio(0, 6 * MIB), lambda: t.p.fio(16 * MIB, 6 * MIB))
    t.in_sync('Primary/Primary')


def overlapping(t, depth):
    """Both write the same 256 KiB at random, in pieces of 4 to 16 KiB.

    The writes of the kernel's own fio do not overlap each other: drbd.ko cannot
    do that beside conflicts. Its worker drbd-reissue takes a write off that is to
    be retried, a write of fio that waited for it goes first, meets one of the peer
    and is to be retried, too: by the worker, which waits for it. Nothing on that
    node is written any more, whatever the peer does (do_retry in
    drbd_send_and_submit, seen with 8.4.11).
    """
    at, size = 20 * MIB, MIB >> 2

    def ours():
        client = nodes.Client(t.p.uri())
        rng = random.Random(1)
        try:
            while not over:
                pieces = [(rng.randrange(1, 5) << 12) for _ in range(depth)]
                client.write([at + (rng.randrange(0, size - p + 1) & ~4095) for p in pieces], blocks=[os.urandom(p) for p in pieces])
        finally:
            client.close()

    def theirs():
        try:
            t.k.guest.sh('fio --name=conflict --rw=randwrite --bsrange=4k-16k --blockalign=4k --direct=1 --ioengine=libaio '
                         f'--iodepth={depth} --filename=/dev/drbd1 --offset={at} --size={size} --io_size={3 * MIB} '
                         '--norandommap --serialize_overlap=1 --minimal', 90)
        finally:
            over.append(True)
    over = []
    t.together(ours, theirs)
    t.in_sync('Primary/Primary')
    t.compare()


@scenario('two Primaries: both write the same blocks, connected by the kernel, then by Pollux', net=TWO)
def two_primaries_conflicts(t):
    """The node that connects last accepts the meta socket, and with it the part of deciding conflicts.

    A write of the kernel's that meets two of ours has one answer, P_RETRY_WRITE.
    The kernel lets it go as the first of ours has ended there, and once more as
    the second has if its worker has not come to it in between: that is the
    assertion, line 755, of a request that no longer waits for an answer. The
    second time changes nothing.
    """
    t.forgiven = ('ASSERT( req->rq_state & RQ_NET_PENDING )',)
    words = []
    t.k.adm('primary', 'r0')
    for node in (t.k, t.p):
        t.p.adm('secondary', 'r0')
        t.disconnect(node)
        t.connect(node)
        t.in_sync('Primary/Secondary')
        t.p.adm('primary', 'r0')
        t.in_sync('Primary/Primary')
        t.mark_log(f'conflicts, connected by {node.name}')
        for depth in (1, 4):
            overlapping(t, depth)
        seen = t.said('.*Concurrent writes detected.*')
        words.append(f"{len(seen)} conflicts seen by the kernel, {sum('assuming' in line for line in seen)} decided by it")
    return '; '.join(words)


@scenario('two Primaries: live migration, there and back', net=TWO)
def live_migration(t):
    """As a hypervisor does it: both Primary, the source writes last, is demoted; the destination goes on."""
    t.k.adm('primary', 'r0')
    for old in t.both_nodes:
        new = t.other(old)
        new.adm('primary', 'r0')
        t.in_sync('Primary/Primary')
        old.fio(12 * MIB, MIB)
        old.adm('secondary', 'r0')
        new.fio(12 * MIB, MIB)
        t.in_sync('Primary/Secondary' if new is t.k else 'Secondary/Primary')


@scenario('two Primaries lose each other: split brain on both', net=TWO, wire=True)
def two_primaries_parted(t):
    t.allowed = (*LOST, 'plit-Brain')
    for node in t.both_nodes:
        node.adm('primary', 'r0')
    t.in_sync('Primary/Primary')
    t.wire.part()
    for node, offset in ((t.k, 2 * MIB), (t.p, 3 * MIB)):
        node.wait_state(cs=('WFConnection', 'Unconnected', 'NetworkFailure', 'BrokenPipe'))
        node.fio(offset, MIB)
    t.wire.mend()
    t.wait_said('Split-Brain detected')
    t.stand_alone()
    t.p.adm('secondary', 'r0')
    t.p.adm('connect', '--discard-my-data', 'r0')
    t.connect(t.k)
    t.in_sync('Primary/Secondary')
