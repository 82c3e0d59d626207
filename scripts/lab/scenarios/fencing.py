"""Fencing in both directions, with handlers that really reach the other node; outdate; promotion refused."""
import contextlib
import os
import re
import socket
import threading

import lab
import nodes
from bed import LOST, MIB
from scenario import scenario
from scenarios.power import check, enough, recorder

# Exit codes of the fence-peer handler.
OUTDATED, KILLED, FAILED = 4, 7, 1


class Fencer:
    """Where the fence-peer handlers of both nodes call: act(node that asks) returns the exit code."""

    def __init__(self, t):
        self.t, self.calls, self.act = t, [], lambda asking: FAILED
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                conn, _ = self.listener.accept()
            except OSError:
                return
            # QEMU's user network connects from a port of this machine just as our own handler does.
            asking = self.t.k if self.t.k.is_primary() else self.t.p
            self.calls.append(asking.name)
            try:
                code = self.act(asking)
            except lab.Failure as e:
                self.t.l.note(f'fence-peer: {e}')
                code = FAILED
            conn.sendall(b'%d\n' % code)
            conn.close()

    def outdate(self, asking):
        """As drbd-peer-outdater does: the peer is asked by another way than the replication link."""
        self.t.other(asking).adm('outdate', 'r0')
        return OUTDATED

    def kill(self, asking):
        """STONITH."""
        self.t.other(asking).kill()
        return KILLED


@contextlib.contextmanager
def fencing(t, policy):
    """Both nodes have that policy and a fence-peer handler; yields the Fencer."""
    f = Fencer(t)
    path = os.path.join(t.l.run, 'fence-peer')
    with open(path, 'w') as out:
        out.write('#!/usr/bin/python3\nimport socket, sys\n'
                  f'sys.exit(int(socket.create_connection(("127.0.0.1", {f.port})).makefile().readline()))\n')
    os.chmod(path, 0o755)
    in_guest(t, f)
    t.configure(disk={'fencing': policy}, more=f'handlers {{ fence-peer "{path}"; }}')
    t.restart()
    t.in_sync('Secondary/Secondary')
    try:
        yield f
    finally:
        f.listener.close()
        t.k.guest.sh('printf /bin/true >/sys/module/drbd/parameters/usermode_helper', ok=None)


def in_guest(t, f):
    """The handler at the same path in the guest, and drbd calls it, by drbdadm; until the next boot."""
    path = os.path.join(t.l.run, 'fence-peer')
    t.k.guest.sh(f'mkdir -p {t.l.run}')
    t.k.guest.write_file(path, f'#!/bin/sh\nexit "$(nc {lab.HOST_IN_GUEST} {f.port} </dev/null)"')
    t.k.guest.sh(f'chmod 755 {path}; printf /sbin/drbdadm >/sys/module/drbd/parameters/usermode_helper')


def refused(node, code, *words):
    """The command fails with that code of DRBD's, and with DRBD's sentence."""
    said = node.adm(*words, ok=None, **({'merge': True} if isinstance(node, nodes.Pollux) else {}))
    if f'({code})' not in said:
        raise lab.Failure(f'{node.name}: {" ".join(words)}: expected a refusal with ({code}), but it said: {said.strip() or "nothing"}')
    return re.search(r'\(' + str(code) + r'\) *([^\n]*)', said).group(1).strip()


@scenario('resource-only: the network fails, the handler outdates the peer, whose promotion is refused', allow=LOST, wire=True,
          name='fence-outdate')
def fence_outdate(t):
    words = []
    with fencing(t, 'resource-only') as f:
        f.act = f.outdate
        for primary in t.both_nodes:
            secondary = t.other(primary)
            t.make_primary(primary)
            r = recorder(t, primary)
            enough(r, 20)
            t.wire.part()
            primary.wait_state(ds='UpToDate/Outdated')
            secondary.wait_state(ds='Outdated/DUnknown')
            words.append(refused(secondary, -2, 'primary', 'r0'))
            enough(r, 20)
            t.wire.mend()
            r.stop()
            t.in_sync()
            check(r, *t.both_nodes)
        if f.calls != [n.name for n in t.both_nodes]:
            raise lab.Failure(f'fence-peer handlers called by {f.calls}')
    if len(set(words)) != 1:
        raise lab.Failure(f'Pollux refuses with {words[0]!r}, the kernel with {words[1]!r}')
    return f'{words[0]!r}; resync ' + t.resyncs('SyncSource', 'SyncTarget')


@scenario('resource-and-stonith: I/O stands still until the handler has killed the peer', allow=LOST, wire=True,
          name='fence-stonith')
def fence_stonith(t):
    with fencing(t, 'resource-and-stonith') as f:
        go = threading.Event()

        def act(asking):
            go.wait(60)
            return f.kill(asking)
        f.act = act
        for primary in t.both_nodes:
            go.clear()
            t.make_primary(primary)
            r = recorder(t, primary)
            enough(r, 50)
            t.wire.part()
            primary.wait_state(cs=('WFConnection', 'Unconnected'))
            lab.wait_for('the handler', 20, lambda: f.calls[-1:] == [primary.name])
            before = r.count
            try:
                enough(r, 1, 2)
            except lab.Failure:
                pass
            else:
                raise lab.Failure(f'{primary.name}: {r.count - before} writes were acknowledged before the peer was fenced')
            go.set()
            enough(r, 20)
            primary.wait_state(ds='UpToDate/Outdated')
            t.wire.mend()
            t.other(primary).start()
            if primary is t.p:
                t.k.adm('up', 'r0')
                in_guest(t, f)
            r.stop()
            t.in_sync()
            check(r, *t.both_nodes)
            primary.adm('secondary', 'r0')
    return 'handlers: ' + ', '.join(f.calls)


@scenario('fencing: disconnect outdates the Secondary, whoever asks for it', name='fence-disconnect', roles=True, allow=LOST)
def fence_disconnect(t, primary, secondary):
    t.make_primary(primary)
    t.configure(disk={'fencing': 'resource-only'})
    t.adjust()
    for node in primary, secondary:
        node.adm('disconnect', 'r0')
        secondary.wait_state(ds='Outdated/DUnknown')
        primary.wait_state(ds='UpToDate/Outdated')
        refused(secondary, -2, 'primary', 'r0')
        primary.fio(4 * MIB, MIB)
        node.adm('connect', 'r0')
        t.in_sync()
    return 'resync ' + t.resyncs(*['SyncSource' if primary is t.k else 'SyncTarget'] * 2, most=8 * MIB)


@scenario('outdate by hand, promotion refused, in order after the connection', name='outdate')
def outdate(t):
    words = []
    for node in t.both_nodes:
        t.disconnect(node)
        node.adm('outdate', 'r0')
        node.wait_state(ds='Outdated/DUnknown')
        words.append(refused(node, -2, 'primary', 'r0'))
        t.other(node).adm('primary', 'r0')
        t.other(node).fio(4 * MIB, MIB)
        node.adm('connect', 'r0')
        t.in_sync()
        t.other(node).adm('secondary', 'r0')
    return words[0]
