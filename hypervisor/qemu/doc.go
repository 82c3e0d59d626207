// Package qemu runs virtual machines with qemu-system-x86_64 (7.2 or newer) on
// Linux. Each VM is a daemon of its own, no child of the program that started
// it, and has a directory below [Config].RunDir:
//
//	RUNDIR/NAME/lock   flock(2) held while a VM is being started
//	RUNDIR/NAME/pid    written and locked by QEMU itself
//	RUNDIR/NAME/qmp    the monitor's socket (see [Monitor])
//	RUNDIR/NAME/log    QEMU's own messages
//
// The files are hints. Whether a VM runs is decided by the processes of the
// machine: a QEMU whose command line names that pid file. So neither a stale
// pid file, nor a process number used again, nor a deleted directory leads to
// a VM started twice or to the wrong process killed.
//
// A disk is an NBD export on a unix socket. When the server goes away, the
// guest's requests wait until it is back; see [Config].ReconnectDelay.
//
//	hv, err := qemu.New(qemu.Config{RunDir: "/run/pollux/vm"})
//	…
//	states, err := hv.List(ctx)
package qemu
