// Package fence is the arbiter of two nodes that can switch each other off, and of
// nobody else. Records are on both nodes (package pair has the rules); a lease never
// ends by time.
//
// # What is safe
//
// While the nodes hear each other, every change is on both disks before it counts.
// When they don't, a node goes on alone, or takes over, only after its fence agent
// has confirmed that the other one is off: [Arbiter.Fence], then a claim. This holds
// for the owner, too: without that it could not know that the other one isn't just
// about to take over. What a claim says in Fenced is not believed; what this node's
// agent has confirmed is.
//
// Why "off" is enough: what ran on the other host has ended, and after it has booted
// it changes nothing alone before it has met this node, so it learns of the new
// owner first. It is off as long as nothing is heard of another boot of it; a message
// of the boot that was switched off is late.
//
// What it can't do: a fence device that shares its power or its cable with the host
// (most management boards do) does not answer when the host has lost power. Then
// nothing is confirmed, and a person has to look. A witness has no such gap.
//
// # No shooting match
//
// One shot under the same terms: it is noted on disk before it is fired, so that a
// crash or a failure does not fire another. No shot by a node that has booted and
// not met the other one: where the cable is cut, two nodes would switch each other
// off at each boot. After both have lost power, a node starts alone what it was the
// only writer of, and waits for the other one with all else.
//
// If both sides are about to shoot, the side that owns more resources does so at
// once, the first in the alphabet if that is equal; the other one waits for
// Config.HeadStart and asks once more whether the first one answers.
package fence
