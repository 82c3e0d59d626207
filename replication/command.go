package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// command is the operator's command under way; one at a time, the others wait.
type command struct {
	Command
	phase    phase
	began    Tick
	retryAt  Tick
	vol      int // index of the volume that is being asked for
	forced   map[uint16]bool
	mask     uint32
	val      uint32
	reply    StateCode // of the peer; 0 while none came
	fenced   bool      // the fence-peer handler was asked
	alone    bool      // primary: the peer is out of the way, a Consistent disk will do
	pinged   bool
	outdated int // disconnect: 1 with the peer outdated, 2 with this node outdated
	retried  bool
	skipSync bool    // new-current-uuid: two new disks are taken for equal
	wider    bool    // resize: the device has more room than before
	holding  *volume // whose clients' writes wait for the end of the command
}

type phase uint8

const (
	phaseBegin phase = iota
	phaseCheck
	phaseAsk   // a request is with the peer
	phaseFence // the fence-peer handler runs
	phaseDrain // waits for I/O to end
	phaseStore // waits for metadata
	phaseDone
)

const (
	commandLimitMS = 30000 // a command that waits longer is refused
	drainLimitMS   = 1000  // a disconnect waits so long for outstanding epochs
)

// commanded takes a command. Opening and closing the device is answered at
// once, so that nobody waits for another's command.
func (r *Resource) commanded(c Command) {
	switch c.Kind {
	case CmdOpen:
		r.open(c)
	case CmdClose:
		r.opens--
		r.done(c, nil)
		r.commandStep()
	case CmdFreeze, CmdThaw: // nor do these wait for one
		r.done(c, r.freeze(c.Kind == CmdFreeze))
	case CmdLease:
		r.setLease(Tick(c.LeaseMS))
		r.done(c, nil)
	default:
		r.cmdQueue = append(r.cmdQueue, c)
		r.commandStep()
	}
}

func (r *Resource) done(c Command, err error) {
	r.emit(Action{Kind: CommandDone, Tag: c.Tag, Err: err})
}

func (r *Resource) open(c Command) {
	v := r.volume(c.Volume)
	switch {
	case v == nil:
		r.done(c, &RequestError{Code: 127, Text: fmt.Sprintf("%s: no volume %d", r.cfg.Name, c.Volume)})
	case r.role != drbd.Primary:
		r.done(c, fmt.Errorf("%s/%d: %w: run `polluxadm primary %s` here first", r.cfg.Name, v.num, ErrNotPrimary, r.cfg.Name))
	case r.cmd != nil && r.cmd.Kind == CmdSecondary:
		r.done(c, fmt.Errorf("%s/%d: this node is being demoted", r.cfg.Name, v.num))
	case v.size == 0:
		r.done(c, fmt.Errorf("%s/%d: %w", r.cfg.Name, v.num, ErrNoData))
	default:
		r.opens++
		r.done(c, nil)
	}
}

// stateError is the refusal of the running command.
func (r *Resource) stateError(v *volume, code StateCode) error {
	e := &StateError{Resource: r.cfg.Name, Volume: -1, Code: code}
	if v != nil {
		e.Volume, e.From = int(v.num), v.st
	}
	return e
}

// commandStep does whatever the running command can do now, and goes on with
// the next one. It is called whenever something has changed.
func (r *Resource) commandStep() {
	if r.stepping {
		return
	}
	r.stepping = true
	for {
		if r.cmd == nil {
			if len(r.cmdQueue) == 0 {
				break
			}
			r.cmd = &command{Command: r.cmdQueue[0], began: r.now, forced: map[uint16]bool{}}
			r.cmdQueue = r.cmdQueue[1:]
		}
		before := r.cmd.phase
		if before != phaseDone {
			r.runCommand(r.cmd)
		}
		if r.cmd != nil && r.cmd.phase == phaseDone {
			r.cmd = nil
			r.stopTimer(timerCommand)
			continue
		}
		if r.cmd != nil && r.cmd.phase == before {
			break
		}
	}
	r.stepping = false
}

func (r *Resource) commandTimer() {
	c := r.cmd
	if c == nil {
		return
	}
	// What is on its way to the disk ends there: the change that follows can't be taken
	// back, so no error may be told before. The timer is one of an earlier phase, or the
	// clock has jumped.
	if r.now-c.began >= commandLimitMS && (c.phase != phaseStore || c.Kind == CmdDisconnect) {
		if c.Kind == CmdDisconnect {
			r.finish(c, nil)
			r.connectionLost(drbd.Disconnecting, nil)
		} else {
			r.finish(c, r.stateError(nil, SSInTransientState))
		}
	}
	r.commandStep()
}

func (r *Resource) finish(c *command, err error) {
	c.phase = phaseDone
	if v := r.volume(c.Volume); v != nil && v.grow != nil && v.grow.c == c {
		r.dropGrowth(v)
	}
	if c.holding != nil {
		c.holding.held, r.kick = false, true
	}
	r.done(c.Command, err)
}

// finishing ends c without error when it is called, and goes on with the next.
func (r *Resource) finishing(c *command) func() {
	return func() {
		r.finish(c, nil)
		r.commandStep()
	}
}

// retryLater has the command looked at again.
func (r *Resource) retryLater(c *command) {
	c.retryAt = r.now + commandRetryMS
	c.phase = phaseCheck
	r.setTimer(timerCommand, commandRetryMS)
}

func (r *Resource) runCommand(c *command) {
	if c.retryAt > r.now {
		r.setTimerOnce(timerCommand, c.retryAt-r.now)
		return
	}
	switch c.Kind {
	case CmdPrimary:
		r.runPrimary(c)
	case CmdSecondary:
		r.runSecondary(c)
	case CmdConnect:
		r.runConnect(c)
	case CmdDisconnect:
		r.runDisconnect(c)
	case CmdDetach:
		r.runDetach(c)
	case CmdInvalidate, CmdInvalidateRemote:
		r.runInvalidate(c)
	case CmdOutdate:
		r.runOutdate(c)
	case CmdFailsafe, CmdFailsafeOver:
		r.finish(c, r.failsafe(c.Kind == CmdFailsafe))
	case CmdSetOptions:
		r.runSetOptions(c)
	case CmdSetHandlers:
		r.runSetHandlers(c)
	case CmdPauseSync, CmdResumeSync:
		r.runPause(c)
	case CmdSyncAfter:
		r.runDependency(c)
	case CmdResumeIO:
		r.runResumeIO(c)
	case CmdSuspendIO:
		r.runSuspendIO(c)
	case CmdNewCurrentUUID:
		r.runNewCurrentUUID(c)
	case CmdVerify:
		r.runVerify(c)
	case CmdResize:
		r.runResize(c)
	case CmdPromiseTerm:
		r.runPromise(c)
	default:
		panic(fmt.Sprintf("replication: no case for command %d", c.Kind))
	}
}

// ask sends a request for a volume and waits for the reply.
func (r *Resource) ask(c *command, v *volume, mask, val uint32) {
	c.mask, c.val, c.reply, c.phase = mask, val, 0, phaseAsk
	start := r.beginPacket(drbd.CmdStateChgReq, v.num, 8)
	r.arena = drbd.ReqState{Mask: mask, Val: val}.Append(r.arena)
	r.endPacket(drbd.DataSocket, start, nil)
	r.setTimer(timerCommand, commandLimitMS)
}

func (r *Resource) askConn(c *command, mask, val uint32) {
	c.mask, c.val, c.reply, c.phase = mask, val, 0, phaseAsk
	start := r.beginPacket(drbd.CmdConnStChgReq, 0, 8)
	r.arena = drbd.ReqState{Mask: mask, Val: val}.Append(r.arena)
	r.endPacket(drbd.DataSocket, start, nil)
	r.setTimer(timerCommand, commandLimitMS)
}

// AwaitsReply reports whether the peer has yet to answer a request for a change
// of state.
func (r *Resource) AwaitsReply() bool {
	return r.cmd != nil && r.cmd.phase == phaseAsk && r.cmd.reply == 0
}

// receivedStateReply is the peer's answer to a request of ours.
func (r *Resource) receivedStateReply(cmd drbd.Command, b []byte) error {
	var p drbd.ReqStateReply
	if err := p.Decode(b); err != nil {
		return err
	}
	if r.cmd == nil || r.cmd.phase != phaseAsk || r.cmd.reply != 0 {
		return &drbd.ProtocolError{Packet: cmd, Field: "retcode", Got: p.Code, Want: "no reply: nothing was asked"}
	}
	r.cmd.reply = StateCode(p.Code)
	if r.cmd.reply == 0 {
		r.cmd.reply = SSCWFailedByPeer
	}
	r.commandStep()
	return nil
}

// cancelCommand: the connection is gone, so a request is answered by nobody.
func (r *Resource) cancelCommand() {
	if c := r.cmd; c != nil && c.phase == phaseAsk {
		c.phase, c.reply = phaseCheck, 0
		c.pinged = false
	}
	if c := r.cmd; c != nil && c.phase == phaseBegin {
		c.pinged = false
	}
}

// ready waits until no handshake is under way and a connected peer has
// answered a ping: a dead one must not be asked.
func (r *Resource) ready(c *command) bool {
	switch {
	case r.conn == drbd.WFReportParams:
		r.setTimerOnce(timerCommand, commandRetryMS)
		return false
	case r.conn < drbd.Connected:
		return true
	case !c.pinged:
		c.pinged = true
		c.phase = phaseBegin
		r.whenPinged(func() {
			if r.cmd == c && c.phase == phaseBegin {
				c.phase = phaseCheck
				r.commandStep()
			}
		})
		return false
	}
	return c.phase != phaseBegin
}

func (r *Resource) runConnect(c *command) {
	if r.conn != drbd.StandAlone {
		r.finish(c, &RequestError{Code: 125, Text: fmt.Sprintf("%s: Failure: (125) Device has a net-config (use disconnect first)", r.cfg.Name)})
		return
	}
	if c.Force && r.role == drbd.Primary { // Force: --discard-my-data
		r.finish(c, &RequestError{Code: 123, Text: fmt.Sprintf("%s: Failure: (123) --discard-my-data not allowed when primary: run `polluxadm secondary %s` first", r.cfg.Name, r.cfg.Name)})
		return
	}
	r.connect("connect")
	r.finish(c, nil)
}

// runDetach gives the disk up, cleanly: the peer agrees, everything is durable.
func (r *Resource) runDetach(c *command) {
	v := r.volume(c.Volume)
	switch c.phase {
	case phaseBegin, phaseCheck:
		if v == nil || v.st.Disk == drbd.Diskless {
			r.finish(c, nil)
			return
		}
		if v.st.Disk == drbd.Failed {
			c.phase = phaseDone - 1
			return
		}
		if !c.Force {
			if !r.ready(c) {
				return
			}
			if !v.isSettled() { // a generation begins here: the peer must hear of it before it begins one, too
				r.retryLater(c)
				return
			}
			ns := v.st
			ns.Disk = drbd.Failed
			if code := r.check(v, ns, r.conn >= drbd.Connected); code < SSSuccess {
				r.finish(c, r.stateError(v, code))
				return
			}
			if r.conn >= drbd.Connected {
				r.ask(c, v, maskDisk, uint32(drbd.Failed)<<9)
				return
			}
		}
		r.storeForDetach(c, v)
	case phaseAsk:
		if c.reply == 0 {
			return
		}
		switch {
		case c.reply == SSConcurrentStChg || c.reply == SSInTransientState:
			r.retryLater(c)
		case c.reply < SSSuccess:
			r.finish(c, r.refusedByPeer(c))
		default:
			r.storeForDetach(c, v)
		}
	case phaseStore:
		if v.st.Disk == drbd.Diskless {
			r.finish(c, nil)
		}
	}
}

func (r *Resource) storeForDetach(c *command, v *volume) {
	c.phase = phaseStore
	v.meta.forceSync = true
	v.leaving = v.st.Conn >= drbd.Connected && v.st.Pdsk == drbd.UpToDate
	if r.role != drbd.Primary && v.local == 0 && v.sb.Flags&markPrimary == 0 {
		// As apply-al would leave it: nothing here needs the activity log, not even
		// if a power failure tears the blocks that are being initialised.
		v.meta.resetAL = true
	}
	v.whenStored(v.storeAll(), func() {
		if v.st.Disk > drbd.Failed {
			r.failDisk(v, "detach")
		}
		r.commandStep()
	})
}

func (r *Resource) runInvalidate(c *command) {
	v := r.volume(c.Volume)
	remote := c.Kind == CmdInvalidateRemote
	switch c.phase {
	case phaseBegin, phaseCheck:
		switch {
		case v == nil:
			r.finish(c, &RequestError{Code: 127, Text: fmt.Sprintf("%s: no volume %d", r.cfg.Name, c.Volume)})
			return
		case !v.hasDisk():
			r.finish(c, r.stateError(v, SSNoLocalDisk))
			return
		case v.st.Disk == drbd.Negotiating:
			r.retryLater(c)
			return
		case r.conn < drbd.WFReportParams && !remote && r.role != drbd.Primary:
			r.invalidateAlone(c, v)
			return
		}
		if !r.ready(c) {
			return
		}
		ns := v.st
		ns.Conn = drbd.StartingSyncT
		if remote {
			ns.Conn = drbd.StartingSyncS
		}
		if code := r.check(v, ns, true); code < SSSuccess {
			r.finish(c, r.stateError(v, code))
			return
		}
		r.ask(c, v, maskConn, uint32(ns.Conn)<<4)
	case phaseAsk:
		if c.reply == 0 {
			return
		}
		switch {
		case c.reply == SSConcurrentStChg || c.reply == SSInTransientState:
			r.retryLater(c)
		case c.reply == SSNothingToDo: // no resync has begun there
			r.finish(c, r.stateError(v, SSNoRemoteDisk))
		case c.reply < SSSuccess:
			r.finish(c, r.refusedByPeer(c))
		case !v.hasDisk(): // it has failed while the peer was asked
			r.finish(c, r.stateError(v, SSNoLocalDisk))
		default:
			r.finish(c, nil)
			if remote {
				r.startFullSync(v, drbd.StartingSyncS)
			} else {
				r.startFullSync(v, drbd.StartingSyncT)
			}
		}
	}
}

// invalidateAlone marks this copy as worthless while nobody is connected.
func (r *Resource) invalidateAlone(c *command, v *volume) {
	ns := v.st
	ns.Disk = drbd.Inconsistent
	r.setState(v, ns, "invalidate")
	r.setAllBits(v)
	c.phase = phaseStore
	v.whenStored(v.storeAll(), func() {
		r.finish(c, nil)
		r.commandStep()
	})
}

// startFullSync goes through StartingSyncS or StartingSyncT: all bits are set
// on both nodes, no bitmap is exchanged.
func (r *Resource) startFullSync(v *volume, conn drbd.ConnState) {
	ns := v.st
	ns.Conn = conn
	r.setState(v, ns, "full sync by the operator")
	r.setAllBits(v)
	r.setTimer(timerHandshake, handshakeMS)
	if conn == drbd.StartingSyncS {
		r.startSource(v)
		return
	}
	ns = v.st
	ns.Conn, ns.Disk = drbd.WFSyncUUID, drbd.Inconsistent
	r.setState(v, ns, "full sync by the operator")
	if x := v.start.early; x != 0 {
		v.start.early = 0
		r.takeSyncUUID(v, x)
	}
}

func (r *Resource) runOutdate(c *command) {
	if c.phase == phaseStore {
		return
	}
	for _, v := range r.vols {
		ns := v.st
		ns.Disk = drbd.Outdated
		code := r.check(v, ns, false)
		if code >= SSSuccess && v.st.Conn >= drbd.Connected && v.st.Disk != drbd.Outdated {
			// Sanitize takes an Outdated disk for UpToDate then: the caller, a fence
			// handler perhaps, must not hear that it has been outdated, and an
			// Inconsistent one must not become good by it.
			code = SSConnectedOutdates
			if v.st.Disk < drbd.Outdated {
				code = SSLowerThanOutdated
			}
		}
		if code < SSSuccess {
			r.finish(c, r.stateError(v, code))
			return
		}
	}
	c.phase = phaseStore
	for _, v := range r.vols {
		ns := v.st
		ns.Disk = drbd.Outdated
		r.setState(v, ns, "outdated by the operator")
	}
	r.whenAllStored((*volume).storeSuperblock, r.finishing(c))
}
