"""lab starts and ends what a test against the kernel's DRBD needs.

    with lab.Lab('interop') as l:
        l.start_guest(size)           # build, logging disk, QEMU, ssh
        l.guest('cat /proc/drbd')     # a shell command in the guest -> its output
        l.spawn('polluxd', [...])     # a process of ours, its log in l.out

Leaving the block, by an exception or a signal too, ends every process that was
started, by its pid; the kernel does so if this process is killed. Everything
worth reading afterwards is in l.out (build/lab/out/NAME); sockets and disks
are in l.run, a directory below TMPDIR that goes away.

Each wait has a limit in seconds and says what it waited for.
"""
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
LAB = os.path.abspath(os.environ.get('POLLUX_LAB', os.path.join(ROOT, 'build', 'lab')))

# Addresses of QEMU's user network as the guest sees them.
HOST_IN_GUEST, GUEST_IP, GUEST_PORT = '10.0.2.2', '10.0.2.15', 7789


class Failure(Exception):
    """A step of a test did not do what it should; the text says which and how."""


def wait_for(what, limit, condition):
    """Polls condition until it returns something true, and returns that."""
    end = time.monotonic() + limit
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Failure(f'{what}: not within {limit} s')
        time.sleep(0.1)


def free_ports(n):
    """n ports on 127.0.0.1 that nothing listens on now."""
    socks = []
    for _ in range(n):
        s = socket.socket()
        s.bind(('127.0.0.1', 0))
        socks.append(s)
    ports = [s.getsockname()[1] for s in socks]
    for s in socks:
        s.close()
    return ports


class Lab:
    def __init__(self, name):
        self.out = os.path.join(LAB, 'out', name)
        self.children = []  # (name, Popen), in order of start
        self.run = None
        self.logs = {}

    def __enter__(self):
        shutil.rmtree(self.out, ignore_errors=True)
        os.makedirs(self.out)
        self.run = tempfile.mkdtemp(prefix='pollux-lab.')
        self.ssh_port, self.drbd_port, self.our_port = free_ports(3)
        self.disk = os.path.join(self.run, 'vda.raw')
        self.disk_log_path = os.path.join(self.out, 'vda.log')
        self.delay_path = os.path.join(self.run, 'flush-delay')
        self.env = dict(os.environ, LAB_RUN=self.run, LAB_SSH_PORT=str(self.ssh_port),
                        LAB_DRBD_PORT=str(self.drbd_port), POLLUX_LAB=LAB,
                        LAB_DISK=f'nbd:unix:{self.run}/vda.sock')

        def stop(number, _frame):
            raise SystemExit(128 + number)

        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, stop)
        return self

    def __exit__(self, *_):
        # A second signal must not stop the tidying up.
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        for name, _ in reversed(list(self.children)):
            self.end(name)
        console = os.path.join(self.run, 'console')
        if os.path.exists(console):
            shutil.copy(console, self.out)
        shutil.rmtree(self.run, ignore_errors=True)

    # Processes on this machine.

    def spawn(self, name, argv):
        """Starts a process that lives no longer than this one; output goes to NAME.out."""
        with open(os.path.join(self.out, name + '.out'), 'ab') as log:
            child = subprocess.Popen(['setpriv', '--pdeathsig', 'KILL', '--'] + argv, env=self.env,
                                     stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.children.append((name, child))
        return child

    def end(self, name, how=signal.SIGTERM, limit=5):
        """Ends the process of that name, with a kill if it takes too long; returns its status."""
        for i, (n, child) in reversed(list(enumerate(self.children))):
            if n == name:
                if child.poll() is None:
                    child.send_signal(how)
                    try:
                        child.wait(limit)
                    except subprocess.TimeoutExpired:
                        child.kill()
                        child.wait()
                del self.children[i]
                return child.returncode
        return None

    def alive(self, name):
        return any(n == name and child.poll() is None for n, child in self.children)

    def command(self, argv, limit=30, ok=(0,), merge=True):
        """Runs argv to its end and returns its output; a status not in ok is a Failure."""
        text = ' '.join(shlex.quote(a) for a in argv)
        try:
            done = subprocess.run(argv, env=self.env, stdin=subprocess.DEVNULL, timeout=limit,
                                  stdout=subprocess.PIPE, text=True, errors='replace',
                                  stderr=subprocess.STDOUT if merge else subprocess.PIPE)
        except subprocess.TimeoutExpired as e:
            self.note(f'$ {text}\n[no end within {limit} s]')
            raise Failure(f'{text}: no end within {limit} s') from e
        self.note(f'$ {text}\n{done.stdout}[{done.returncode}]')
        if ok is not None and done.returncode not in ok:
            said = (done.stdout + (done.stderr or '')).strip().splitlines()[-3:]
            raise Failure(f'{text}: exit status {done.returncode}: {" / ".join(said)}')
        return done.stdout

    def note(self, text):
        """Adds a line with its time to commands.log."""
        with open(os.path.join(self.out, 'commands.log'), 'a') as log:
            log.write(f'{time.monotonic():.3f} {text}\n')

    # The guest.

    def start_guest(self, size):
        """Builds the guest if need be and boots it on a zeroed disk of size bytes."""
        begin = time.monotonic()
        self.command([os.path.join(HERE, 'build')], limit=180)
        built = time.monotonic()
        with open(self.disk, 'wb') as f:
            f.truncate(size)
        self.spawn('logdisk', [os.path.join(HERE, 'logdisk'), f'{self.run}/vda.sock', self.disk,
                               self.disk_log_path, self.delay_path])
        wait_for('logdisk', 5, lambda: os.path.exists(f'{self.run}/vda.sock'))
        self.spawn('qemu', [os.path.join(HERE, 'guest'), 'run'])
        self.command([os.path.join(HERE, 'guest'), 'wait'], limit=90)
        return built - begin, time.monotonic() - built

    def guest(self, script, limit=30, ok=(0,)):
        """Runs a shell script in the guest and returns its output."""
        return self.command([os.path.join(HERE, 'guest'), 'sh', script], limit, ok)

    def guest_file(self, path, text):
        self.guest(f"cat >{path} <<'END-OF-FILE'\n{text}\nEND-OF-FILE")

    def kernel_config(self, protocol='C', net=''):
        """Writes the guest's drbd.conf: resource r0, minor 1 on /dev/vda, peer on this machine."""
        self.guest_file('/etc/drbd.conf', f"""
global {{ usage-count no; }}
resource r0 {{
    device /dev/drbd1 minor 1;
    disk /dev/vda;
    meta-disk internal;
    disk {{ c-plan-ahead 0; resync-rate 200M; }}
    net {{ protocol {protocol}; {net} }}
    on kernel {{ address {GUEST_IP}:{GUEST_PORT}; }}
    on pollux {{ address {HOST_IN_GUEST}:{self.our_port}; }}
}}""")

    def proc_drbd(self):
        """The line of minor 1 in the guest's /proc/drbd as a dict: cs, ro, ds, oos, ..."""
        text = self.guest('cat /proc/drbd')
        found = re.search(r'^ *1: (.*\n.*)', text, re.M)
        return dict(re.findall(r'(\w+):(\S+)', found.group(1))) if found else {}

    # The guest's disk.

    def flush_delay(self, wish):
        """Makes each flush take that many milliseconds longer, or fail ('fail')."""
        with open(self.delay_path + '.new', 'w') as f:
            f.write(str(wish))
        os.replace(f.name, self.delay_path)

    def disk_log(self):
        """[(begin, end, 'W', offset, length) or (begin, end, 'F')], times in ns."""
        lines = []
        with open(self.disk_log_path) as f:
            for line in f:
                w = line.split()
                lines.append((int(w[0]), int(w[1]), w[2], *map(int, w[3:])))
        return lines


def run(main):
    """Runs main(); a Failure is one line and exit status 1."""
    try:
        sys.exit(main())
    except Failure as e:
        print(f'FAILED: {e}', file=sys.stderr)
        sys.exit(1)
