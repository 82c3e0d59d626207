package replication

import (
	"github.com/pollux-project/pollux/protocol/drbd"
)

// Handlers that are asked before a resync begins (drbd84-protocol, 7.1).
const (
	beforeResyncSource = "before-resync-source"
	beforeResyncTarget = "before-resync-target"
)

// exitIgnored is an exit code that does not refuse the source's resync. Source:
// drbd84-protocol, 7.1.
const exitIgnored = 3

// syncStart is a resync that waits for its handler.
type syncStart struct {
	handler string         // that runs; empty if none does
	conn    drbd.ConnState // in which it was asked
	uuid    uint64         // target: the sync UUID
	late    int            // handlers of earlier connections that have not ended
	early   uint64         // target: a sync UUID that came before the peer's answer to invalidate
}

// startSource makes this node SyncSource, once the handler has agreed.
func (r *Resource) startSource(v *volume) {
	if !r.cfg.HasBeforeResyncSource {
		r.becomeSource(v)
		return
	}
	r.askBefore(v, beforeResyncSource, 0)
}

// receivedSyncUUID makes this node SyncTarget, once the handler has agreed.
// Until then nothing that follows on the data socket is looked at: a copy that
// is not yet Inconsistent on disk must not become a mixture.
func (r *Resource) receivedSyncUUID(v *volume, x uint64) error {
	if c := r.cmd; v.st.Conn == drbd.Connected && c != nil && c.Kind == CmdInvalidate && c.phase == phaseAsk && c.Volume == v.num {
		v.start.early = x // it has overtaken the answer, which comes on the other socket
		return nil
	}
	if v.st.Conn != drbd.WFSyncUUID && v.st.Conn != drbd.Behind || v.bitmap == nil {
		return &drbd.ProtocolError{Packet: drbd.CmdSyncUUID, Field: "state", Got: v.st.Conn, Want: "WFSyncUUID or Behind"}
	}
	r.takeSyncUUID(v, x)
	return nil
}

func (r *Resource) takeSyncUUID(v *volume, x uint64) {
	if r.cfg.HasBeforeResyncTarget {
		r.askBefore(v, beforeResyncTarget, x)
		return
	}
	r.becomeTarget(v, x)
}

func (r *Resource) askBefore(v *volume, handler string, uuid uint64) {
	if v.start.handler != "" {
		return
	}
	v.start.handler, v.start.conn, v.start.uuid = handler, v.st.Conn, uuid
	if handler == beforeResyncTarget {
		r.targetsAsk++
	}
	r.emit(Action{Kind: RunHandler, Volume: v.num, Name: handler})
}

// beforeDone takes a handler's verdict on the resync of v. Only what it was
// asked about begins: disk and connection may have changed meanwhile.
func (r *Resource) beforeDone(v *volume, name string, code int) {
	s := &v.start
	if s.late > 0 { // handlers of one volume end in their order
		s.late--
		return
	}
	if s.handler != name {
		return
	}
	start := *s
	r.dropStart(v)
	s.late = 0
	switch {
	case code != 0 && (name == beforeResyncTarget || code != exitIgnored):
		r.giveUp("volume %d: %s ended with %d: the resync is refused; run connect when it may begin", v.num, name, code)
	case v.st.Conn != start.conn || v.bitmap == nil:
	case name == beforeResyncSource:
		r.becomeSource(v)
	default:
		r.becomeTarget(v, start.uuid)
	}
}

// dropStart forgets a start that waits; its handler, which may still run, is
// not listened to.
func (r *Resource) dropStart(v *volume) {
	v.start.early = 0
	if v.start.handler == "" {
		return
	}
	if v.start.handler == beforeResyncTarget {
		r.targetsAsk--
	}
	v.start = syncStart{late: v.start.late + 1}
}
