// Package hostile runs two cores with something evil between them. The bytes of
// a fuzzer are a program: they choose the options, bring both nodes into a
// state (in sync, resync, verify, congested, two Primaries...), and then change,
// forge, drop, repeat and cut what passes, give orders as the operator of either
// node, and make disks slow or fail. At some point the peer may be left out, so
// that nothing but forged packets reaches node a.
//
// What must hold, whatever the program is:
//
//   - no panic, and the core's invariants (build tag invariants);
//   - each step orders a bounded number of actions, and the events of a
//     millisecond come to an end;
//   - buffers given to a core are freed once, and no more than a bound is held;
//   - nothing is read or written outside of the data, or of the bitmap;
//   - a write that was acknowledged is on the disk of its node, if that has one,
//     and a flush has made it durable; a peer overwrites it only where DRBD
//     would let it;
//   - in the end node a, left alone, serves a client, and then takes a healthy
//     peer and fills its disk.
package hostile
