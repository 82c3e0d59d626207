"""Full and partial resyncs both ways: plain and RLE bitmaps, checksums, pauses."""
import time

import lab
from bed import MIB
from scenario import scenario

# A resync that lasts long enough to be paused: some seconds for what is written here.
SLOW = {'resync-rate': '1M'}


def source_word(t, source):
    """The kernel's role in a resync from that node."""
    return 'SyncSource' if source is t.k else 'SyncTarget'


def full_size(t):
    """What a full sync is at least and at most, in bytes."""
    size = t.k.size()
    return dict(least=size - 4096, most=size)


@scenario('first sync of new disks, primary --force', roles=False, quick=True, name='first-sync-kernel')
def first_sync_kernel(t):
    return first_sync(t, t.k)


@scenario('first sync of new disks from Pollux, primary --force', name='first-sync-pollux')
def first_sync_pollux(t):
    return first_sync(t, t.p)


def first_sync(t, source):
    t.new_disks(full=source)
    t.mark_log('first sync')
    source.adm('primary', '--force', 'r0')
    t.in_sync('Primary/Secondary' if source is t.k else 'Secondary/Primary', 90)
    return t.resyncs(source_word(t, source), **full_size(t))


@scenario('full syncs: invalidate on the Secondary, invalidate-remote on the Primary', roles=True, quick=True)
def full_sync(t, primary, secondary):
    words = []
    for node, command in ((secondary, 'invalidate'), (primary, 'invalidate-remote')):
        primary.fio(0, 2 * MIB)
        secondary.damage(20 * MIB + 5)  # repaired only by a resync of all
        t.mark_log(command)
        node.adm(command, 'r0')
        t.wait_said('Began resync')
        t.in_sync(limit=90)
        words.append(t.resyncs(source_word(t, primary), **full_size(t)))
    return ', '.join(words)


@scenario('full sync between two Secondaries, invalidate on either', name='full-sync-secondaries')
def full_sync_secondaries(t):
    for node in t.both_nodes:
        node.damage(10 * MIB)
        t.mark_log('invalidate')
        node.adm('invalidate', 'r0')
        t.wait_said('Began resync')
        t.in_sync('Secondary/Secondary', 90)
        t.resyncs(source_word(t, t.other(node)), **full_size(t))


def bitmap_resync(t, primary, secondary, leaver, rle):
    """leaver disconnects, the Primary writes here and there, leaver connects: only that is resynced."""
    t.disconnect(leaver)
    primary.fio(4 * MIB, 2 * MIB)
    primary.fio(20 * MIB, 2 * MIB)
    t.connect(leaver)
    t.in_sync(limit=60)
    # Extents of the activity log that were hot may be added by a careful Primary.
    word = t.resyncs(source_word(t, primary), least=4 * MIB, most=24 * MIB)
    # The kernel says nothing of a bitmap that was not compressed.
    stats = t.said(r'(?:send|receive) bitmap stats \[Bytes\(packets\)\]: plain 0\(0\), RLE [1-9]')
    if len(stats) != (2 if rle else 0):
        raise lab.Failure(f'use-rle {rle}: the kernel tells of {len(stats)} bitmaps that were compressed')
    return word


@scenario('outage, bitmap resync with RLE', roles=True, quick=True, net={'use-rle': 'yes'})
def bitmap_rle(t, primary, secondary):
    return bitmap_resync(t, primary, secondary, primary, True)


@scenario('outage, bitmap resync, plain bitmap', roles=True, net={'use-rle': 'no'})
def bitmap_plain(t, primary, secondary):
    return bitmap_resync(t, primary, secondary, secondary, False)


@scenario('csums-alg: only blocks that differ are sent', roles=True, net={'csums-alg': 'sha1'})
def checksums(t, primary, secondary):
    primary.fio(0, 4 * MIB)
    t.in_sync()
    secondary.damage(3 * MIB)
    secondary.adm('invalidate', 'r0')
    t.wait_said('Began resync')
    t.in_sync(limit=90)
    equal = t.said(r'(\d+) % had equal checksums')
    # All but the one request, of 4 KiB to 1 MiB, that has the damaged block.
    if len(equal) != 1 or not 96 <= int(equal[0]) <= 99:
        raise lab.Failure(f'{equal} % of the blocks were equal, expected 96 to 99: all but one request')
    return f'equal: {equal[0]} %'


@scenario('rs-discard-granularity: thin resync, zeroes are not sent', roles=True, net={'csums-alg': 'sha1'})
def thin(t, primary, secondary):
    primary.fio(0, 2 * MIB)
    t.in_sync()
    secondary.adm('disk-options', '--rs-discard-granularity=65536', 'r0')
    secondary.damage(25 * MIB)
    secondary.adm('invalidate', 'r0')
    t.wait_said('Began resync')
    t.in_sync(limit=90)


@scenario('resync paused and resumed by either side', roles=True, disk=SLOW)
def pause(t, primary, secondary):
    t.disconnect(secondary)
    primary.fio(4 * MIB, 8 * MIB)
    t.connect(secondary)
    running, paused = ('SyncSource', 'PausedSyncS') if primary is t.k else ('SyncTarget', 'PausedSyncT')
    t.both('a resync', 20, cs=running)
    for node in t.both_nodes:
        node.adm('pause-sync', 'r0')
        t.both(f'paused by {node.name}', 20, cs=paused)
        time.sleep(0.5)  # what was under way arrives
        before = t.k.state()['oos'], t.p.state()['oos']
        time.sleep(1.5)  # a running resync would copy 1.5 MiB
        after = t.k.state()['oos'], t.p.state()['oos']
        if before != after or before[0] != before[1] or before[0] == '0':
            raise lab.Failure(f'paused by {node.name}: out of sync was {before} KiB (kernel, Pollux), is {after}')
        node.adm('resume-sync', 'r0')
        t.both(f'resumed by {node.name}', 20, cs=running)
    # Both pause: it goes on when both have resumed.
    for node in t.both_nodes:
        node.adm('pause-sync', 'r0')
    t.both('paused by both', 20, cs=paused)
    t.p.adm('resume-sync', 'r0')
    time.sleep(0.5)  # long enough for a wrong resume
    t.both('resumed by Pollux alone', 20, cs=paused)
    t.k.adm('resume-sync', 'r0')
    t.both('resumed by both', 20, cs=running)
    for node in t.both_nodes:
        node.adm('disk-options', '--resync-rate=400M', 'r0')
    t.in_sync(limit=60)
