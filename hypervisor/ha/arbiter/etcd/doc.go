// Package etcd is the arbiter in an etcd cluster of three or more voters (or one
// voter on a third host), through the v3 API.
//
// All keys begin with /pollux/CLUSTER/:
//
//	record/RESOURCE  JSON: the arbiter.Record, and which claim wrote it
//	node/NODE        JSON: the session, and raft's term when it was renewed; bound to the node's etcd lease
//	probe/NODE       overwritten every 30 s: what a commit costs, and whether it can be had
//
// A claim is one transaction: if the record is the revision that the decision was
// built on and, for a takeover, the owner's node key is as it was seen (most often:
// absent), the new record is put. So a renewal, a new session or another claim in
// between makes the transaction fail, and the decision is made anew. Each claim
// carries a number drawn by chance: a claim whose answer was lost knows its own
// record when it looks again.
//
// etcd ends a lease no sooner than TTL after the last renewal reached its leader,
// and a new leader begins all of them anew, so a lease counted from before the
// renewal was sent has always ended first on the node. Several elections in a row
// don't add up: see elections. That a lease was lost is no error: the next Renew
// makes another, and whoever needs to know sees the session.
//
// An etcd user needs a role with readwrite on the prefix /pollux/CLUSTER/.
//
// Each endpoint has its own connection, and one of them is in use: a request that
// gets no answer in time is repeated at the next. A host that was switched off
// costs one such time, not one per request.
package etcd
