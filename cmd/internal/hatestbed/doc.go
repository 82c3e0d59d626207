// Package hatestbed is a rack on one machine: hosts that die, cables that are
// cut and disks that fail, for proving failover with real processes. Its
// program is cmd/pollux-ha-rounds ("make ha").
//
// A host is a network namespace, a mount namespace with a boot id of its own,
// and all processes in them; a power failure is SIGKILL to all of them. Two
// data nodes and a witness have a management link each, the data nodes a
// replication link and a network for the virtual machine besides, where a
// client sits:
//
//	          management 10.77.1.0/24
//	----+-------------+-------------+----
//	    |.1           |.2           |.3
//	 +--+---+      +--+---+     +---+---+
//	 | alpha|      | beta |     |witness|
//	 +-+--+-+      +-+--+-+     +-------+
//	   |  |.1        |  |.2
//	---|--+----------|--+-- replication 10.77.2.0/24
//	   |             |
//	---+-------------+--+-- public 10.77.3.0/24, the machine has .10
//	                    |.100 client
//
// The rack and all that runs in it live in a PID namespace ([Enter]), which
// the kernel empties when its first process ends: however the program ends,
// nothing is left. It needs root.
package hatestbed
