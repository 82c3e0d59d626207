package hostile

import (
	"encoding/binary"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// later ends an operation of a disk after its time, or when the disk answers again.
func (n *node) later(f func()) {
	life := n.life
	n.w.after(diskDelay, func() {
		switch {
		case life != n.life:
		case n.stuck:
			n.waiting = append(n.waiting, f)
		default:
			f()
		}
	})
}

// release has a stuck disk answer.
func (n *node) release() {
	n.stuck = false
	waiting, life := n.waiting, n.life
	n.waiting = nil
	for _, f := range waiting {
		if life == n.life {
			f()
		}
	}
}

func (n *node) faulty(k faultKind) bool {
	if n.faults[k] == 0 {
		return false
	}
	n.faults[k]--
	n.w.trace("%s fault %d", n.name, k)
	return true
}

// stampsOf are the first bytes of each sector.
func stampsOf(data []byte) []uint32 {
	s := make([]uint32, len(data)/512)
	for i := range s {
		s[i] = binary.BigEndian.Uint32(data[i*512:])
	}
	return s
}

// local runs a DoLocal or DoPeerLocal. The action is valid only now.
func (n *node) local(order *replication.Action) {
	v, a, count := n.vols[order.Volume], *order, drbd.Sector(order.Size/512)
	mine := a.Kind == replication.DoLocal
	if !v.attached {
		n.w.fail("%s: I/O on volume %d, which has no disk", n.name, v.num)
		return
	}
	if a.Size%512 != 0 || count == 0 || a.Sector > v.layout.Usable || count > v.layout.Usable-a.Sector {
		n.w.fail("%s: I/O of %d bytes at sector %d of %d", n.name, a.Size, a.Sector, v.layout.Usable)
		return
	}
	if a.Op != replication.OpRead && !mine {
		n.judgePeerWrite(v, a.Sector, count)
	}
	v.jobs++
	ended := func(err error, read []byte) {
		v.jobs--
		ev := &replication.Event{Kind: replication.PeerLocalDone, Volume: v.num, ID: a.ID, Peer: a.Peer, Data: read, Err: err}
		if mine {
			ev.Kind, ev.Data = replication.LocalDone, nil
		}
		if read != nil {
			if a.DigestAlg != "" {
				ev.Digest = digest(a.DigestAlg, read)
			}
			ev.AllZero = a.WantZero && isZero(read)
		}
		n.step(ev)
	}
	if a.Op == replication.OpRead {
		n.read(v, a, count, ended)
	} else {
		n.write(v, a, count, func(err error) { ended(err, nil) })
	}
}

func (n *node) read(v *volume, a replication.Action, count drbd.Sector, ended func(error, []byte)) {
	n.later(func() {
		if n.faulty(readFault) {
			ended(errDisk, nil)
			return
		}
		b := a.Data
		if a.Kind == replication.DoPeerLocal {
			b = make([]byte, count*512)
			n.hold(b)
		}
		for i := range int(count) {
			binary.BigEndian.PutUint32(b[i*512:], v.data.now[int(a.Sector)+i])
		}
		ended(nil, b)
	})
}

func (n *node) write(v *volume, a replication.Action, count drbd.Sector, ended func(error)) {
	stamps := make([]uint32, count)
	if a.Op == replication.OpWrite {
		if len(a.Data) != int(a.Size) {
			n.w.fail("%s: a write of %d bytes with %d bytes of data", n.name, a.Size, len(a.Data))
			return
		}
		stamps = stampsOf(a.Data)
	}
	mine := a.Kind == replication.DoLocal
	n.later(func() {
		if n.faulty(writeFault) {
			ended(errDisk)
			return
		}
		v.data.write(a.Sector, stamps)
		if a.FUA {
			for i := range stamps {
				at := int(a.Sector) + i
				v.data.durable[at], v.data.synced[at] = v.data.now[at], v.data.version[at]
			}
		}
		if mine && a.Op == replication.OpWrite {
			q := n.writes[&a.Data[0]]
			switch {
			case q != nil:
				q.local = true
			case n.disk.DiskTimeoutMS == 0: // else it was given up
				n.w.fail("%s: a write at sector %d is done that was answered before", n.name, a.Sector)
				return
			}
		}
		if mine { // of two requests in flight at once either may be the last
			clear(v.acked[a.Sector : a.Sector+count])
		}
		ended(nil)
	})
}

func isZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

func (n *node) syncData(v *volume) {
	end := v.data.sync()
	v.jobs++
	n.later(func() {
		v.jobs--
		ev := &replication.Event{Kind: replication.Synced, Volume: v.num}
		if n.faulty(syncFault) {
			ev.Err = errDisk
		} else {
			end()
		}
		n.step(ev)
	})
}

// writeMeta does a metadata job at once when its time has come: what is torn by
// a power cut is the simulation's matter.
func (n *node) writeMeta(a *replication.Action) {
	v, job := n.vols[a.Volume], *a.Job
	if !v.attached {
		n.w.fail("%s: metadata of volume %d, which has no disk", n.name, v.num)
		return
	}
	type write struct {
		off int64
		b   []byte
	}
	var writes []write
	add := func(off int64, b []byte) {
		if len(b) > 0 {
			writes = append(writes, write{off, append([]byte(nil), b...)})
		}
	}
	for _, p := range job.Pages {
		if off := int64(p.Page) * 4096; off < 0 || off+int64(len(p.Data)) > v.layout.BitmapBytes {
			n.w.fail("%s: page %d of a bitmap of %d bytes", n.name, p.Page, v.layout.BitmapBytes)
			return
		}
		add(v.layout.Bitmap+int64(p.Page)*4096, p.Data)
	}
	if job.ResetAL {
		add(v.layout.Superblock, job.Marked)
		for i := range v.layout.ALBlocks {
			add(v.layout.RingBlock(i), initialBlock)
		}
	}
	if job.ALBlock != nil {
		if job.ALRing < 0 || job.ALRing >= v.layout.ALBlocks {
			n.w.fail("%s: block %d of a ring of %d", n.name, job.ALRing, v.layout.ALBlocks)
			return
		}
		add(v.layout.RingBlock(job.ALRing), job.ALBlock)
	}
	add(v.layout.Superblock, job.Superblock)
	end := v.data.sync()
	v.jobs++
	n.later(func() {
		v.jobs--
		ev := &replication.Event{Kind: replication.MetaDone, Volume: v.num}
		if n.faulty(metaFault) {
			ev.Err = errDisk
			n.step(ev)
			return
		}
		if job.SyncData {
			end()
		}
		for _, w := range writes {
			if _, err := v.meta.WriteAt(w.b, w.off); err != nil {
				n.w.fail("%s: metadata: %v", n.name, err)
				return
			}
		}
		n.step(ev)
	})
}

// submit is a request of a client.
func (n *node) submit(op replication.Op, vol, sector, count int, fua bool) *request {
	v := n.vols[vol%len(n.vols)]
	size := min(int(n.res.SizeBytes(v.num)/512), len(v.acked)) // a node without a disk believes its peer
	if !n.alive || n.res.Room() == 0 || op != replication.OpFlush && size == 0 {
		return nil
	}
	if op == replication.OpFlush {
		sector, count = 0, 0
	} else {
		sector %= size
		count = min(max(count, 1), size-sector)
	}
	n.w.cfg.stamps++
	q := &request{op: op, vol: v, sector: sector, count: count, stamp: n.w.cfg.stamps, disk: v.attached}
	switch op { //nolint:exhaustive // the others carry no data
	case replication.OpWrite:
		q.data = make([]byte, count*512)
		for i := range count {
			binary.BigEndian.PutUint32(q.data[i*512:], q.stamp)
		}
		n.writes[&q.data[0]] = q
	case replication.OpRead:
		q.data = make([]byte, count*512)
	case replication.OpFlush:
		q.promise = append([]uint32(nil), v.acked...)
	}
	if op != replication.OpRead && op != replication.OpFlush {
		clear(v.acked[sector : sector+count]) // from now on either may be there
		for i := sector; i < sector+count; i++ {
			v.last[i] = q.stamp
		}
	}
	n.open++
	n.w.trace("%s submit op %d sector %d count %d stamp %d", n.name, op, sector, count, q.stamp)
	n.step(&replication.Event{
		Kind: replication.Submitted, Volume: v.num, Op: op, Sector: drbd.Sector(sector), Size: uint32(count * 512), Data: q.data, FUA: fua, Tag: q,
	})
	return q
}
