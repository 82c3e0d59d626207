"""lab starts and ends what a test against the kernel's DRBD needs.

    with lab.Lab('interop') as l:
        g = lab.Guest(l, 'kernel', size)  # build, logging disk, QEMU, ssh
        g.sh('cat /proc/drbd')            # a shell command in the guest -> its output
        l.spawn('polluxd', [...])         # a process of ours, its output in l.out

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

import faults

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
        self.run = self.env = None

    def __enter__(self):
        shutil.rmtree(self.out, ignore_errors=True)
        os.makedirs(self.out)
        self.run = tempfile.mkdtemp(prefix='pollux-lab.')
        self.env = dict(os.environ, POLLUX_LAB=LAB)

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
        shutil.rmtree(self.run, ignore_errors=True)

    # Processes on this machine.

    def spawn(self, name, argv, env=None):
        """Starts a process that lives no longer than this one; output goes to NAME.out."""
        with open(os.path.join(self.out, name + '.out'), 'ab') as log:
            child = subprocess.Popen(['setpriv', '--pdeathsig', 'KILL', '--'] + argv, env=dict(self.env, **(env or {})),
                                     cwd=self.out, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
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

    def command(self, argv, limit=30, ok=(0,), merge=True, env=None):
        """Runs argv to its end and returns its output; a status not in ok is a Failure.

        ok None takes any status; without merge stderr is left out of the output.
        """
        text = ' '.join(shlex.quote(a) for a in argv)
        try:
            done = subprocess.run(argv, env=dict(self.env, **(env or {})), cwd=self.out, timeout=limit,
                                  stdin=subprocess.DEVNULL,
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


class Guest:
    """A QEMU guest with the kernel's DRBD; its disks are logdisks of these sizes in bytes (one, or two)."""

    def __init__(self, lab, name, *sizes):
        self.lab, self.name = lab, name
        self.ssh_port, self.drbd_port = free_ports(2)
        self.run = os.path.join(lab.run, name)
        os.mkdir(self.run)
        self.drives = [faults.Disk(lab, f'{name}-vd{x}', size) for x, size in zip('ab', sizes)]
        self.disks = [d.path for d in self.drives]
        self.disk = self.disks[0]
        self.env = dict(LAB_RUN=self.run, LAB_SSH_PORT=str(self.ssh_port), LAB_DRBD_PORT=str(self.drbd_port))
        begin = time.monotonic()
        lab.command([os.path.join(HERE, 'build')], limit=180)
        self.seconds_to_build = time.monotonic() - begin
        self.env.update(zip(('LAB_DISK', 'LAB_DISK_B'), (f'nbd:unix:{d.socket}' for d in self.drives)))
        self.boot()

    def boot(self):
        """Starts QEMU and waits for its ssh; again after kill, on the disks as they are."""
        begin, console = time.monotonic(), f'{self.run}/console'
        if os.path.exists(console):
            os.unlink(console)  # it would say LAB-UP already
        self.lab.spawn(self.name + '-qemu', [os.path.join(HERE, 'guest'), 'run'], self.env)
        try:
            self.lab.command([os.path.join(HERE, 'guest'), 'wait'], 240, env=self.env)
        finally:
            if os.path.exists(console):
                shutil.copy(console, os.path.join(self.lab.out, self.name + '-console.txt'))
        # One ssh connection for all commands; without it each takes one of its own.
        self.lab.spawn(self.name + '-ssh', [os.path.join(HERE, 'guest'), 'master'], self.env)
        wait_for('the ssh connection', 20, lambda: os.path.exists(f'{self.run}/ssh'))
        self.seconds_to_boot = time.monotonic() - begin

    def kill(self):
        """The crash of the node: QEMU ends at once, what reached the disks stays.

        With a wish of the disks to lose what was not flushed, a power cut. Returns
        how many sectors each one lost.
        """
        before = [len(d.cuts()) for d in self.drives]
        self.lab.end(self.name + '-qemu', signal.SIGKILL)
        self.lab.end(self.name + '-ssh', signal.SIGKILL)
        if os.path.exists(f'{self.run}/ssh'):
            os.unlink(f'{self.run}/ssh')
        return [d.lost(n) for d, n in zip(self.drives, before)]

    def sh(self, script, limit=30, ok=(0,)):
        """Runs a shell script in the guest and returns its output."""
        return self.lab.command([os.path.join(HERE, 'guest'), 'sh', script], limit, ok, env=self.env)

    def write_file(self, path, text):
        self.sh(f"cat >{path} <<'END-OF-FILE'\n{text}\nEND-OF-FILE")

    def configure(self, peer_port, net=''):
        """Writes drbd.conf: resource r0, minor 1 on /dev/vda, its peer at that port of this machine."""
        self.write_file('/etc/drbd.conf', resource_file(
            ['/dev/vda'], ('kernel', GUEST_IP, GUEST_PORT), ('peer', HOST_IN_GUEST, peer_port), 'protocol C; ' + net))

    def proc_drbd(self, minor=1):
        """The entry of a minor in /proc/drbd as a dict: cs, ro, ds, oos, ...; empty if it is down."""
        found = re.search(rf'^ *{minor}: (.*(?:\n.*)?)', self.sh('cat /proc/drbd'), re.M)
        return dict(re.findall(r'(\w+):(\S+)', found.group(1))) if found else {}

    def mark(self, text):
        """Puts a line into the kernel's log, where kernel_log_since finds it."""
        self.sh(f'echo "pollux-lab: {text}" >/dev/kmsg')

    def kernel_log_since(self, text):
        lines = self.sh('dmesg').splitlines()
        starts = [i for i, line in enumerate(lines) if f'pollux-lab: {text}' in line]
        return lines[starts[-1]:] if starts else lines

    # The guest's disk.

    def flush_delay(self, wish):
        """Makes each flush take that many milliseconds longer, or fail ('fail')."""
        for d in self.drives:
            d.wish('flush=fail' if wish == 'fail' else f'flush-delay={wish}')

    def disk_log(self, disk=0):
        return self.drives[disk].log()


# The resync rate is fixed and high: the controller of 8.4 would start slowly,
# and the last P_SYNC_PARAM89 of the two nodes sets it for both.
DISK_OPTIONS = 'c-plan-ahead 0; resync-rate 400M; c-min-rate 0;'


def resource_file(disks, me, peer, net='protocol C;', disk=DISK_OPTIONS, more=''):
    """drbd.conf with r0 on the disks, minors 1 and up.

    me and peer are (node name, address, port); net and disk are the insides of
    these sections, more is what else belongs into the resource.
    """
    volumes = '\n'.join(f'    volume {i} {{ device /dev/drbd{i + 1} minor {i + 1}; disk {path}; meta-disk internal; }}'
                        for i, path in enumerate(disks))
    return f"""global {{ usage-count no; }}
resource r0 {{
{volumes}
    disk {{ {disk} }}
    net {{ {net} }}
    {more}
    on {me[0]} {{ address {me[1]}:{me[2]}; }}
    on {peer[0]} {{ address {peer[1]}:{peer[2]}; }}
}}"""


def run(main):
    """Runs main(); a Failure is one line and exit status 1."""
    try:
        sys.exit(main())
    except Failure as e:
        print(f'FAILED: {e}', file=sys.stderr)
        sys.exit(1)
