// Package replication holds every decision of Pollux as a pure, deterministic
// state machine: events in, orders out.
//
// # The caller's duties
//
// The caller (package replication/engine, or a simulation) owns disks, sockets
// and clock. It calls Step with one Event at a time, never concurrently, and
// then does what the returned Actions say:
//
//  1. Send actions of one Step, and of consecutive Steps, are filed for their
//     socket in that order. Bytes are copied before the next Step; Data may be
//     sent or copied at leisure until its request ends.
//  2. Everything else may be done after Step's lock is let go, and in parallel,
//     but for DoLocal and DoPeerLocal on overlapping ranges: the core never has
//     two of them in flight.
//  3. Every DoLocal, DoPeerLocal, WriteMeta and SyncData is answered by exactly
//     one event, also after the connection is gone. A MetaJob is done in its own order.
//     Digests are computed by the caller, outside of Step's lock: a read wants one by
//     Action.DigestAlg and has it answered in Event.Digest.
//  4. Complete takes the request from the core: its memory is the client's again,
//     unless it says Keep.
//     Free gives a buffer of the peer's back.
//     After a connection is lost, Connect comes only when no I/O for the peer is
//     under way here any more and its last writes are stable; SocketsUp in any
//     other state than WFConnection is answered with Disconnect.
//  5. SocketsUp and SocketsDown alternate; no packet of an earlier connection is
//     stepped after SocketsDown or after a Disconnect action.
//
// # Invariants
//
//   - I1 A client is answered only when its protocol's rule is met on every copy
//     that counts, and never while a changed generation UUID is not on disk.
//   - I2 Every block that may differ from the peer's without its bit being set in
//     the bitmap on disk lies in an extent that the activity log on disk names.
//   - I3 A bit is cleared on disk, and an extent leaves the activity log on disk,
//     only after an fdatasync of this node's data that began after the data was written.
//   - I4 Overlapping writes are never in flight together on one disk; both nodes
//     do them in the order of the data socket. Those that two Primaries begin at
//     once both nodes do in the order that the one decides that resolves conflicts.
//   - I5 P_BARRIER_ACK is sent only after an fdatasync that began after the last
//     write of its epoch, and of all earlier ones, had ended.
//   - I6 A node writes for a peer, and acknowledges, only under a term that is not
//     lower than what it has promised; the promise is on disk before it is answered. The
//     owner of a term answers a client without its peer's copy only if the arbiter (or a
//     confirmed fence) leaves it alone, and with the sole-writer mark on disk.
package replication
