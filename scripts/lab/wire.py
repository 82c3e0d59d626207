"""wire: the network between the two nodes of the interop test, which can be cut and frozen.

Each node is told that its peer listens on a port of the wire; what arrives
there is passed on to the peer's own port, both ways. It accepts before it
knows whether the peer does: a refusal looks like a connection that is reset.

    w = wire.Wire({'kernel': kernel_port, 'pollux': pollux_port})
    w.ports['kernel']  # where the kernel is reached through the wire
    w.cut()            # all connections are reset; new ones are made
    w.freeze()         # nothing passes any more, neither bytes nor ends of connections
    w.thaw()           # ... until now; no byte was lost
"""
import socket
import struct
import threading

PIECE = 1 << 18  # read at once


class Wire:
    def __init__(self, targets):
        self.lock = threading.Lock()
        self.open = set()  # both ends of each connection
        self.passing = threading.Event()
        self.passing.set()
        self.refusing = False
        self.ports = {}
        for name, port in targets.items():
            listener = socket.create_server(('127.0.0.1', 0), backlog=64)
            self.ports[name] = listener.getsockname()[1]
            threading.Thread(target=self.accept, args=(listener, port), daemon=True).start()

    def accept(self, listener, port):
        while True:
            conn, _ = listener.accept()
            threading.Thread(target=self.connect, args=(conn, port), daemon=True).start()

    def connect(self, conn, port):
        self.passing.wait()
        try:
            if self.refusing:
                raise ConnectionRefusedError
            far = socket.create_connection(('127.0.0.1', port), 5)
            far.settimeout(None)
        except OSError:
            self.reset(conn)
            return
        with self.lock:
            self.open |= {conn, far}
        for sock in (conn, far):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(target=self.pump, args=(far, conn), daemon=True)
        back.start()
        self.pump(conn, far)
        back.join()
        with self.lock:
            self.open -= {conn, far}
        for sock in (conn, far):
            sock.close()

    def pump(self, source, sink):
        """Passes on what source says, and the end of it; the other way may go on then."""
        try:
            while True:
                data = source.recv(PIECE)
                self.passing.wait()
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(data)
        except OSError:
            # One of them was reset: so is the other.
            self.passing.wait()
            for sock in (source, sink):
                self.reset(sock)

    @staticmethod
    def reset(sock):
        """Ends a connection with a reset; a thread that reads from it wakes up."""
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            sock.shutdown(socket.SHUT_RD)
        except OSError:
            pass  # it is no longer connected
        sock.close()

    def cut(self):
        """Resets all connections; returns how many there were."""
        with self.lock:
            ended, self.open = self.open, set()
        for sock in ended:
            self.reset(sock)
        return len(ended) // 2

    def part(self):
        """Cuts, and refuses new connections until mend: the network is down, and both see it at once."""
        self.refusing = True
        return self.cut()

    def mend(self):
        self.refusing = False
        self.passing.set()

    def freeze(self):
        self.passing.clear()

    def thaw(self):
        self.passing.set()
