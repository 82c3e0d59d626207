package ha

import (
	"strings"
	"testing"
)

// A service that nobody would take over is not said to be protected against the
// loss of a host, and a file that is not in force is told on both nodes.
func TestProtectionIsHonest(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(c *Core, s *service)
		want   string // in its protection
		why    string
	}{
		{"as it should be", func(*Core, *service) {}, covered, ""},
		{"its file differs", func(_ *Core, s *service) { s.cfg.Hash = "2" }, "not against host loss: its file differs", "its file differs"},
		{"its bounds of loss differ", func(c *Core, s *service) {
			s.res[0].cfg.Protocol, s.res[0].cfg.MaxLossBytes, s.res[0].cfg.MaxLossMS = "A", 1<<20, 1000
			s.peer.beat.Copies = []Copy{{Resource: s.res[0].name, MaxLossBytes: 1 << 30, MaxLossMS: 1000}}
		}, "not against host loss: r0: ", "declare different bounds"},
		{"two voters", func(c *Core, _ *service) { c.cfg.Voters = 2 }, "not against host loss: the arbiter has 2 of 3 voters", ""},
		{"three voters", func(c *Core, _ *service) { c.cfg.Voters = 3 }, covered, ""},
		{"fence, and a device for each", func(c *Core, _ *service) { c.cfg.Arbiter = ArbiterFence }, covered, ""},
		{"fence, and no device", func(c *Core, s *service) {
			c.cfg.Arbiter = ArbiterFence
			c.node(s.nodes[1]).cfg.Fence = false
		}, "not against host loss: there is no fence device for", ""},
		{"an older file is in force", func(_ *Core, s *service) { s.cfg.Notice = "its file is wrong" }, covered, "its file is wrong"},
		{"an older file, and more", func(_ *Core, s *service) { s.cfg.Notice, s.why = "its file is wrong", verdict{Info, "it waits", ""} }, covered, "it waits; its file is wrong"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := idleCore(t, 1)
			s := c.services[0]
			c.lease.reachable = true
			tt.change(c, s)
			st := c.serviceStatus(s)
			if !strings.Contains(st.Protection, tt.want) || tt.want != covered && strings.Contains(st.Protection, covered) {
				t.Errorf("protection %q, want %q", st.Protection, tt.want)
			}
			if (st.Why == "") != (tt.why == "") || !strings.Contains(st.Why, tt.why) || tt.why != "" && st.Level != Warning {
				t.Errorf("%s: %q, want %q", st.Level, st.Why, tt.why)
			}
			if s.cfg.Notice != "" && !strings.Contains(c.compose().Services[0].Why, "it") {
				t.Error("the other nodes don't hear of it")
			}
		})
	}
}
