"""polluxd dies by kill -9 at whatever it is doing, and starts again; the machine it runs on goes on."""
import lab
import nodes
from bed import LOST, MIB
from scenario import scenario


def kill(t, when):
    lab.wait_for('the moment to kill polluxd', 30, when)
    t.p.kill()
    t.p.start()


@scenario('polluxd killed in the middle of a resync to it: that is resumed', disk={'resync-rate': '8M'})
def killed_target(t):
    t.allowed = LOST
    t.make_primary(t.k)
    size = t.k.size()
    t.p.adm('invalidate', 'r0')
    t.wait_said('Began resync')
    kill(t, lambda: 0 < int(t.k.state()['oos']) < (size >> 10) * 3 // 4)
    t.in_sync('Primary/Secondary', 90)
    seen = t.k.resynced(t.mark)
    if [role for role, _ in seen] != ['SyncSource'] * 2 or seen[0][1] << 10 < size - 4096 or seen[1][1] > seen[0][1]:
        raise lab.Failure(f'kernel log: resyncs {seen} (role, KiB); expected a full one as SyncSource, and the rest of it')
    return f'{seen[1][1]} KiB of {seen[0][1]}'


@scenario('polluxd killed while the kernel writes; resynced while the writes go on', name='killed-secondary', quick=True)
def killed_secondary(t):
    t.allowed = LOST
    t.make_primary(t.k)
    with t.load(t.k, seconds=8):
        before = t.k.written()
        kill(t, lambda: t.k.written() > before + 512)
        t.both('connected again', 60, cs='Connected', ds='UpToDate/UpToDate')
    t.in_sync('Primary/Secondary')
    return t.resyncs('SyncSource')


@scenario('polluxd killed while its client writes; Primary again, nothing acknowledged is lost', name='killed-primary')
def killed_primary(t):
    t.allowed = LOST
    t.make_primary(t.p)
    recorder = nodes.Recorder(t.p.uri(), 4 * MIB, 8 * MIB)
    kill(t, lambda: recorder.count > 500)
    recorder.stop()
    if not recorder.died:
        raise lab.Failure('the writes were over before polluxd was killed')
    t.in_sync('Secondary/Primary')
    for node in t.both_nodes:
        if recorder.lost(node):
            raise lab.Failure(f'{node.name} lost the acknowledged writes at {recorder.lost(node)[:5]}')
    return f'{recorder.count} writes, {t.resyncs("SyncTarget")}'
