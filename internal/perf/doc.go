// Package perf measures where the time of a request goes inside polluxd.
//
// A Sampler picks one of N requests; N follows the load, so that every request
// of a quiet client is looked at and one of MaxEvery of a busy one. A request
// that is picked carries a Trace, the times at which it passed its Points; when
// its reply is in the client's socket, Volume.Fold makes them durations of its
// Hops. A request that is not picked costs a decrement and a branch. What is
// rare and slow (fdatasync, transactions of the activity log, other metadata
// writes) is not sampled: each one is measured.
//
// The hops of one write, in the field's words; the two branches run in parallel:
//
//	total --------------------------------------------------------------------------
//	NBD in | conflict | activity log |  local queue | local write  |.....|  reply
//	                                 |  send | peer | ack          |.....|
//
//	NBD in        the batch's bytes were read off the client's socket, to the submit
//	              into the engine: payload copied, room in the table, the lock
//	conflict      until nothing that overlaps is in flight (or I/O is frozen)
//	activity log  waiting for the transaction that makes its extent hot
//	local queue   the order to write, to the begin of the system call: what the same
//	              goroutine does first (packets to the peer), or a worker's wake-up
//	local write   the system call, until its result is known to the engine
//	send          the packet was filed, to handed to the socket
//	peer          until the peer's acknowledgement was read: network and peer
//	ack           until the client's request is complete: lock, batch, generation UUID
//	reply         until the reply is in the client's socket
//
// The longer of the two branches decides how long the write takes: its hops
// count as critical, as do those outside of the branches. The critical hops of a
// write and what is left (Rest: the end of the local write to the completion,
// and the like) are its total, to the nanosecond.
//
// All counters are atomic and updated by sampled requests only; a histogram has
// fixed buckets (log-linear, 16 for each power of two: values are off by 3 % at
// most) and exists once something was recorded in it: 3.4 KiB. The usual
// hdrhistogram of three digits would take 300 KiB for each of some 25 hops of
// each volume, and is not safe for concurrent use.
//
// What sampling can't see: with 1 of N, a stall that few requests met may have
// met none that was picked. Count of a Hop is that of the samples, Requests that
// of all requests; Max is the largest of the samples.
package perf
