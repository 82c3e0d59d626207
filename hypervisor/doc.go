// Package hypervisor starts and stops virtual machines whose disks are Pollux
// volumes. It knows nothing of replication: a disk is an NBD unix socket and an
// export name.
//
// An adapter (package qemu; Xen and libvirt are to follow) implements
// [Hypervisor] for one machine. Adapters keep no state in the process: what
// runs is found out from the machine itself every time, so a restart of the
// program that started a VM neither stops the VM nor loses sight of it.
//
//	hv, err := qemu.New(qemu.Config{RunDir: "/run/pollux/vm"})
//	…
//	err = hv.Start(ctx, hypervisor.Guest{
//		Name:        "web",
//		MemoryBytes: 1 << 30,
//		VCPUs:       2,
//		Disks:       []hypervisor.Disk{{Socket: "/run/pollux/nbd.sock", Export: "web-root"}},
//		Boot:        hypervisor.Boot{Kernel: "/boot/vmlinuz", Cmdline: "root=/dev/vda"},
//		ConsoleLog:  "/var/log/pollux/web.console",
//	})
//	…
//	if err := hv.Stop(ctx, "web", time.Minute); errors.Is(err, hypervisor.ErrStillRunning) {
//		err = hv.Kill(ctx, "web")
//	}
//
// Package hvtest has a fake and the conformance suite that every adapter passes.
package hypervisor
