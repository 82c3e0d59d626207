package replication

// Units of the resync controller. Source: drbd84-protocol, 7.6 (DRBD 8.4
// drbd_worker.c, drbd_rs_controller and drbd_rs_number_requests).
const (
	rateStepMS         = 100
	rateStepsPerSecond = 1000 / rateStepMS
	sectorsPerKiB      = 2
)

// A RateController says by how much what a sync target, or the node that
// drives a verify, has under way shall change in each step of 0.1 s, so that
// what waits in the path to the peer's disk comes to the target within
// c-plan-ahead. It belongs to one resync and is not safe for concurrent use.
//
// The law is DRBD's, whose requests per step are the answers of the last one
// plus this change. DRBD counts what is under way at the end of its step, when
// the burst of the step's requests is nearly over; the pacer asks on as answers
// come in, and tells what waits by the time that answers take.
type RateController struct {
	plan      []int64 // corrections still to come, one per step
	head      int
	planTotal int64
	delay     int64 // want in steps of 0.1 s, if fill is 0
	fill      int64 // want in sectors
}

// NewRateController takes the options c-plan-ahead and c-delay-target (0.1 s,
// the first not 0) and c-fill-target (sectors).
func NewRateController(planAhead, delayTarget, fillTarget uint32) *RateController {
	return &RateController{plan: make([]int64, planAhead), delay: int64(delayTarget), fill: int64(fillTarget)}
}

// Reset forgets the plan.
func (c *RateController) Reset() {
	clear(c.plan)
	c.planTotal = 0
}

// Want is how many sectors may wait if so many were answered in a step.
func (c *RateController) Want(sectIn int) int {
	if c.fill != 0 {
		return int(c.fill)
	}
	return sectIn * int(c.delay)
}

// Next is the step: sectIn sectors were answered since the last one, and so many
// wait at its end. It returns the change of what may be under way, in sectors.
func (c *RateController) Next(sectIn, waiting int) int {
	n := int64(len(c.plan))
	perStep := (int64(c.Want(sectIn)-waiting) - c.planTotal) / n
	for i := range c.plan {
		c.plan[i] += perStep
	}
	c.planTotal += perStep * n
	now := c.plan[c.head]
	c.plan[c.head] = 0
	c.head = (c.head + 1) % len(c.plan)
	c.planTotal -= now
	return int(now)
}
