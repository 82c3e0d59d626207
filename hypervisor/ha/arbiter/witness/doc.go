// Package witness is an arbiter in one small process on a third host: [Server] is
// the process, [Client] an arbiter.Arbiter that asks it.
//
// A server has many clusters, which do not see each other: each is known by the
// CA that signs its nodes' certificates, and a node claims and renews for itself
// only. Records are on disk before they are answered ([Server] keeps one log for
// each cluster, see store). Leases are not: after a start every owner counts as
// alive until one TTL has passed, so that nobody is taken for dead who could not
// be heard.
//
// The language is HTTP/1.1 over TLS 1.3, POST with JSON in both directions, and
// one GET that waits for a change. All of it is bounded: sizes, resources, rates,
// connections.
package witness
