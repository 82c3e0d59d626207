package replication

// Our own pacing of a resync. DRBD's target asks once per step of 0.1 s, and
// for no more than half of max-buffers; this one asks on as answers come in, as
// long as no more is under way than the controller and half of max-buffers
// allow, and at c-max-rate (or resync-rate) at most.
const (
	resyncRequestBytes = 256 << 10 // largest block asked for
	resyncFirstBytes   = 1 << 20   // under way at first; it grows with each answer
	resyncBurstMS      = 50        // what the bucket of the rate holds
	besideBurstMS      = 5         // the same beside the application: what is asked for at once is in its way
	besideRequestBytes = 64 << 10  // largest block beside the application
	// slackMS is what an answer may take beyond the quickest one and a quarter: noise,
	// and no sign that something waits.
	slackMS = 10
	// busySectors of other I/O per step make a volume busy. Source:
	// drbd84-protocol, 7.6.
	busySectors = 64
	// busySteps is how long a volume counts as busy afterwards.
	busySteps = 3
)

// pacer says when, and how much, a resync may go on. The target's follows the
// controller; on either side c-min-rate is all that is left beside I/O of the
// application.
type pacer struct {
	ctl      *RateController // nil at a fixed rate, and on the source
	maxBytes int64           // c-max-rate or resync-rate, bytes per step
	minBytes int64           // c-min-rate, bytes per step; 0 never gives way
	tokens   int64           // bytes that may be asked for now; one request may overdraw
	filled   Tick            // when tokens were last added
	window   uint64          // bytes that may be under way
	opening  bool            // the window grows with each answer: nothing has waited yet

	others uint64 // the volume's count of other I/O when the step began, sectors
	steps  int    // until the volume is not busy any more
	step   Tick   // when the step began

	judged   Tick // since when answers are counted
	answered int64
	quick    Tick // the quickest answer since, -1 if there was none
	best     Tick // the quickest of all, -1 if there was none
	waited   int  // sectors that waited when it was last judged
	limited  bool // the window has been full since
}

// sourceRate is no limit, bytes per step.
const sourceRate = 1 << 40

// begin starts the pacing; others is the volume's count of other I/O.
func (p *pacer) begin(o *DiskOptions, source bool, now Tick, others uint64) {
	perStep := func(kib uint32) int64 { return max(int64(kib)<<10/rateStepsPerSecond, 1) }
	*p = pacer{others: others, best: -1}
	if o.CMinRateKiB > 0 {
		p.minBytes = perStep(o.CMinRateKiB)
	}
	switch {
	case source:
		p.maxBytes = sourceRate
	case o.CPlanAhead == 0:
		p.maxBytes = perStep(o.ResyncRateKiB)
	default:
		p.maxBytes = perStep(o.CMaxRateKiB)
		p.ctl = NewRateController(o.CPlanAhead, o.CDelayTarget, o.CFillTarget)
	}
	p.restart(now)
}

// restart begins anew, after a pause or when the application is quiet again.
func (p *pacer) restart(now Tick) {
	p.step, p.judged, p.filled = now, now, now
	p.quick, p.answered, p.waited, p.limited = -1, 0, 0, false
	p.window, p.opening = resyncFirstBytes, true
	if p.ctl != nil {
		p.ctl.Reset()
	}
	p.tokens = p.bucket()
}

// isBusy reports whether the resync gives way: the application uses the disk.
func (p *pacer) isBusy() bool { return p.minBytes > 0 && p.isBeside() }

// isBeside reports whether the application uses the disk, given way to or not.
func (p *pacer) isBeside() bool { return p.steps > 0 }

// rate is the bytes per step that count now.
func (p *pacer) rate() int64 {
	if p.isBusy() {
		return min(p.maxBytes, p.minBytes)
	}
	return p.maxBytes
}

// bucket is how much may be asked for at once after a lull.
func (p *pacer) bucket() int64 {
	if p.isBeside() {
		return max(p.rate()*besideBurstMS/rateStepMS, 1)
	}
	return max(p.rate()*resyncBurstMS/rateStepMS, 1)
}

// block is the largest request in bytes, a power of two: the slower the resync
// is to be, the shorter is the time for which one request is in the way of others.
func (p *pacer) block() int64 {
	most := min(p.rate(), int64(p.window/4), resyncRequestBytes)
	if p.isBeside() {
		most = min(most, besideRequestBytes)
	}
	n := int64(4096)
	for n*2 <= most {
		n *= 2
	}
	return n
}

// advance brings the pacer to now: others is the volume's count of sectors of
// other I/O, pressed that some of it waits for the activity log, inFlight the
// bytes asked for and not answered.
func (p *pacer) advance(now Tick, others uint64, pressed bool, inFlight uint64) {
	if others-p.others > busySectors || pressed {
		p.others, p.steps = others, busySteps
		p.tokens = min(p.tokens, p.bucket())
	}
	if dt := min(now-p.filled, 1000); dt > 0 {
		p.tokens = min(p.tokens+p.rate()*int64(dt)/rateStepMS, p.bucket())
		p.filled = now
	}
	if now-p.step < rateStepMS {
		return
	}
	p.judge(now, inFlight)
	p.step, p.others = now, others
	if p.steps > 0 {
		if p.steps--; p.steps == 0 && p.minBytes > 0 {
			p.restart(now)
		}
	}
}

// judge is the step of the controller. A step without an answer says nothing,
// and only what waits for longer than one step is taken back: a disk or a
// processor that pauses is not slow.
func (p *pacer) judge(now Tick, inFlight uint64) {
	if p.ctl == nil || p.quick < 0 || p.isBusy() {
		return
	}
	in := int(p.answered >> 9 * rateStepMS / int64(max(now-p.judged, 1)))
	waiting := 0
	if late := p.quick - p.best*5/4 - slackMS; late > 0 {
		waiting = min(int(inFlight>>9), in*int(late)/rateStepMS)
	}
	change := p.ctl.Next(in, min(waiting, p.waited))
	switch {
	case min(waiting, p.waited) > p.ctl.Want(in):
		p.window = uint64(max(int64(min(p.window, inFlight))+int64(change)<<9, 4096))
		p.opening = false
	case p.limited && waiting <= p.ctl.Want(in):
		p.window += max(p.window/8, 4096)
	}
	p.judged, p.answered, p.quick, p.waited, p.limited = now, 0, -1, waiting, false
}

// mayAsk reports whether something may be asked for beside inFlight bytes, of
// limit bytes at most.
func (p *pacer) mayAsk(inFlight, limit uint64) bool {
	p.window = min(p.window, limit)
	if inFlight >= p.window {
		p.limited = true
		return false
	}
	return p.tokens > 0
}

func (p *pacer) asked(bytes uint32) { p.tokens -= int64(bytes) }

// gotAnswer takes an answer into account that took so long.
func (p *pacer) gotAnswer(bytes uint32, took Tick) {
	p.answered += int64(bytes)
	if p.quick < 0 || took < p.quick {
		p.quick = took
	}
	if p.best < 0 || took < p.best {
		p.best = took
	}
	if p.opening && took <= p.best*5/4+slackMS {
		p.window += uint64(bytes)
	}
}

// wait is in how many milliseconds the next request may be sent, at most a step.
func (p *pacer) wait() Tick {
	rate := p.rate()
	if p.tokens > 0 {
		return rateStepMS
	}
	return min(max(Tick((min(p.block(), rate)-p.tokens)*rateStepMS/rate), 2), rateStepMS)
}
