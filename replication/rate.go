package replication

// Units of the resync controller. Source: drbd84-protocol, 7.6 (DRBD 8.4
// drbd_worker.c, drbd_rs_controller and drbd_rs_number_requests).
const (
	rateStepsPerSecond = 10 // Next is called every 0.1 s
	sectorsPerKiB      = 2
	sectorsPerBlock    = 8 // one bitmap bit
)

// A RateController says how many sectors a sync target, or the node that
// drives a verify, shall request in each step of 0.1 s, so that the requests
// under way stay at the target. It belongs to one resync, is not safe for
// concurrent use, and starts empty.
type RateController struct {
	plan       []int64 // corrections still to come, one per step
	head       int
	planTotal  int64
	inFlight   int64 // sectors requested and not answered
	delay      int64 // want in steps of 0.1 s, if fill is 0
	fill       int64 // want in sectors
	maxStep    int64 // c-max-rate, sectors per step
	startWant  int64 // want while nothing is under way
	fixedKiB   int64 // resync-rate, for the fixed rate
	remainder  int64 // of the fixed rate, in KiB/s * steps
	maxPages   int64 // of 4 KiB, 0 is no limit
	idleSteps  int   // steps without a request and without an answer to wait for
	stallSteps int   // so many are too many
}

// NewRateController takes the options c-plan-ahead and c-delay-target (0.1 s),
// c-fill-target (sectors), c-max-rate and resync-rate (KiB/s). With
// planAhead 0 the rate is fixed at resyncRateKiB.
func NewRateController(planAhead, delayTarget, fillTarget, maxRateKiB, resyncRateKiB uint32) *RateController {
	n := int64(planAhead)
	return &RateController{
		plan:       make([]int64, n),
		delay:      int64(delayTarget),
		fill:       int64(fillTarget),
		maxStep:    int64(maxRateKiB) * sectorsPerKiB / rateStepsPerSecond,
		startWant:  int64(resyncRateKiB) * sectorsPerKiB / rateStepsPerSecond * n,
		fixedKiB:   int64(resyncRateKiB),
		stallSteps: max(int(n), rateStepsPerSecond),
	}
}

// SetMaxBuffers limits what is under way to half of max-buffers, in pages of
// 4 KiB; 0 is no limit.
func (c *RateController) SetMaxBuffers(pages int) { c.maxPages = int64(pages) }

// InFlight is the number of sectors requested and not yet answered.
func (c *RateController) InFlight() int { return int(c.inFlight) }

// Sent tells that so many sectors were really requested.
func (c *RateController) Sent(sectors int) { c.inFlight += int64(sectors) }

// Next is the step of 0.1 s: sectIn sectors were answered since the last one.
// It returns how many sectors to request now, in whole blocks of 4 KiB.
//
// Where the rounding of very small rates or targets would stop the resync for
// good, one block is requested after a second, or c-plan-ahead if longer.
func (c *RateController) Next(sectIn int) int {
	in := int64(sectIn)
	idle := c.inFlight == 0
	c.inFlight = max(c.inFlight-in, 0) // answers to an earlier resync count for nothing
	var blocks int64
	if len(c.plan) == 0 {
		blocks = c.fixedStep()
	} else {
		blocks = c.plannedStep(in) / sectorsPerBlock
	}
	if c.maxPages > 0 {
		blocks = max(min(blocks, c.maxPages/2-(c.inFlight+sectorsPerBlock-1)/sectorsPerBlock), 0)
	}
	switch {
	case blocks > 0 || !idle:
		c.idleSteps = 0
	case c.idleSteps+1 >= c.stallSteps:
		c.idleSteps, blocks = 0, 1
	default:
		c.idleSteps++
	}
	return int(blocks * sectorsPerBlock)
}

// fixedStep is one step's share of the fixed rate, in blocks; what does not
// fill a block is kept for the next one.
func (c *RateController) fixedStep() int64 {
	const kibPerBlock = 4
	c.remainder += c.fixedKiB
	blocks := c.remainder / (rateStepsPerSecond * kibPerBlock)
	c.remainder %= rateStepsPerSecond * kibPerBlock
	return blocks
}

// plannedStep spreads the difference between what should be under way and what
// is over the steps of the plan, and takes this step's share. In sectors.
func (c *RateController) plannedStep(in int64) int64 {
	n := int64(len(c.plan))
	want := in * c.delay
	switch {
	case c.inFlight+in == 0:
		want = c.startWant
	case c.fill != 0:
		want = c.fill
	}
	perStep := (want - c.inFlight - c.planTotal) / n
	for i := range c.plan {
		c.plan[i] += perStep
	}
	c.planTotal += perStep * n
	now := c.plan[c.head]
	c.plan[c.head] = 0
	c.head = (c.head + 1) % len(c.plan)
	c.planTotal -= now
	return min(max(in+now, 0), c.maxStep)
}
