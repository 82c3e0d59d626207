"""faults: disks that are slow, fail, hang, or lose what was not flushed; and a cable that can be cut."""
import os
import signal
import socket
import threading

import lab


class Disk:
    """A logdisk of size bytes: the disk of a guest, or through FUSE that of a process here."""

    def __init__(self, l, name, size):
        self.l, self.name, self.size = l, name, size
        self.path = os.path.join(l.run, name + '.raw')
        self.socket = os.path.join(l.run, name + '.sock')
        self.log_path = os.path.join(l.out, name + '.log')
        self.wish_path = os.path.join(l.run, name + '.wishes')
        self.mount = os.path.join(l.run, name + '.fuse')
        with open(self.path, 'wb') as f:
            f.truncate(size)
        l.spawn(name, [os.path.join(lab.HERE, 'logdisk'), self.socket, self.path, self.log_path, self.wish_path])
        lab.wait_for('logdisk', 5, lambda: os.path.exists(self.socket))

    def wish(self, words=''):
        """Has the disk behave so from now on; see logdisk."""
        with open(self.wish_path + '.new', 'w') as f:
            f.write(words)
        os.replace(f.name, self.wish_path)

    def log(self):
        """[(begin, end, 'W', offset, length) or (begin, end, 'F') or (begin, end, 'P', sectors lost)]; see logdisk."""
        try:
            with open(self.log_path) as f:
                words = [line.split() for line in f if line.endswith('\n')]
        except FileNotFoundError:
            return []
        return [(int(w[0]), int(w[1]), w[2], *map(int, w[3:])) for w in words]

    def cuts(self):
        """How many sectors each end of a connection has lost."""
        return [e[3] for e in self.log() if e[2] == 'P']

    def plug(self):
        """Makes the disk a file, and returns its path. Who opens that without O_DIRECT reads this machine's page cache."""
        with open(self.mount, 'w'):
            pass
        self.l.spawn(self.name + '-fuse', ['nbdfuse', self.mount, '--unix', self.socket])
        lab.wait_for(f'{self.name} as a file', 10, lambda: os.path.getsize(self.mount) == self.size)
        return self.mount

    def unplug(self):
        """The file goes without a flush: with a wish to lose what is not flushed, a power cut. Returns the sectors lost."""
        before = len(self.cuts())
        self.l.end(self.name + '-fuse', signal.SIGKILL)
        self.l.command(['fusermount3', '-u', '-z', self.mount])
        return self.lost(before)

    def lost(self, before):
        """Waits for the end of the connection after so many; returns the sectors it lost."""
        return lab.wait_for('the end of the connection', 10, lambda: self.cuts()[before:])[0]


class Cable:
    """The way to a port of this machine by another port, that of the cable: it can be pulled out and put back.

    Connections over a cable that is pulled out hang, without end of file or
    reset, as with a real one; new ones are refused. When it is put back the old
    ones are reset.
    """

    def __init__(self, target):
        self.target, self.port = target, lab.free_ports(1)[0]
        self.up = threading.Event()
        self.ends = []
        self.put_back()

    def pull(self):
        self.up.clear()
        try:
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        except OSError:
            pass
        self.listener.close()

    def put_back(self):
        for s in self.ends:
            try:
                s.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads
            except OSError:
                pass
        self.ends = []
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(('127.0.0.1', self.port))
        self.listener.listen(16)
        self.up.set()
        threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()

    def accept(self, listener):
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return  # pulled out
            try:
                far = socket.create_connection(('127.0.0.1', self.target), 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self.ends += [near, far]
            for a, b in ((near, far), (far, near)):
                a.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self.forward, args=(a, b), daemon=True).start()

    def forward(self, a, b):
        try:
            while data := a.recv(1 << 18):
                self.up.wait()
                b.sendall(data)
        except OSError:
            pass
        self.up.wait()  # an end of file does not cross either
        for s in (a, b):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
