package replication

import (
	"github.com/pollux-project/pollux/protocol/drbd"
)

// bitmapBurst is how many bitmap packets are filed before the socket is looked at.
const bitmapBurst = 64

// startBitmap begins to send the bitmap of v; clients' writes wait meanwhile.
func (r *Resource) startBitmap(v *volume) {
	r.markUnstable(v)
	v.tx = drbd.NewBitmapSender(v.bitmap, r.net.UseRLE)
	r.setTimer(timerHandshake, handshakeMS)
	r.sendBitmaps()
}

// markUnstable marks what was sent to the peer before its disk went and came
// back: its refusal comes on the other socket, behind this bitmap, and a block
// that only one of the bitmaps has would be left out of the resync.
func (r *Resource) markUnstable(v *volume) {
	for i := range r.req.log.len() {
		if q := r.req.get(*r.req.log.at(i)); q.v == v {
			v.setDirty(q.sector, q.size)
			q.set(isExchanged)
		}
	}
}

// sendBitmaps files bitmap packets, some at a time.
func (r *Resource) sendBitmaps() {
	if !r.isUp() {
		return
	}
	for _, v := range r.vols {
		for i := 0; v.tx != nil; i++ {
			if i == bitmapBurst {
				r.emit(Action{Kind: WantDrain})
				return
			}
			cmd, payload, done := v.tx.Next(nil)
			start := r.beginPacket(cmd, v.num, len(payload))
			r.arena = append(r.arena, payload...)
			r.endPacket(drbd.DataSocket, start, nil)
			if !done {
				continue
			}
			v.tx = nil
			r.kick = true
			if v.st.Conn == drbd.WFBitMapT {
				ns := v.st
				ns.Conn = drbd.WFSyncUUID
				r.setState(v, ns, "bitmaps exchanged")
			}
		}
	}
}

func (r *Resource) receivedBitmap(v *volume, cmd drbd.Command, payload []byte) error {
	if v.st.Conn != drbd.WFBitMapS && v.st.Conn != drbd.WFBitMapT || v.bitmap == nil {
		return &drbd.ProtocolError{Packet: cmd, Field: "state", Got: v.st.Conn, Want: "WFBitMapS or WFBitMapT"}
	}
	if v.rx == nil && (v.st.Conn == drbd.WFBitMapT && v.tx != nil || v.start.handler != "") {
		return &drbd.ProtocolError{Packet: cmd, Field: "command", Got: cmd, Want: "none: the bitmap is complete"}
	}
	if v.rx == nil {
		v.rx = drbd.NewBitmapReceiver(v.bitmap)
	}
	v.meta.touched = true
	done, err := v.rx.Receive(cmd, payload)
	if err != nil || !done {
		return err
	}
	v.rx = nil
	if v.st.Conn == drbd.WFBitMapT {
		v.storeAll()
		r.startBitmap(v)
		return nil
	}
	if v.tx != nil {
		return &drbd.ProtocolError{Packet: cmd, Field: "command", Got: "the end of the peer's bitmap", Want: "it behind the end of ours"}
	}
	r.startSource(v)
	return nil
}
