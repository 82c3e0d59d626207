// Package manual is the arbiter where there is none: two nodes, no witness and no
// fence. An owner goes on alone when it loses its peer, as the other node never
// takes over by itself; after a clean end, or with Claim.Force, it does: the
// operator has seen that the first one is off. So the data are protected against the
// loss of a disk, and services are not against the loss of a host.
//
// Records are on each node, and exchanged while the nodes hear each other, so that
// the other node knows when its copy is stale (package pair). A node that has booted
// asks for Force before it goes on alone with a record that counts both copies: the
// other one may have been forced meanwhile.
package manual
