// Package pair keeps an arbiter's records on the two nodes themselves, where no
// third host has a say: the base of packages arbiter/fence and arbiter/manual.
//
// # What two nodes can do safely
//
// Two nodes that don't hear each other can't tell whether the other one is dead.
// So each change of a record is made in one of two ways only:
//
//   - together: it is on disk on both nodes before anybody is told of it;
//   - alone, by a node that knows that the other one can make no change without
//     having heard of this one first.
//
// A node knows that if
//
//  1. the other one was confirmed to be off ([Arbiter.ConfirmOff]). It may boot at
//     once: a node that has booted makes no change alone before it has met the other
//     one, as its records may be old. It remembers in its file in which boot it met
//     its peer last.
//  2. the other one has resigned: it has first noted on its disk that it makes no
//     change alone any more, as if it had booted.
//  3. the record names this node the only copy that counts. Then the other one has
//     either agreed to that, or was off when it was written: it can't take over.
//     After a boot the other one is asked first all the same: by rule 4 it may have
//     become the only one, too, and then neither counts.
//  4. the operator says so (Claim.Force), or, in manual mode, an owner goes on alone,
//     as the other side never takes over without a person.
//
// Both may break rule 4 at once, and a fence device may lie. Then both sides have
// records that the other one doesn't know. That is found when they meet: each record
// names those that the other side may still have. Neither side's counts then, and
// until all copies are connected and one claims with all of them, only Force helps.
//
// # A change together
//
// The claimant notes on its disk that the new record may be in effect ("in doubt"),
// sends it, the other one stores it in place of the record that it was built on, and
// answers; then the claimant stores it. If the answer does not come, the claimant is
// in doubt, also after a restart. In doubt it takes the worse of both: it shows the
// old term, and a set of copies that has all of both, so it never goes on alone
// because of a set that may have grown already; and it takes over only if it could
// with either record. That is resolved at the next meeting: the other side has the
// new record, or it has not.
//
// A proposal that is late must not be accepted after such a meeting. So each side
// gives the other a number with each copy of all records that it sends, and takes
// proposals with the last one only; what was sent before is refused. Copies that
// arrive out of order are recognized by the same number, and those that are older than
// a proposal which has arrived, by the number of the last one that was made before it.
//
// Messages of a boot that was confirmed off are late by definition and dropped; if
// there are many, the fence device lies, and [arbiter.View] says so.
package pair
