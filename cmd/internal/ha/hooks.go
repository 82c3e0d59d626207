package ha

import (
	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/hypervisor/hook"
	"github.com/pollux-project/pollux/protocol/adm"
)

// runHook begins what an operator wants run when something has happened.
func (m *manager) runHook(o ha.Order) {
	in := hook.Input{Event: string(o.Hook), Cluster: m.name, Node: m.self, VM: o.Service, Peer: o.Node, Term: o.Term, Reason: o.Text, Time: m.wall()}
	key, v, tables := "node "+m.self, m.conf.vm(o.Service), []conf.Hooks{m.conf.settings.HA.Hooks}
	if v != nil {
		tables = append(tables, v.Hooks)
		key, in.Resources = "vm "+v.Name, resourcesOf(v)
		for _, ip := range v.IPs {
			in.Addresses = append(in.Addresses, ip.Address.String())
		}
	}
	m.hook(key, o.Hook, tables, in)
}

// hookEnded tells of a hook that failed or was cut off; one that went well is no news.
func (n *node) hookEnded(r hook.Result) {
	if r.Err == nil {
		n.log.Debug().Msg(r.String())
		return
	}
	n.log.Warn().Str("output", r.Output).Msg(r.String())
	n.events.add(adm.HAEvent{Level: adm.HALevelWarning, Kind: adm.HAEventHook, Text: r.String()})
}
