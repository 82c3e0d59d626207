// Package ha holds every decision of polluxha, the failover manager, as a pure,
// deterministic state machine: what was observed goes in, orders come out. It reads
// no clock, starts no goroutine and does no I/O.
//
// # The caller's duties
//
// The caller (the runtime of polluxha, or a simulation) owns clock, sockets, the
// arbiter's client, the hypervisor and the disk. It calls Step with one Event at a
// time, never concurrently, with a Tick that never goes back, and then carries the
// Orders out:
//
//  1. The first event is Started. Ticked comes at least every 100 ms while the
//     process runs; it costs next to nothing when nothing is due.
//  2. Each order with an ID is answered by exactly one event with that ID in Order:
//     Observe by ArbiterViewed, Claim by ClaimDone, all others by OrderDone. What is
//     not done within Timeout is given up, and answered with an error then. An order
//     without an ID is not answered.
//  3. Orders for one resource, and orders for one service, are carried out in the
//     order in which they were given; those of different objects in parallel. Two
//     overtake: KillService ends a StartService or StopService that is under way and
//     is carried out at once, FreezeReads does not wait for anything. Persist is
//     done, durably, before any later order of the same Step is begun.
//  4. What is observed is reported when it changes, and all of it once after Started:
//     StorageChanged for each resource that has a copy here, ServiceChanged for each
//     service, HealthChanged for this node. A state that an order brought about is
//     reported before, or with, the order's answer.
//  5. Heartbeat says that a Beat of another node came in. A runtime that receives
//     the Beat that it has seen last (same Session and Seq) need not decode it again.
//
// # Words
//
// A service is a virtual machine, or units and addresses, that runs on one node at a
// time. Its resources each have a copy on two data nodes. For each resource the
// arbiter holds a record (package arbiter); the node that it names as owner, and no
// other, promotes its copy. An incarnation is one start of a service.
//
// # Rules
//
// Comments cite these by number. They are the failover manager's own: those of
// package replication have numbers of their own.
//
//   - I2 An owner that lost its peer acknowledges again only by the peer's durable word, the
//     arbiter's record of it alone, a confirmed fence, or in manual mode.
//   - I3 Going on alone without asking and automatic failover exclude each other.
//   - I4 A copy counts again only when both are equal under one generation.
//   - I5 After a boot a node promotes alone only if its disk's mark and the record say
//     that it was the sole writer.
//   - I6 A takeover needs: no live data connection, the lease over by the arbiter's word
//     and by this node's clock with a margin, a copy that counts.
//   - I7 When a lease has ended: reads wait, the VM is killed, the watchdog is last.
//   - I8 One fence shot for a node and term; the side that runs the VM has a head start;
//     none after a start.
//   - I9 An operator's override says what is unknown, wants the name, raises the term.
//   - I10 Each start of a service has an incarnation, and only it may use the disks.
package ha
