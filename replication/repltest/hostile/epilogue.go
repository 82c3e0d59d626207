package hostile

import (
	"errors"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// Limits of the epilogue, in simulated milliseconds.
const (
	patience  = 300_000
	syncLimit = 900_000
)

// epilogue leaves node a alone and sees that it works, and then gives it a
// healthy peer.
func (m *machine) epilogue() {
	a, w := m.a, m.w
	w.trace("-- epilogue")
	w.events, w.apart, w.ghost = 0, true, nil
	m.b.kill()
	w.cut()
	a.faults = [4]int{}
	a.release()
	w.run(100, nil)
	if !a.alive || w.failure != nil {
		return
	}
	m.finish(m.cmd(a, replication.CmdResumeIO), "resume-io")
	m.finish(m.force(a, replication.CmdDisconnect), "disconnect")
	m.finish(m.cmd(a, replication.CmdResumeIO), "resume-io") // what froze because the peer is gone
	m.finish(a.command(replication.Command{Kind: replication.CmdSetOptions, Net: w.cfg.net, Disk: w.cfg.disk}), "the options of its file")
	m.finish(m.cmd(a, replication.CmdSecondary), "secondary") // a Primary that has worked without its disk does not take it back
	for _, v := range a.vols {
		m.finish(a.command(replication.Command{Kind: replication.CmdResumeSync, Volume: v.num}), "resume-sync")
	}
	for i, v := range a.vols {
		w.run(patience, func() bool { return v.attached || a.res.VolumeState(v.num).Disk == drbd.Diskless })
		a.attach(i)
		w.run(patience, func() bool { return a.res.VolumeState(v.num).Disk > drbd.Negotiating })
	}
	if o := m.force(a, replication.CmdPrimary); !m.finish(o, "primary --force") {
		return
	} else if o.err != nil {
		w.fail("a cannot be promoted by force: %v: %v", o.err, a)
		return
	}
	m.finish(m.cmd(a, replication.CmdResumeIO), "resume-io")
	w.run(patience, func() bool { return a.open == 0 })
	if a.open != 0 {
		w.fail("%d requests of clients are not answered, alone: %v", a.open, a)
		return
	}
	m.serves("alone")
	a.judgeDisk()
	if w.failure == nil {
		m.healthy()
	}
}

// finish waits for the end of a command.
func (m *machine) finish(o *outcome, what string) bool {
	m.w.run(patience, func() bool { return o.done })
	if !o.done {
		m.w.fail("%s does not end: %v", what, m.a)
	}
	return o.done && m.w.failure == nil
}

// serves writes, flushes and reads on each volume.
func (m *machine) serves(when string) {
	w, a := m.w, m.a
	for i, v := range a.vols {
		var q [3]*request
		for k, op := range []replication.Op{replication.OpWrite, replication.OpFlush, replication.OpRead} {
			if q[k] = a.submit(op, i, 16, 8, false); q[k] == nil {
				w.fail("%s: volume %d takes no requests: %v", when, i, a)
				return
			}
			w.run(patience, func() bool { return q[k].done })
			if op == replication.OpFlush && q[k].done && q[k].err != nil { // it had to say what was lost with a disk or a peer, once
				q[k] = a.submit(op, i, 16, 8, false)
				w.run(patience, func() bool { return q[k].done })
			}
			if !q[k].done || q[k].err != nil {
				w.fail("%s: volume %d: request %d: done %v, %v: %v", when, i, k, q[k].done, q[k].err, a)
				return
			}
		}
		if s := stampsOf(q[2].data); len(s) == 0 || s[0] != q[0].stamp || v.data.now[q[0].sector] != q[0].stamp {
			w.fail("%s: volume %d: wrote %d, read %d", when, i, q[0].stamp, s)
			return
		}
	}
}

// healthy connects a new node b with an empty disk of the same size: it has to
// get all that a has.
func (m *machine) healthy() {
	w, a := m.w, m.a
	w.trace("-- a healthy peer")
	w.events, w.apart = 0, false
	w.nodes[1] = newNode(w, 1, w.cfg.sectors, false)
	w.nodes[1].life = m.b.life + 1
	m.b = w.nodes[1]
	m.b.up()
	o := m.cmd(a, replication.CmdConnect)
	if !m.finish(o, "connect") {
		return
	}
	var state *replication.StateError
	if o.err != nil && !errors.As(o.err, &state) {
		w.fail("connect: %v", o.err)
		return
	}
	inSync := func() bool {
		for _, v := range a.vols {
			if st := a.res.VolumeState(v.num); st.Conn != drbd.Connected || st.Disk != drbd.UpToDate || st.Pdsk != drbd.UpToDate {
				return false
			}
		}
		return true
	}
	w.run(syncLimit, inSync)
	if w.failure == nil && w.events <= maxEvents && !inSync() {
		w.fail("a healthy peer is not in sync after %d s: %v, paused by %v; %v; %q", syncLimit/1000, a, replication.PausedBy(a.res.VolumeState(0)), m.b, a.res.Snapshot(w.tick()).LastError)
		return
	}
	m.serves("with a healthy peer")
	w.run(patience, func() bool { return a.open == 0 })
	for i, v := range a.vols {
		for s := range int(a.res.SizeBytes(v.num) / 512) {
			if x, y := v.data.now[s], m.b.vols[i].data.now[s]; x != y && w.failure == nil {
				w.fail("volume %d, sector %d: %d here, %d on the healthy peer", i, s, x, y)
			}
		}
	}
}
