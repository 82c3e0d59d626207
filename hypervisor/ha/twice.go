package ha

import (
	"fmt"
	"strings"
)

// tellTwice raises the alarm about a service that runs on both nodes and stays so: an
// operator, or a fence device, has said of one of them that it was off, and it was not.
// Each copy has what the other one lacks. Which of them its users have, only a person can
// tell, so neither is ended. A deposed owner ends what it has long before this is said.
func (c *Core) tellTwice(s *service) {
	isTwice := s.mine && s.runsTwice(c)
	if !isTwice && s.twiceAt == 0 {
		return
	}
	n := Notice{Key: "at-both/" + s.name, Level: Critical, Topic: TopicAlarm, Service: s.name}
	at := s.twiceAt + c.cfg.Timing.Deadtime
	switch {
	case !isTwice:
		s.twiceAt = 0
	case s.twiceAt == 0:
		s.twiceAt = c.now
		c.wake(s, c.now+c.cfg.Timing.Deadtime)
	case c.now < at:
		c.wake(s, at)
	default:
		var names []string
		for _, r := range s.res {
			names = append(names, r.name)
		}
		res, boot := strings.Join(names, " "), ""
		if c.cfg.Arbiter == ArbiterFence { // as long as either is in the boot that was said to be off, it is not listened to
			boot = "boot both nodes anew, as each counts the other one as off; "
		}
		n.Text = fmt.Sprintf("%s: it runs on %s and on %s at once, and each writes its own copy (split brain): choose whose changes are to be lost; "+
			"then polluxadm vm stop %[1]s, which ends both; %[5]son the node that loses polluxadm connect --discard-my-data %[4]s, on the other one polluxadm connect %[4]s; then polluxadm vm start %[1]s",
			s.name, s.nodes[0], s.nodes[1], res, boot)
	}
	c.alarm(n)
}

// runsTwice reports whether both nodes run s, and both use its volumes as Primary.
func (s *service) runsTwice(c *Core) bool {
	sb := s.peer.service(s.name)
	if !c.isOnline(s.peer) || sb == nil || sb.State != StateRunning || !s.exists() {
		return false
	}
	for _, r := range s.res {
		if cp := r.peer.copy(r.name); r.st.Role == Primary && cp != nil && cp.Role == Primary {
			return true
		}
	}
	return false
}
