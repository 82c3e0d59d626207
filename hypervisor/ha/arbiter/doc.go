// Package arbiter says who may write: an [Arbiter] holds one [Record] for each
// resource (term, owner, the copies that count), and one [Lease] for each node.
//
// Safety rests on the records alone: they change by compare-and-swap, the term
// only grows, and the replicas refuse what comes under a lower one. A lease only
// says when another node may stop waiting for a silent owner.
//
// [Decide] is the one decision, a plain function; the adapters (etcd, witness,
// fence, manual) make it atomic and durable, each in its way, and pass the suite of
// package arbitertest.
package arbiter
