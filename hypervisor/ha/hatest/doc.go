// Package hatest simulates failover: hosts on which ha.Core decides, the storage
// engine's own simulator below it (package repltest: production cores, simulated
// disks and connections), a model hypervisor, a model arbiter, and what is between
// them. One seed gives one history. Only tests import it.
//
// # What is real
//
// Decisions (ha.Core), claims (arbiter.Decide) and storage (replication.Resource)
// are the code that runs in production. What polluxha's runtime does around the
// core is done here from the same orders: in the order of their objects, with
// their time limits, with answers that are lost or late.
//
// # What happens
//
// A VM writes numbered records, one block each, with FUA. A plan drawn from the
// seed has rounds of two faults, the second while the first lasts (faults.go). Then
// everything is mended, as operators would who read the messages, and every VM has to
// run and write again within a bound, with both copies equal and both counted.
// In the end the operator stops all VMs, and they have to stay stopped.
//
// # What is checked
//
// Storage checks itself at each event; it is told what the arbiter's record says, so
// a record that is acknowledged and not on each copy that counts is noticed at
// once. At each start of a VM the copy that serves it holds every record that was
// ever acknowledged. Of two VMs of one service that run, the older one's manager
// has not had the time to end it: its host has just woken up, or its manager has
// just been started. Incarnations are used once; terms grow; what an operator has
// stopped is not started.
//
// A history that fails is run again with fewer faults, then with a trace.
package hatest
