"""faults: disks that are slow, fail, hang, or lose in a power cut what was not flushed."""
import os
import signal

import lab


class Disk:
    """A logdisk of size bytes: the disk of a guest, or through FUSE that of a process here.

    path is the file behind it; it is made unless it is there.
    """

    def __init__(self, l, name, size, path=None):
        self.l, self.name, self.size = l, name, size
        self.path = path or os.path.join(l.run, name + '.raw')
        self.socket = os.path.join(l.run, name + '.sock')
        self.log_path = os.path.join(l.out, name + '.log')
        self.wish_path = os.path.join(l.run, name + '.wishes')
        self.mount = os.path.join(l.run, name + '.fuse')
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        with open(self.path, 'ab') as f:
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

    def close(self):
        """Ends it, unplugged; the file behind it stays."""
        self.l.end(self.name)

    def lost(self, before):
        """Waits for the end of the connection after so many; returns the sectors it lost."""
        return lab.wait_for('the end of the connection', 10, lambda: self.cuts()[before:])[0]
