package conf

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Text returns cluster.toml with this in it, such that ParseCluster gives the
// same again: nodes and options sorted, defaults written out, absolute paths.
// Equal clusters have equal texts.
func (c *Cluster) Text() []byte {
	w := &tomlWriter{}
	w.line("# The nodes of this cluster, and who says which of them may write: cluster.toml(5).")
	w.line("# polluxadm cluster init, join and leave write it. It is the same on all nodes.")
	w.text("name", c.Name)
	w.text("id", c.ID)
	w.line("serial = %d", c.Serial)
	if c.LeaderIP.IsValid() {
		w.text("leader-ip", c.LeaderIP.String())
		w.optional("leader-interface", c.LeaderInterface)
	}
	w.table("[heartbeat]")
	w.text("keepalive", c.Heartbeat.Keepalive.String())
	w.text("warntime", c.Heartbeat.Warntime.String())
	w.text("deadtime", c.Heartbeat.Deadtime.String())
	w.text("initdead", c.Heartbeat.Initdead.String())
	c.writeArbiter(w)
	for _, n := range sortedNodes(c.Nodes) {
		w.table("[[node]]")
		w.text("name", n.Name)
		w.text("kind", orDefault(n.Kind, NodeData))
		w.list("links", texts(n.Links))
		w.optional("public-key", n.PublicKey)
		if n.Etcd.IsValid() {
			w.text("etcd", n.Etcd.String())
		}
	}
	for _, d := range c.Fences {
		w.table("[[fence]]")
		w.text("node", d.Node)
		w.text("agent", d.Agent)
		if len(d.Options) > 0 {
			w.line("[fence.options]")
			for _, name := range slices.Sorted(maps.Keys(d.Options)) {
				w.text(tomlQuote(name), d.Options[name])
			}
		}
	}
	return []byte(w.String())
}

// Hash is the SHA-256 of Text, in digits: nodes compare it.
func (c *Cluster) Hash() string {
	sum := sha256.Sum256(c.Text())
	return hex.EncodeToString(sum[:])
}

func (c *Cluster) writeArbiter(w *tomlWriter) {
	a := &c.Arbiter
	w.table("[arbiter]")
	w.text("kind", a.Kind)
	w.text("ttl", a.TTL.String())
	if a.UnsafeShortTTL {
		w.line("unsafe-short-ttl = true")
	}
	if e := &a.Etcd; len(e.Endpoints) > 0 || e.User != "" || e.PasswordFile != "" || e.CA != "" || e.Cert != "" {
		w.table("[arbiter.etcd]")
		if len(e.Endpoints) > 0 {
			w.list("endpoints", e.Endpoints)
		}
		w.optional("user", e.User)
		w.optional("password-file", e.PasswordFile)
		w.optional("ca", e.CA)
		w.optional("cert", e.Cert)
		w.optional("key", e.Key)
	}
	if t := &a.Witness; *t != (WitnessTable{}) {
		w.table("[arbiter.witness]")
		w.text("address", t.Address.String())
		w.optional("fingerprint", t.Fingerprint)
		w.optional("ca", t.CA)
		w.optional("cert", t.Cert)
		w.optional("key", t.Key)
	}
}

// A tomlWriter writes the few forms of TOML that cluster.toml has.
type tomlWriter struct{ strings.Builder }

func (w *tomlWriter) line(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }

func (w *tomlWriter) table(head string) { w.line("\n%s", head) }

func (w *tomlWriter) text(key, value string) { w.line("%s = %s", key, tomlQuote(value)) }

func (w *tomlWriter) optional(key, value string) {
	if value != "" {
		w.text(key, value)
	}
}

func (w *tomlWriter) list(key string, values []string) {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = tomlQuote(v)
	}
	w.line("%s = [%s]", key, strings.Join(quoted, ", "))
}

func texts(addrs []netip.AddrPort) []string {
	list := make([]string, len(addrs))
	for i, a := range addrs {
		list[i] = a.String()
	}
	return list
}

// tomlQuote makes a basic string of TOML 1.0.
func tomlQuote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
