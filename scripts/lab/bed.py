"""bed: the kernel's DRBD and polluxd joined in one resource, and what scenarios are made of.

A Bed brings both nodes into the state that a scenario needs, and ends it with
the closing check: in sync, equal byte for byte, verified from each side, and
nothing in the kernel's log that it says of a peer which breaks the protocol.
"""
import contextlib
import os
import re
import threading
import time

import lab
import nodes
import wire

MIB = nodes.MIB
DISKS = [32 * MIB, 16 * MIB]
# Ours are larger, so that the two must agree on a size.
OUR_DISKS = [size + 4 * MIB for size in DISKS]

# What the kernel says only if its peer has broken the protocol, or if it lost us.
COMPLAINTS = ('BAD!', 'ASSERT', 'ProtocolError', 'NetworkFailure', 'BrokenPipe', 'Timeout', 'nexpected', 'nknown packet',
              'out of order', 'plit-Brain', 'PingAck did not arrive', 'Digest', 'bogus', 'wrong', 'BUG:', 'WARNING:',
              'sock_sendmsg returned', 'sock_recvmsg returned', 'short read', 'not in sync', 'blocked for more than')
# Of these, what it says of a peer that has died, or whose connection was cut.
LOST = ('NetworkFailure', 'BrokenPipe', 'sock_sendmsg returned', 'sock_recvmsg returned', 'short read')


class Bed:
    """k is the kernel's side, p is Pollux's, wire what is between them for a scenario that wants it."""

    def __init__(self, l):
        self.l, self.mark, self.last = l, '', ''
        guest = lab.Guest(l, 'kernel', *DISKS)
        self.k, self.p = nodes.Kernel(guest, DISKS), nodes.Pollux(l, OUR_DISKS)
        self.network = wire.Wire({'kernel': self.k.listen_port, 'pollux': self.p.listen_port})
        self.broken = True  # nothing is known of the nodes' state
        self.volumes, self.config = 1, None
        self.wired = False  # the nodes reach each other through the wire
        self.undo = []      # what to call before the next scenario begins
        self.allowed = ()   # complaints of the kernel that the scenario expects
        self.forgiven = ()  # parts of whole lines of the kernel's that are not counted as complaints
        self.log_from = 0   # where polluxd's log of this scenario begins

    @property
    def wire(self):
        """The network in between, which can be cut, parted and frozen."""
        if not self.wired:
            raise lab.Failure('the nodes do not reach each other through the wire: the scenario needs wire=True')
        return self.network

    @property
    def both_nodes(self):
        return (self.k, self.p)

    def other(self, node):
        return self.p if node is self.k else self.k

    # Configuration.

    def configure(self, net=None, disk=None, more='', kernel_net=None, pollux_net=None):
        """Writes both nodes' drbd.conf: these options over the usual ones; kernel_net and pollux_net for one node only."""
        net, disk = net or {}, disk or {}
        ports = self.network.ports if self.wired else {node.name: node.listen_port for node in self.both_nodes}
        self.k.configure(ports['pollux'], {**net, **(kernel_net or {})}, disk, more)
        self.p.configure(ports['kernel'], {**net, **(pollux_net or {})}, disk, more)
        self.config = (net, disk, more, kernel_net, pollux_net, self.wired)

    def adjust(self, *which):
        """Has the nodes (both unless named) take up what configure wrote, while they run."""
        for node in which or self.both_nodes:
            node.adm('adjust', 'r0')

    def restart(self):
        """Both down and up again with the files as they are now."""
        for node in self.both_nodes:
            node.down()
        for node in self.both_nodes:
            node.adm('up', 'r0')

    # Where a scenario begins.

    def prepare(self, s):
        """Both nodes Connected, UpToDate, Secondary but for s.primary, with the configuration of scenario s."""
        while self.undo:
            self.undo.pop()()
        self.network.mend()
        self.k.guest.flush_delay(0)
        self.wired = s.wire
        if s.volumes != self.volumes or self.broken:
            self.fresh(s)
        elif (s.net, s.disk, s.more, None, None, s.wire) != self.config:
            self.configure(s.net, s.disk, s.more)
            self.restart()
        else:
            self.adjust()  # options that the last one changed by command
        for node in self.both_nodes:
            if node.is_primary():
                node.adm('secondary', 'r0')
        self.in_sync('Secondary/Secondary', 40)
        primary = {'kernel': self.k, 'pollux': self.p}.get(s.primary)
        if primary:
            primary.adm('primary', 'r0')

    def fresh(self, s):
        """New metadata on disks of zeroes, of one generation."""
        self.broken = True
        self.volumes = s.volumes
        for node, sizes in ((self.k, DISKS), (self.p, OUR_DISKS)):
            node.volumes, node.sizes = s.volumes, sizes[:s.volumes]
        self.configure(s.net, s.disk, s.more)
        self.new_disks()
        for volume in range(self.volumes):
            self.p.adm('new-current-uuid', '--clear-bitmap', f'r0/{volume}')
        self.in_sync('Secondary/Secondary')
        self.broken = False

    def new_disks(self, full=None):
        """New metadata on both; the disks hold zeroes, that of the node full random data. Connected then, and Inconsistent."""
        for node in self.both_nodes:
            node.renew(node is full)
        for node in self.both_nodes:
            node.adm('up', 'r0')
        self.both('new disks, connected', 40, cs='Connected', ro='Secondary/Secondary', ds='Inconsistent/Inconsistent')

    def mark_log(self, text):
        """From here on count the kernel's messages for resyncs, said and the closing check."""
        self.mark = text
        self.k.guest.mark(text)

    # Waiting for a state.

    def both(self, what, limit=60, **want):
        """Waits until both nodes show this for each volume; ds, cs and ro as the kernel shows them."""
        mirror = {key: '/'.join(reversed(value.split('/'))) for key, value in want.items()}
        mirror['cs'] = {'SyncSource': 'SyncTarget', 'SyncTarget': 'SyncSource', 'PausedSyncS': 'PausedSyncT',
                        'PausedSyncT': 'PausedSyncS'}.get(want.get('cs'), want.get('cs'))

        def there():
            seen = [(self.k.state(v), self.p.state(v)) for v in range(self.volumes)]
            self.last = '; '.join(f'kernel {k}; pollux {p}' for k, p in seen)
            if any('StandAlone' in (k['cs'], p['cs']) for k, p in seen) and 'StandAlone' not in want.get('cs', ''):
                raise lab.Failure(f'{what}: StandAlone')
            return all(k[key] == v and p[key] == mirror[key] for k, p in seen for key, v in want.items())
        try:
            lab.wait_for(what, limit, there)
        except lab.Failure as e:
            raise lab.Failure(f'{e}: {self.last}; {self.p.why()}') from e

    def roles(self):
        return self.k.state()['ro']

    def in_sync(self, ro=None, limit=60):
        """Both Connected, UpToDate, nothing out of sync; ro are the roles from the kernel's view."""
        want = {'ro': ro} if ro else {}
        self.both(f'Connected UpToDate/UpToDate {ro or ""}', limit, cs='Connected', ds='UpToDate/UpToDate', oos='0', **want)
        disagreement = self.p.disagreement('/'.join(reversed((ro or self.roles()).split('/'))))
        if disagreement:
            raise lab.Failure(disagreement)

    def stand_alone(self, limit=30):
        lab.wait_for('both StandAlone', limit, lambda: all(n.state()['cs'] == 'StandAlone' for n in self.both_nodes))

    # Steps of scenarios.

    def make_primary(self, node):
        """node Primary, the other Secondary, and both agree on it."""
        if self.other(node).is_primary():
            self.other(node).adm('secondary', 'r0')
        node.adm('primary', 'r0')
        self.both('roles', 20, ro='Primary/Secondary' if node is self.k else 'Secondary/Primary')

    def disconnect(self, node):
        """node disconnects; both show it."""
        node.adm('disconnect', 'r0')
        node.wait_state(cs='StandAlone')
        self.other(node).wait_state(cs=('WFConnection', 'Unconnected', 'StandAlone'))

    def both_disconnect(self):
        """Both StandAlone; one that gave up by itself is already (the kernel has forgotten the connection then).

        In the middle of a handshake the kernel refuses with 11 (-18, transient state): it is asked again.
        """
        def disconnected():
            for node in self.both_nodes:
                node.adm('disconnect', 'r0', ok=(0, 10, 11))
            return all(node.state()['cs'] == 'StandAlone' for node in self.both_nodes)
        lab.wait_for('both to disconnect', 30, disconnected)

    def connect(self, *which):
        for node in which or self.both_nodes:
            node.adm('connect', 'r0')

    @contextlib.contextmanager
    def load(self, node, offset=0, size=8 * MIB, seconds=6, volume=0):
        """fio writes to node's device for about that many seconds and reads it all back, while the block runs.

        Its beginning is waited for, and the block must end before the writes do.
        """
        failures, before = [], node.written(volume)

        def run():
            try:
                node.fio(offset, size, seconds, volume)
            except lab.Failure as e:
                failures.append(e)
        thread = threading.Thread(target=run)
        thread.start()
        try:
            lab.wait_for('the first write of fio', 40, lambda: failures or node.written(volume) > before)
            yield thread
            if not thread.is_alive() and not failures:
                raise lab.Failure('fio was over too early: nothing was shown under load')
        finally:
            thread.join()
        if failures:
            raise failures[0]

    def together(self, *steps):
        """Runs all of steps at the same time; the first failure counts."""
        failures = []

        def run(step):
            try:
                step()
            except Exception as e:  # raised again below
                failures.append(e)
        threads = [threading.Thread(target=run, args=(step,)) for step in steps]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        if failures:
            raise failures[0]

    # What is shown.

    def resyncs(self, *roles, least=0, most=None):
        """The kernel saw resyncs in just these roles since the mark, each of least..most bytes; a word for the table."""
        seen = self.k.resynced(self.mark)
        if [role for role, _ in seen] != list(roles) or any(not least <= kib << 10 <= (most or 1 << 62) for _, kib in seen):
            raise lab.Failure(f'kernel log: resyncs {seen} (role, KiB); expected {list(roles)} of {least >> 10}..{(most or 0) >> 10} KiB')
        return ', '.join(f'{kib} KiB' for _, kib in seen)

    def said(self, pattern):
        """What the kernel's log holds of a regular expression since the mark."""
        return re.findall(pattern, self.k.log(self.mark))

    def wait_said(self, pattern, limit=30):
        """Waits until the kernel has logged it since the mark, and returns what was found."""
        return lab.wait_for(f'{pattern!r} in the kernel\'s log', limit, lambda: self.said(pattern))

    def wait_pollux_said(self, text, limit=30):
        lab.wait_for(f'{text!r} in polluxd\'s log', limit, lambda: text in self.p.log(self.log_from))

    def compare(self):
        """The data areas of both disks are equal, outside the metadata."""
        for volume in range(self.volumes):
            size, ours = self.k.size(volume), self.p.size(volume)
            if size != ours:
                raise lab.Failure(f'volume {volume}: the kernel has {size} bytes, we {ours}')
            if self.k.image_sum(size, volume) != self.p.image_sum(size, volume):
                at = next((at for at in range(0, size, 4096) if self.k.data(at, 4096, volume) != self.p.data(at, 4096, volume)), None)
                raise lab.Failure(f'volume {volume}: the disks differ, first in the block at byte {at} of {size}')

    def verify(self, node):
        """An online verify that node starts runs to its end and finds nothing."""
        text = f'verify by {node.name} {time.monotonic()}'
        self.k.guest.mark(text)
        node.adm('verify', 'r0')
        lab.wait_for(f'verify by {node.name}: its end in the kernel\'s log', 60,
                     lambda: self.k.log(text).count('Online verify done') >= self.volumes)
        found = re.findall(r'Online *verify found (\d+)', self.k.log(text), re.I)
        if found:
            raise lab.Failure(f'verify by {node.name}: {", ".join(found)} blocks are out of sync')
        self.in_sync()

    def close(self):
        """The check that ends each scenario."""
        self.in_sync()
        for node in self.both_nodes:
            self.verify(node)
        self.compare()
        self.complaints()

    def complaints(self):
        """The kernel has said nothing that the scenario did not expect, and polluxd has not panicked."""
        log = self.k.log(self.mark).splitlines()
        words = [c for c in COMPLAINTS if c not in self.allowed]
        lines = [line for line in log if ('drbd' in line or 'BUG' in line) and any(c in line for c in words)
                 and not any(f in line for f in self.forgiven)]
        if lines:
            raise lab.Failure('the kernel says: ' + ' | '.join(lines[:3]))
        ours = re.findall(r'^(?:panic|fatal error): .*', self.p.log(self.log_from), re.M)
        if ours:
            raise lab.Failure('polluxd: ' + ours[0])

    def keep_logs(self, name):
        """The kernel's log of this scenario and both nodes' states, for the one who reads a failure."""
        with open(os.path.join(self.l.out, name + '.txt'), 'w') as f:
            for title, what in (('kernel', lambda: self.k.log(self.mark) + self.k.guest.sh('cat /proc/drbd', ok=None)),
                                ('polluxd', lambda: self.p.log(self.log_from) + self.p.adm('status', '--json', ok=None))):
                try:
                    f.write(f'==== {title}\n{what()}\n')
                except lab.Failure as e:
                    f.write(f'==== {title}: {e}\n')
