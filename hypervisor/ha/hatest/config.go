package hatest

import (
	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/protocol/drbd"
)

// A Config describes a World.
type Config struct {
	Seed     uint64 // 0: all delays are fixed
	Hosts    int
	Services []ServiceConfig
	Timing   ha.Timing
	Arbiter  ha.ArbiterKind
	Watchdog bool
	Failsafe bool  // of all services
	Tick     int64 // ms between two Ticked events
	Jitter   int64 // µs that every message may take longer
	// Protocol of all resources; 0 is 'C'. Under 'A' and 'B' a takeover may lose what
	// MaxLossBytes and MaxLossMS allow; without them there is no automatic one.
	Protocol     byte
	MaxLossBytes uint64
	MaxLossMS    int64
	// SharedPower: a host's management board has no power when the host has none.
	SharedPower bool
}

// A ServiceConfig is one VM: the two hosts that have its disks, and how many it has.
type ServiceConfig struct {
	Hosts     [2]int
	Resources int
}

// DefaultConfig is two hosts, one VM with one disk, leases, no chance.
func DefaultConfig() Config {
	return Config{
		Hosts: 2, Services: []ServiceConfig{{Hosts: [2]int{0, 1}, Resources: 1}}, Arbiter: ha.ArbiterEtcd, Watchdog: true, Tick: 100,
		Timing: ha.Timing{Keepalive: 1000, Warntime: 3000, Deadtime: 7000, Initdead: 15000, TTL: 6000},
	}
}

// weak reports whether a takeover may lose something.
func (c *Config) weak() bool { return c.Protocol == 'A' || c.Protocol == 'B' }

// isDuo reports whether two hosts are the arbiter together.
func (c *Config) isDuo() bool { return c.Arbiter == ha.ArbiterFence || c.Arbiter == ha.ArbiterManual }

// TTL is that of a lease, µs.
func (c *Config) ttl() int64 { return int64(c.Timing.TTL) * millisecond }

// cluster is what the manager on h is configured with.
func (c *Config) cluster(w *World, h *Host) ha.Config {
	cfg := ha.Config{
		Self: h.name, Cluster: "sim", Hash: "1", Arbiter: c.Arbiter, Timing: c.Timing, ReserveBytes: 1 << 30, Watchdog: c.Watchdog,
	}
	for _, o := range w.Hosts {
		cfg.Nodes = append(cfg.Nodes, ha.Node{Name: o.name, Fence: c.Arbiter == ha.ArbiterFence})
	}
	for _, s := range w.Services {
		svc := ha.Service{
			Name: s.name, Hash: "1", MemoryBytes: 1 << 30, Addresses: true, StartTimeout: 10000, StopTimeout: 5000,
			RestartLimit: 3, RestartDelay: 1000, RestartReset: 60000, Failsafe: c.Failsafe,
		}
		for _, p := range s.pairs {
			svc.Resources = append(svc.Resources, p.name)
			r := ha.Resource{Name: p.name, Nodes: [2]string{p.hosts[0].name, p.hosts[1].name}, Protocol: "C"}
			if c.weak() {
				r.Protocol, r.MaxLossBytes, r.MaxLossMS = string(rune(c.Protocol)), c.MaxLossBytes, uint64(c.MaxLossMS)
			}
			cfg.Resources = append(cfg.Resources, r)
		}
		svc.Manual = c.weak() && c.MaxLossBytes == 0
		svc.Prefer = []ha.Preference{{Node: s.pairs[0].hosts[0].name, Score: 100}, {Node: s.pairs[0].hosts[1].name, Score: 1}}
		cfg.Services = append(cfg.Services, svc)
	}
	return cfg
}

const connected = drbd.Connected
