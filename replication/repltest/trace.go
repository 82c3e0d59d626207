package repltest

import (
	"fmt"
	"strings"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// RingLines is how much of a simulation's trace is kept for a failure. If it is
// raised, the whole history is shown instead of a smaller one that fails alike.
var RingLines = shortTrace

const shortTrace = 200

func (w *World) trace(format string, args ...any) {
	switch {
	case w.tell != nil:
		w.tell(fmt.Sprintf(format, args...))
	case w.tracing:
		fmt.Fprintf(&w.out, format+"\n", args...)
	case w.ring != nil:
		if len(w.ring) >= 2*RingLines {
			w.ring = append(w.ring[:0], w.ring[RingLines:]...)
		}
		w.ring = append(w.ring, fmt.Sprintf("%9d.%03d ", w.now/1000, w.now%1000)+fmt.Sprintf(format, args...))
	}
}

// KeepTrace has the last lines of the trace kept; LastTrace returns them.
func (w *World) KeepTrace() { w.ring = []string{} }

// LastTrace is the end of the kept trace.
func (w *World) LastTrace() string { return strings.Join(w.ring, "\n") }

// traced reports whether anybody reads what is traced. Whoever must compose it
// asks first.
func (w *World) traced() bool { return w.tracing || w.ring != nil || w.tell != nil }

func (w *World) tracePacket(n *Node, sock drbd.Socket, b, data []byte) {
	if !w.traced() {
		return
	}
	b = append(b[:len(b):len(b)], data...)
	name := "data"
	if sock == drbd.MetaSocket {
		name = "meta"
	}
	h, err := drbd.DecodeHeader100(b)
	if err != nil {
		w.fail("%s sends a header that does not decode: %v", n.name, err)
		return
	}
	if !w.tracing && (h.Command == drbd.CmdPing || h.Command == drbd.CmdPingAck) {
		return // they would fill it while the nodes are at rest
	}
	vol := ""
	if h.Volume != 0 {
		vol = fmt.Sprintf(" vol=%d", h.Volume)
	}
	w.trace("%s %s %v%s%s", n.name, name, h.Command, vol, w.packetText(h, b[drbd.HeaderSize100:]))
}

func (w *World) packetText(h drbd.Header, payload []byte) string {
	p, rest, err := drbd.Decode(h, payload, w.cfg.Features&drbd.FeatureWSame != 0)
	if err != nil {
		w.fail("a packet that does not decode is sent: %v", err)
		return ""
	}
	switch p := p.(type) {
	case *drbd.Data:
		digest := len(rest) % sectorSize
		s := fmt.Sprintf(" sector=%d size=%d", p.Sector, len(rest)-digest)
		if digest > 0 {
			s += fmt.Sprintf(" digest=%x", rest[:min(digest, 4)])
		}
		if h.Command == drbd.CmdData {
			s += fmt.Sprintf(" seq=%d flags=%s", p.Seq, flagText(p.Flags))
		}
		return s
	case *drbd.Trim:
		return fmt.Sprintf(" sector=%d size=%d seq=%d flags=%s", p.Sector, p.Size, p.Seq, flagText(p.Flags))
	case *drbd.BlockAck:
		if h.Command == drbd.CmdOVResult {
			return fmt.Sprintf(" sector=%d size=%d result=%d seq=%d", p.Sector, p.Size, p.BlockID, p.Seq)
		}
		return fmt.Sprintf(" sector=%d size=%d seq=%d", p.Sector, p.Size, p.Seq)
	case *drbd.BlockRequest:
		return fmt.Sprintf(" sector=%d size=%d", p.Sector, p.Size)
	case *drbd.BlockDesc:
		return fmt.Sprintf(" sector=%d size=%d", p.Sector, p.Size)
	case *drbd.Barrier:
		return fmt.Sprintf(" %d", p.Barrier)
	case *drbd.BarrierAck:
		return fmt.Sprintf(" %d set_size=%d", p.Barrier, p.SetSize)
	case *drbd.StatePacket:
		return fmt.Sprintf(" %v (%#08x)", drbd.StateOf(p.Word), p.Word)
	case *drbd.ReqState:
		return fmt.Sprintf(" mask=%#08x val=%#08x", p.Mask, p.Val)
	case *drbd.ReqStateReply:
		return fmt.Sprintf(" %v", replication.StateCode(p.Code))
	case *drbd.UUIDs:
		return fmt.Sprintf(" %s bits=%d flags=%d", uuidText(meta.UUIDs{Current: p.Current, Bitmap: p.Bitmap, History: p.History}), p.DirtyBits, p.Flags)
	case *drbd.SyncUUID:
		return fmt.Sprintf(" %016X", p.UUID)
	case *drbd.Sizes:
		return fmt.Sprintf(" d=%d u=%d c=%d", p.DSize, p.USize, p.CSize)
	case *drbd.TermPacket:
		s := fmt.Sprintf(" term=%d promised=%d", p.Term, p.Promised)
		if p.Ask != 0 {
			s += fmt.Sprintf(" ask=%d", p.Ask)
		}
		if p.Flags&drbd.TermStandsBack != 0 {
			s += " stands-back"
		}
		if p.Flags&drbd.TermKnown == 0 {
			s += " unknown"
		}
		return s
	case *drbd.ProtocolPacket:
		return fmt.Sprintf(" %c flags=%d", 'A'+p.Protocol-drbd.ProtocolA, p.ConnFlags)
	}
	return ""
}

func uuidText(u meta.UUIDs) string {
	return fmt.Sprintf("%016X:%016X:%016X:%016X", u.Current, u.Bitmap, u.History[0], u.History[1])
}

func flagText(f drbd.DPFlags) string {
	var parts []string
	for _, x := range []struct {
		flag drbd.DPFlags
		name string
	}{
		{drbd.DPMaySetInSync, "may-set-in-sync"},
		{drbd.DPFUA, "fua"},
		{drbd.DPFlush, "flush"},
		{drbd.DPDiscard, "discard"},
		{drbd.DPSendReceiveAck, "recv-ack"},
		{drbd.DPSendWriteAck, "write-ack"},
		{drbd.DPZeroes, "zeroes"},
	} {
		if f&x.flag != 0 {
			parts = append(parts, x.name)
		}
	}
	if len(parts) == 0 {
		return "-"
	}
	return strings.Join(parts, "|")
}

func jobText(j replication.MetaJob) string {
	var s string
	if j.SyncData {
		s += " sync-data"
	}
	if j.Term != nil {
		s += " term"
	}
	if len(j.Pages) > 0 {
		s += fmt.Sprintf(" pages=%d", len(j.Pages))
	}
	if j.Move {
		s += " move"
	}
	if j.ResetAL {
		s += " reset-al"
	}
	if j.ALBlock != nil {
		s += " al"
	}
	if j.Superblock != nil {
		if sb, err := meta.DecodeSuperblock(j.Superblock); err == nil {
			s += fmt.Sprintf(" sb=%v", sb.Flags)
		}
	}
	return s
}

func initialALBlock() []byte {
	b := make([]byte, blockSize)
	meta.InitialALBlock(b)
	return b
}

// SetTracing has the trace kept for TakeTrace, which returns and clears it.
func (w *World) SetTracing() { w.tracing = true }

// TakeTrace returns what happened since the last call.
func (w *World) TakeTrace() string {
	s := w.out.String()
	w.out.Reset()
	return s
}
