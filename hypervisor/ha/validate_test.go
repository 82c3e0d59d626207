package ha

import (
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string // "" = valid
	}{
		{"as it is", func(*Config) {}, ""},
		{"this node is not listed", func(c *Config) { c.Self = "x" }, "does not list this node"},
		{"a node twice", func(c *Config) { c.Nodes = append(c.Nodes, Node{Name: "a"}) }, "node a: it is listed twice"},
		{"a name of the arbiter's", func(c *Config) { c.Nodes[2].Name = "_w" }, "does not begin with"},
		{"no such arbiter", func(c *Config) { c.Arbiter = "raft" }, "want etcd, witness, fence or manual"},
		{"fence without an agent for a node", func(c *Config) { c.Arbiter, c.Nodes[1].Fence = ArbiterFence, false }, ""},
		{"fence with one node so far", func(c *Config) {
			c.Arbiter, c.Nodes, c.Resources, c.Services = ArbiterFence, c.Nodes[:1], nil, nil
		}, ""},
		{"fence with three", func(c *Config) { c.Arbiter, c.Nodes[2] = ArbiterFence, Node{Name: "w", Fence: true} }, "two data nodes, and there are 3"},
		{"warntime", func(c *Config) { c.Timing.Warntime = 2999 }, "at least three times keepalive"},
		{"deadtime", func(c *Config) { c.Timing.Warntime = 6000 }, "want more than warntime"},
		{"initdead", func(c *Config) { c.Timing.Initdead = 11999 }, "at least twice deadtime"},
		{"deadtime below the lease", func(c *Config) { c.Timing.TTL = 7000 }, "want at least ttl (7000 ms), as the lease decides"},
		{"deadtime below the lease, and none decides", func(c *Config) { c.Timing.TTL, c.Arbiter = 7000, ArbiterManual }, ""},
		{"a short lease", func(c *Config) { c.Timing.TTL = 4000 }, "want at least 5000"},
		{"a short lease, for tests", func(c *Config) { c.Timing.TTL, c.Timing.ShortTTL = 400, true }, ""},
		{"an unknown resource", func(c *Config) { c.Services[0].Resources = []string{"rx"} }, `resource "rx" is unknown`},
		{"no resource", func(c *Config) { c.Services[0].Resources = nil }, "it has no resource"},
		{"a resource of two", func(c *Config) {
			s := c.Services[0]
			s.Name = "db"
			c.Services = append(c.Services, s)
		}, "vm db: resource r0 belongs to vm web already"},
		{"resources on other nodes", func(c *Config) {
			c.Nodes = append(c.Nodes, Node{Name: "c"})
			c.Resources = append(c.Resources, Resource{Name: "r1", Nodes: [2]string{"a", "c"}, Protocol: "C"})
			c.Services[0].Resources = []string{"r0", "r1"}
		}, "have to be on the same two nodes"},
		{"a copy on a witness", func(c *Config) { c.Resources[0].Nodes[1] = "w" }, `"w" is no data node`},
		{"a mistyped node", func(c *Config) { c.Resources[0].Nodes[1] = "nodol" }, `"nodol" is no data node`},
		{"I3: alone without asking, and automatic failover", func(c *Config) { c.Resources[0].AloneUnasked = true }, "goes on alone without asking, and the VM fails over automatically: both nodes could write"},
		{"I3: alone without asking, manual failover", func(c *Config) { c.Resources[0].AloneUnasked, c.Services[0].Manual = true, true }, ""},
		{"I3: alone without asking, no arbiter", func(c *Config) { c.Resources[0].AloneUnasked, c.Arbiter = true, ArbiterManual }, ""},
		{"I3: failsafe, and alone without asking", func(c *Config) {
			c.Resources[0].AloneUnasked, c.Services[0].Manual, c.Services[0].Failsafe = true, true, true
		}, "goes on alone without asking: choose one"},
		{"I3: failsafe", func(c *Config) { c.Services[0].Failsafe = true }, ""},
		{"I3: failsafe, and nobody who could be away", func(c *Config) { c.Services[0].Failsafe, c.Arbiter = true, ArbiterManual }, `arbiter "manual" is the two nodes themselves`},
		{"I6: protocol A without bounds", func(c *Config) { c.Resources[0].Protocol = "A" }, "declare max-loss-bytes and max-loss-seconds"},
		{"I6: protocol B with one bound", func(c *Config) { c.Resources[0].Protocol, c.Resources[0].MaxLossBytes = "B", 1 }, "declare max-loss-bytes and max-loss-seconds"},
		{"I6: protocol A with bounds", func(c *Config) {
			c.Resources[0].Protocol, c.Resources[0].MaxLossBytes, c.Resources[0].MaxLossMS = "A", 1, 1
		}, ""},
		{"prefers a stranger", func(c *Config) { c.Services[0].Prefer[0].Node = "w" }, "it prefers w, which has no copy"},
		{"failback", func(c *Config) { c.Services[0].Failback = "later" }, "want never, manual or window"},
		{"an empty window", func(c *Config) { c.Services[0].Failback = FailbackWindow }, "want two different times"},
		{"target-role", func(c *Config) { c.Services[0].Target = "on" }, "want started, stopped or disabled"},
		{"no time to stop", func(c *Config) { c.Services[0].StopTimeout = 0 }, "stop-timeout 0 ms"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := testConfig(ArbiterEtcd)
			c.Self = "a"
			tt.change(&c)
			err := c.Validate()
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
