// Package embedded runs a member of an etcd cluster within the program: what
// polluxha --embedded-etcd does. Programs that only ask etcd don't import it.
//
// Three voters survive the death of one host, and a host without disks may be one
// of them. Two survive none: package etcd refuses automatic failover then.
//
// A cluster begins with all its voters at once (Config.Voters) or with one, which
// others join one at a time: [Join] adds the newcomer without a vote, and gives it
// one when it has caught up, so that no host that is slow to start takes the
// majority from those that run.
//
//	m, err := embedded.Start(embedded.Config{Name: "nodo1", Dir: dir, PeerURL: …, ClientURL: …, Cluster: id, Voters: voters})
//	…
//	defer m.Close()
//
// # Timing
//
// A follower gives a silent leader up after one to two election timeouts, and the
// new leader begins all leases anew, for their TTL and one election timeout more.
// So when the host of the leader dies, the lease of a node that died with it ends
// up to three election timeouts and a TTL later: 1.5 s and 6 s make 10.5 s, which
// leaves 4 s of 15 for the takeover. A shorter timeout gains little and has more
// elections on a machine that is briefly overloaded; heartbeats every 250 ms cost
// little when nothing happens.
//
// The member must not lie on a replicated disk, and its disk must be quick to
// sync: [Member.Complaint] says when 1 of 100 syncs takes longer than 10 ms.
package embedded
