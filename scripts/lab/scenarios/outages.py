"""Connections that are lost and made again while a node writes; split brain."""
import random
import time

import lab
from bed import LOST, MIB
from scenario import scenario
from scenarios.power import check, enough, recorder

ROUNDS = 20  # of a reconnect storm, by each side and by both
AREA = (4 * MIB, 24 * MIB)  # written meanwhile


def connected(t, what):
    """Connected, and each disk is good; what is written at the moment may be out of sync for a moment."""
    t.both(what, 60, cs='Connected', ds='UpToDate/UpToDate')


@scenario('fio verify while the Secondary, then the Primary disconnects and connects', roles=True, quick=True)
def outages(t, primary, secondary):
    with t.load(primary, seconds=12):
        for node in (secondary, primary):
            t.disconnect(node)
            time.sleep(1)  # writes that only the Primary has
            t.connect(node)
            connected(t, f'connected again by {node.name}')
    t.in_sync()
    return f'{len(t.k.resynced(t.mark))} resyncs'


@scenario('fio verify while the network cuts connections', roles=True, wire=True)
def cuts(t, primary, _):
    t.allowed = LOST
    with t.load(primary, seconds=12):
        for _ in range(3):
            t.wire.cut()
            lab.wait_for('the kernel to see the cut', 20, lambda: t.said('conn\\( Connected ->'))
            connected(t, 'connected after a cut')
            time.sleep(0.5)  # writes while connected
    t.in_sync()
    return f'{len(t.k.resynced(t.mark))} resyncs'


@scenario('fio verify while the network is away for 3 s', roles=True, wire=True)
def network_down(t, primary, secondary):
    t.allowed = LOST
    with t.load(primary, seconds=12):
        t.wire.part()
        for node in t.both_nodes:
            node.wait_state(cs=('WFConnection', 'Unconnected', 'NetworkFailure', 'BrokenPipe'))
        time.sleep(3)  # attempts to connect that are refused
        t.wire.mend()
        connected(t, 'connected when the network was back')
    t.in_sync()


REFUSED = (0, 10, 11, 20)  # exit statuses


def storm(t, node, rounds=ROUNDS):
    """disconnect and connect in quick succession, with pauses that let it get to different points of the handshake.

    A command may be refused: in the middle of a handshake with (-18), because it has nothing to do, or
    drbdadm loses patience after 5 s.
    """
    rng = random.Random(node.name)
    for _ in range(rounds):
        node.adm('disconnect', 'r0', ok=REFUSED)
        node.adm('connect', 'r0', ok=REFUSED)
        time.sleep(rng.choice((0, 0.02, 0.1, 0.3, 0.6)))  # so that any phase is met
    node.adm('connect', 'r0', ok=(0, 10))


@scenario('reconnect storm: each side, then both at once, under writes', roles=True)
def reconnect_storm(t, primary, secondary):
    t.allowed = LOST
    r = recorder(t, primary, AREA)
    for steps in ((primary,), (secondary,), (primary, secondary)):
        t.together(*(lambda node=node: storm(t, node, ROUNDS // len(steps)) for node in steps))
        connected(t, 'connected after the storm')
        enough(r, 20)
    r.stop()
    t.in_sync()
    check(r, *t.both_nodes)
    return f'{3 * ROUNDS} times, {len(t.k.resynced(t.mark))} resyncs, {r.count} writes'


@scenario('reconnect storm by the network, under writes', roles=True, wire=True)
def cut_storm(t, primary, _):
    t.allowed = LOST
    rng = random.Random(4)
    r = recorder(t, primary, AREA)
    end, cuts = time.monotonic() + 15, 0
    while time.monotonic() < end:
        cuts += t.wire.cut()
        time.sleep(rng.choice((0.05, 0.2, 0.5, 1, 2)))  # so that any phase is met
    connected(t, 'connected after the storm')
    enough(r, 20)
    r.stop()
    t.in_sync()
    check(r, *t.both_nodes)
    return f'{cuts} connections cut, {len(t.k.resynced(t.mark))} resyncs, {r.count} writes'


def split(t):
    """Both write without the other and connect; both see the split brain and stand alone."""
    t.allowed = (*LOST, 'plit-Brain')
    t.make_primary(t.k)
    t.both_disconnect()
    t.p.adm('primary', 'r0')
    t.k.fio(4 * MIB, 2 * MIB)
    t.p.fio(5 * MIB, 2 * MIB)
    t.connect()
    t.wait_said('Split-Brain detected')
    t.stand_alone()
    if 'split brain' not in t.p.why():
        raise lab.Failure(f'status --json does not say split brain but: {t.p.why()}')


def resolve(t, victim):
    survivor = t.other(victim)
    kept = survivor.data(4 * MIB, 3 * MIB)
    victim.adm('secondary', 'r0')
    victim.adm('connect', '--discard-my-data', 'r0')
    t.connect(survivor)
    t.in_sync('Primary/Secondary' if survivor is t.k else 'Secondary/Primary')
    if victim.data(4 * MIB, 3 * MIB) != kept:
        raise lab.Failure(f'{victim.name} gave up its writes, but does not hold those of {survivor.name}')
    return t.resyncs('SyncSource' if survivor is t.k else 'SyncTarget', least=3 * MIB, most=24 * MIB)


@scenario('split brain, seen by both; the kernel discards its data')
def split_brain_kernel(t):
    split(t)
    return resolve(t, t.k)


@scenario('split brain, seen by both; Pollux discards its data', quick=True)
def split_brain_pollux(t):
    split(t)
    return resolve(t, t.p)


@scenario('split brain of two Secondaries, after-sb-0pri discard-younger-primary', net={'after-sb-0pri': 'discard-younger-primary'})
def split_brain_younger(t):
    """Both have written, Pollux last: its data go, without anybody's help."""
    t.allowed = (*LOST, 'plit-Brain')
    t.both_disconnect()
    for node, offset in ((t.k, 4 * MIB), (t.p, 5 * MIB)):
        node.adm('primary', 'r0')
        node.fio(offset, 2 * MIB)
        node.adm('secondary', 'r0')
    kept = t.k.data(4 * MIB, 3 * MIB)
    t.connect()
    t.in_sync('Secondary/Secondary')
    if t.p.data(4 * MIB, 3 * MIB) != kept:
        raise lab.Failure('Pollux does not hold the writes of the older Primary')
    return t.resyncs('SyncSource')


@scenario('split brain with one Primary, after-sb-1pri discard-secondary', roles=True, net={'after-sb-1pri': 'discard-secondary'})
def split_brain_secondary(t, primary, secondary):
    t.allowed = (*LOST, 'plit-Brain')
    t.both_disconnect()
    primary.fio(4 * MIB, 2 * MIB)
    secondary.adm('primary', 'r0')
    secondary.fio(5 * MIB, 2 * MIB)
    secondary.adm('secondary', 'r0')
    kept = primary.data(4 * MIB, 3 * MIB)
    t.connect()
    t.in_sync()
    if secondary.data(4 * MIB, 3 * MIB) != kept:
        raise lab.Failure('the Secondary does not hold the writes of the Primary')
    return t.resyncs('SyncSource' if primary is t.k else 'SyncTarget')
