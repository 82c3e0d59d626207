// Package units runs systemd units, with the file systems that they need
// mounted, in the place of a virtual machine: a database, an LVS director. It
// implements [hypervisor.Hypervisor]; what that calls the VM is here all units of
// one description together, and its disks are open as long as a unit runs or a
// mount is there.
//
// Everything goes through systemctl(1), mount(8) and umount(8). What was started
// is written down in a directory below /run, which a reboot clears as it ends the
// units; the rest is asked of systemd and of the kernel each time. An adapter that
// knows a VM's units (For) finds them also when that directory was lost.
//
// The units must not be enabled: systemd would start them at boot, on both nodes.
// A unit's own Restart= is respected; a VM is ill while one of its units is not
// active, and gone when none is.
//
//	hv, err := units.New(units.Config{RunDir: "/run/pollux/units"})
//	…
//	err = hv.Start(ctx, hypervisor.Guest{
//		Name:   "sql",
//		Mounts: []hypervisor.Mount{{Device: "/dev/drbd/by-res/db/0", Dir: "/var/lib/mysql", Type: "ext4"}},
//		Units:  []string{"mysql.service"},
//	})
package units
