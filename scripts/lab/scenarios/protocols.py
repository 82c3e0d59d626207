"""Writes under each protocol, with digests and secrets, and options that change on the live connection."""
import time

import lab
from bed import LOST, MIB
from scenario import scenario

SECRET = {'cram-hmac-alg': 'sha256', 'shared-secret': '"a secret"'}


def write(t, primary):
    """fio, then discards and zeroes into what it has written; both disks hold zeroes there."""
    primary.fio(0, 6 * MIB)
    primary.discard(MIB, MIB)
    t.in_sync()
    for node in t.both_nodes:
        if node.data(MIB, 2 * MIB).strip(b'\0'):
            raise lab.Failure(f'discard and zeroes: {node.name} still holds data there')


def in_force(t, letter):
    lab.wait_for(f'protocol {letter} on both', 10, lambda: t.k.protocol() == letter == t.p.protocol())


@scenario('fio verify, protocol A', roles=True, net={'protocol': 'A'})
def protocol_a(t, primary, _):
    in_force(t, 'A')
    primary.fio(0, 8 * MIB)


@scenario('fio verify, protocol B', roles=True, net={'protocol': 'B'})
def protocol_b(t, primary, _):
    in_force(t, 'B')
    primary.fio(0, 8 * MIB)


@scenario('fio verify, discards, zeroes, protocol C', roles=True, quick=True)
def protocol_c(t, primary, _):
    in_force(t, 'C')
    write(t, primary)


@scenario('the guest reads from its disk what ours holds')
def read_in_guest(t):
    t.make_primary(t.p)
    t.p.fio(0, 8 * MIB)
    t.in_sync()
    if t.k.checksum(16 * MIB) != t.p.image_sum(16 * MIB):
        raise lab.Failure('the guest reads other data from its disk than the images hold')


@scenario('protocol changed by the Primary, then by the Secondary, while fio writes', roles=True)
def live_protocol(t, primary, secondary):
    with t.load(primary, seconds=10):
        for node in (primary, secondary):
            for letter in 'ABC':
                node.adm('net-options', f'--protocol={letter}', 'r0')
                in_force(t, letter)
                time.sleep(0.3)  # writes go under it
    t.resyncs()


@scenario('protocol changed in both files, adjust while fio writes', roles=True)
def adjust_protocol(t, primary, _):
    with t.load(primary, seconds=10):
        for letter in 'AC':
            t.configure(net={'protocol': letter})
            t.adjust()
            in_force(t, letter)
    t.resyncs()


@scenario('data-integrity-alg: writes, discards, resync', roles=True, quick=True, net={'data-integrity-alg': 'crc32c'})
def integrity(t, primary, secondary):
    write(t, primary)
    secondary.adm('invalidate', 'r0')
    t.wait_said('Began resync')
    t.in_sync()


@scenario('data-integrity-alg changed while fio writes', roles=True, net={'data-integrity-alg': 'crc32c'})
def live_integrity(t, primary, _):
    with t.load(primary, seconds=8):
        for algorithm in ('sha1', None, 'md5'):
            t.configure(net={'data-integrity-alg': algorithm})
            t.adjust()
            time.sleep(0.5)  # writes go with it
    t.resyncs()


@scenario('cram-hmac with the right secret', roles=True, quick=True, net=SECRET)
def secret(t, primary, secondary):
    t.disconnect(secondary)
    t.connect(secondary)
    t.in_sync()
    primary.fio(0, 4 * MIB)


@scenario('cram-hmac, wrong secret: both say so and stand alone; mended, connected', name='wrong-secret', net=SECRET)
def wrong_secret(t):
    t.allowed = ('uthenticat',)
    t.make_primary(t.p)
    t.both_disconnect()
    t.configure(net=SECRET, pollux_net={'shared-secret': '"another"'})
    t.adjust()
    t.stand_alone()
    t.wait_said('uthentication of peer failed')
    if 'shared-secret' not in t.p.last_error():
        raise lab.Failure(f'status does not name the secret but says: {t.p.last_error()}')
    t.p.fio(0, 2 * MIB)
    t.configure(net=SECRET)
    t.adjust()
    t.in_sync('Secondary/Primary')


@scenario('cram-hmac on one node only: not connected; mended, connected', name='one-secret')
def one_secret(t):
    t.allowed = (*LOST, 'nexpected')  # the kernel without a secret says so of P_AUTH_CHALLENGE
    for who in ('kernel_net', 'pollux_net'):
        t.both_disconnect()
        t.configure(**{who: SECRET})
        t.adjust()
        lab.wait_for('polluxd to say why', 20, lambda: 'cram-hmac' in t.p.last_error())
        if any(node.state()['cs'] == 'Connected' for node in t.both_nodes):
            raise lab.Failure('connected, with a secret on one node only')
        t.both_disconnect()
        t.configure()
        t.adjust()
        t.in_sync('Secondary/Secondary')
