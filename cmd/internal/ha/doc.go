// Package ha is polluxha: the thin runtime around the pure core hypervisor/ha,
// which has every decision.
//
//	node.go       one process: socket, event log, and a member while in a cluster
//	member.go     the parts of a member, in the order of their start; init, join, leave
//	manager.go    the one goroutine that steps the core
//	observe.go    what is seen becomes events of the core: polluxd, heartbeats, memory
//	perform.go    orders of the core are carried out, in lanes, and answered
//	services.go   a watcher for each VM; work.go: a VM of this machine; equip.go: its adapters
//	arbiters.go   which arbiter, by the cluster's file; etcd.go: a member of etcd in this process
//	commands.go   what polluxadm asks for; status.go: what it is shown; server.go: the socket
//	drill.go      a rehearsed death of a node, seen from another one
//
// Nothing here decides who writes or what runs where. A worker that hangs costs its
// order, which is answered with an error in time, and never the core's next step.
//
// # Times
//
// The core's clock is CLOCK_BOOTTIME: a lease ends while the host sleeps. What is
// known by events is polled as well, every ten seconds.
//
// # The end
//
// SIGTERM, a crash and an upgrade are the same to what runs: VMs and polluxd go on,
// and the next polluxha finds them. The lease is not given up; while the peer's copy
// is connected nobody takes over, whatever became of this process.
package ha
