// Package control is the channel between the nodes of a cluster, and who is one.
//
// A [Store] is what makes a node a member: the certificate that the cluster's CA
// has signed for it, and cluster.toml with the names, addresses and keys of all.
// [Init] makes a cluster of one node. [Channel.NewToken] gives out a secret with
// which one more may [Join], once, and [Channel.Leave] takes one out: one at a
// time, while all others are well.
//
// A [Channel] has one TLS 1.3 connection to each other node over each link. Both
// ends show their certificates, and are believed for their keys, never for their
// clocks. It carries heartbeats with an opaque payload, and requests.
//
//	id, cluster, err := store.Load()
//	ch, err := control.Start(control.Config{
//		Store: store, Identity: id, Cluster: cluster, Session: session,
//		OnBeat: func(b control.Beat) { ... },
//	}, map[string]control.Handler{"status": status})
//	err = ch.SetPayload(beat) // from now on each heartbeat carries it
//	answer, err := ch.Request(ctx, "nodo2", "status", nil, nil)
//
// A node that is slow, stopped or gone never blocks another: of heartbeats the
// newest one is sent, requests beyond a bound fail at once, and a connection over
// which nothing moves for deadtime is closed. All times are those of clocks that
// nobody can set.
package control
