"""Nodes and disks that hang: the other node notices, gives the connection up, and goes on."""
import contextlib
import signal
import time

from bed import LOST, MIB
from scenario import scenario
from scenarios.power import check, enough, our_disks, recorder

PING = {'ping-int': 2, 'ping-timeout': 5}  # seconds; tenths of a second
KO = {'ko-count': 2, 'timeout': 20, 'ping-int': 2}  # 2 x 2 s
GONE = ('WFConnection', 'Unconnected', 'NetworkFailure', 'Timeout')


@contextlib.contextmanager
def stopped(process):
    """SIGSTOP: it says nothing more, and its sockets stay open."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def process(t, node):
    return t.p.process() if node is t.p else next(c for n, c in t.l.children if n == 'kernel-qemu')


@scenario('the Secondary is stopped (SIGSTOP): noticed by ping-timeout, writes go on', roles=True, net=PING,
          allow=(*LOST, 'PingAck did not arrive'))
def stopped_secondary(t, primary, secondary):
    with stopped(process(t, secondary)):
        begin = time.monotonic()
        primary.fio(4 * MIB, 2 * MIB)
        took = time.monotonic() - begin
        primary.wait_state(cs=GONE)
    t.in_sync()
    return f'writes were over after {took:.1f} s, resync ' + t.resyncs('SyncSource' if primary is t.k else 'SyncTarget', least=MIB)


@scenario('the Primary is stopped (SIGSTOP): the Secondary notices; it goes on where it stood', roles=True, net=PING,
          allow=(*LOST, 'PingAck did not arrive'))
def stopped_primary(t, primary, secondary):
    r = recorder(t, primary)
    enough(r, 20)
    with stopped(process(t, primary)):
        begin = time.monotonic()
        secondary.wait_state(cs=GONE)
        took = time.monotonic() - begin
    enough(r, 20)
    r.stop()
    t.in_sync()
    check(r, t.k, t.p)
    return f'noticed after {took:.1f} s, {r.count} writes, resync ' + ', '.join(f'{role} {kib} KiB' for role, kib in t.k.resynced(t.mark))


@scenario('ko-count: the kernel\'s disk hangs, Pollux gives the connection up and goes on', net=KO, primary='pollux',
          allow=(*LOST, 'PingAck did not arrive', 'blocked for more than'))
def ko_count_by_pollux(t):
    drive = t.k.guest.drives[0]
    drive.wish('hang')
    try:
        begin = time.monotonic()
        t.p.fio(4 * MIB, 2 * MIB)
        took = time.monotonic() - begin
        t.p.wait_state(cs=GONE)
    finally:
        drive.wish()
    t.in_sync()
    return f'writes were over after {took:.1f} s, resync ' + t.resyncs('SyncTarget', least=MIB)


@scenario('ko-count: Pollux\' disk hangs, the kernel gives the connection up and goes on', net=KO,
          allow=(*LOST, 'PingAck did not arrive', 'Timeout', 'Remote failed to finish'))
def ko_count_by_kernel(t):
    with our_disks(t) as drives:
        t.make_primary(t.k)
        drives[0].wish('hang')
        try:
            begin = time.monotonic()
            t.k.fio(4 * MIB, 2 * MIB)
            took = time.monotonic() - begin
            t.k.wait_state(cs=GONE)
        finally:
            drives[0].wish()
        t.in_sync()
    return f'writes were over after {took:.1f} s, resync ' + t.resyncs('SyncSource', least=MIB)
