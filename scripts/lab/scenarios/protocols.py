"""Writes under each protocol, in both roles, and options that change on the live connection."""
import lab
from bed import MIB
from scenario import scenario


def write_and_discard(t, primary):
    primary.fio(0, 8 * MIB)
    primary.discard(2 * MIB, MIB)
    t.in_sync()
    for node in t.both_nodes:
        if node.data(2 * MIB, 2 * MIB).strip(b'\0'):
            raise lab.Failure(f'discard and zeroes: {node.name} still holds data there')


@scenario('fio verify under protocol A', roles=True, net={'protocol': 'A'})
def protocol_a(t, primary, _):
    primary.fio(0, 8 * MIB)


@scenario('fio verify under protocol B', roles=True, net={'protocol': 'B'})
def protocol_b(t, primary, _):
    primary.fio(0, 8 * MIB)


@scenario('fio verify under protocol C', roles=True, quick=True)
def protocol_c(t, primary, _):
    primary.fio(0, 8 * MIB)
