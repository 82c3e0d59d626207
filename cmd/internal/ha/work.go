package ha

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor"
	"github.com/pollux-project/pollux/hypervisor/ha"
)

// addresses are this machine's floating addresses.
type addresses interface {
	// take gives this machine an address, whoever else answers for it.
	take(ctx context.Context, a floating) error
	// free says who else on the network has an address.
	free(ctx context.Context, a floating) error
	remove(ctx context.Context, a netip.Addr) error
	// held are the addresses that this machine has from us.
	held(ctx context.Context) ([]netip.Addr, error)
}

// A floating address, and the interface that gets it ("": the one with another
// address of the network).
type floating struct {
	prefix netip.Prefix
	iface  string
}

// A guestWork is a VM, or units, of this machine, with its addresses.
type guestWork struct {
	vm     *conf.VM
	hv     hypervisor.Hypervisor
	ips    addresses                                                // nil: this machine can have none
	nbd    string                                                   // unix socket of polluxd's NBD server
	device func(ctx context.Context, volume string) (string, error) // block device of RESOURCE or RESOURCE/VOLUME
	asks   func(ctx context.Context) error                          // one probe of the monitor; nil: the process is all that counts

	unused atomic.Uint64 // bytes; see untouched
}

// check implements workload.
func (g *guestWork) check(context.Context) error {
	if c, ok := g.hv.(interface{ Installed() error }); ok {
		if err := c.Installed(); err != nil {
			return fmt.Errorf("vm %s: hypervisor %q can't be used on this node: %w", g.vm.Name, g.vm.Hypervisor, err)
		}
	}
	for _, d := range g.vm.LocalDisks {
		if err := hypervisor.CheckLocalDisk(localDisk(d)); err != nil {
			return fmt.Errorf("vm %s: %w", g.vm.Name, err)
		}
	}
	return nil
}

func localDisk(d conf.VMLocalDisk) hypervisor.LocalDisk {
	return hypervisor.LocalDisk{Path: d.Path, SizeBytes: int64(d.Size), Swap: d.Format == "swap"} //nolint:gosec // conf bounds it
}

// start implements workload.
func (g *guestWork) start(ctx context.Context, incarnation string) error {
	if err := g.check(ctx); err != nil {
		return err
	}
	for _, d := range g.vm.LocalDisks {
		if err := hypervisor.PrepareLocalDisk(localDisk(d)); err != nil {
			return fmt.Errorf("vm %s: %w", g.vm.Name, err)
		}
	}
	guest := g.guest(incarnation)
	for _, m := range g.vm.Mounts {
		device, err := g.device(ctx, m.Volume)
		if err != nil {
			return fmt.Errorf("vm %s: %w", g.vm.Name, err)
		}
		guest.Mounts = append(guest.Mounts, hypervisor.Mount{Device: device, Dir: m.Path, Type: m.Type, Options: m.Options})
	}
	return g.hv.Start(ctx, guest)
}

// guest is the VM as the hypervisor takes it, for one incarnation.
func (g *guestWork) guest(incarnation string) hypervisor.Guest {
	v := g.vm
	out := hypervisor.Guest{
		Name: v.Name, MemoryBytes: int64(v.Memory), VCPUs: v.VCPUs, ConsoleLog: v.Console, Accel: hypervisor.Accel(v.Accel), //nolint:gosec // conf bounds it
		Boot:      hypervisor.Boot{Kernel: v.Boot.Kernel, Initrd: v.Boot.Initrd, Cmdline: v.Boot.Cmdline, Firmware: v.Boot.Firmware},
		ExtraArgs: slices.Clone(v.ExtraArgs), Units: slices.Clone(v.Units),
	}
	for _, d := range v.Disks() {
		out.Disks = append(out.Disks, hypervisor.Disk{Socket: g.nbd, Export: d.Export() + "@" + incarnation, ReadOnly: d.ReadOnly})
	}
	for _, d := range v.LocalDisks {
		out.Disks = append(out.Disks, hypervisor.Disk{Path: d.Path})
	}
	switch kind, name := v.NetworkKind(); kind {
	case "user":
		out.Networks = []hypervisor.Network{{Kind: hypervisor.UserNetwork, MAC: v.MAC}}
	case "bridge":
		out.Networks = []hypervisor.Network{{Kind: hypervisor.BridgeNetwork, Bridge: name, MAC: v.MAC}}
	case "tap": // made by somebody else: QEMU only opens it
		out.ExtraArgs = append([]string{
			"-netdev", "tap,id=polluxtap,script=no,downscript=no,ifname=" + name,
			"-device", "virtio-net-pci,netdev=polluxtap,mac=" + v.MAC,
		}, out.ExtraArgs...)
	}
	return out
}

// stop implements workload.
func (g *guestWork) stop(ctx context.Context) error {
	if !g.vm.Graceful && !g.vm.IsUnits() {
		return g.kill(ctx)
	}
	return goneIs(g.hv.Stop(ctx, g.vm.Name, g.vm.StopTimeout.Duration))
}

// goneIs is nil if the VM is gone, however slow polluxd is: what it still has of the
// VM's requests is ended by the next export, or by the demotion.
func goneIs(err error) error {
	if errors.Is(err, hypervisor.ErrNotRunning) || errors.Is(err, hypervisor.ErrDisksOpen) {
		return nil
	}
	return err
}

// kill implements workload.
func (g *guestWork) kill(ctx context.Context) error {
	return goneIs(g.hv.Kill(ctx, g.vm.Name))
}

// look implements workload.
func (g *guestWork) look(ctx context.Context) (ha.Seen, error) {
	st, err := g.hv.State(ctx, g.vm.Name)
	if err != nil {
		return ha.Seen{}, err
	}
	unused := uint64(0)
	if memory := uint64(g.vm.Memory); st.Phase != hypervisor.Stopped && !g.vm.IsUnits() {
		unused = memory - min(memory, uint64(max(st.MemoryBytes, 0))) //nolint:gosec // never negative
	}
	g.unused.Store(unused)
	seen := ha.Seen{Phase: phaseOf(st.Phase), Incarnation: incarnationOf(st.Disks)}
	if st.Phase == hypervisor.Paused || st.Phase == hypervisor.Unknown {
		seen.Monitor = st.Reason
	}
	if len(g.vm.IPs) == 0 {
		return seen, nil
	}
	held, err := g.ips.held(ctx)
	if err != nil {
		return seen, err
	}
	for _, ip := range g.vm.IPs {
		seen.Addresses = seen.Addresses || slices.Contains(held, ip.Address.Addr())
	}
	return seen, nil
}

// untouched implements workload.
func (g *guestWork) untouched() uint64 { return g.unused.Load() }

func phaseOf(p hypervisor.Phase) ha.Phase {
	switch p {
	case hypervisor.Stopped:
		return ha.PhaseStopped
	case hypervisor.Running:
		return ha.PhaseRunning
	case hypervisor.Paused:
		return ha.PhasePaused
	case hypervisor.Unknown:
	}
	return ha.PhaseUnknown
}

// incarnationOf reads from the exports that a VM was started with which start it is.
func incarnationOf(disks []hypervisor.Disk) string {
	for _, d := range disks {
		if _, incarnation, ok := strings.Cut(d.Export, "@"); ok {
			return incarnation
		}
	}
	return ""
}

// watch implements workload.
func (g *guestWork) watch(ctx context.Context, changed func()) error {
	err := g.hv.Watch(ctx, g.vm.Name, func(hypervisor.Event) { changed() })
	if errors.Is(err, hypervisor.ErrNotRunning) {
		return nil
	}
	return err
}

// probe implements workload.
func (g *guestWork) probe(ctx context.Context) error {
	if g.asks == nil {
		return nil
	}
	return g.asks(ctx)
}

// addressesFree implements workload.
func (g *guestWork) addressesFree(ctx context.Context) error {
	var errs []error
	for _, ip := range g.vm.IPs {
		errs = append(errs, g.ips.free(ctx, floating{ip.Address.Prefix, ip.Interface}))
	}
	return errors.Join(errs...)
}

// addIPs implements workload. The arbiter has said whose they are: an old owner
// that still answers for them is outdone.
func (g *guestWork) addIPs(ctx context.Context) error {
	var errs []error
	for _, ip := range g.vm.IPs {
		errs = append(errs, g.ips.take(ctx, floating{ip.Address.Prefix, ip.Interface}))
	}
	return errors.Join(errs...)
}

// removeIPs implements workload.
func (g *guestWork) removeIPs(ctx context.Context) error {
	var errs []error
	for _, ip := range g.vm.IPs {
		errs = append(errs, g.ips.remove(ctx, ip.Address.Addr()))
	}
	return errors.Join(errs...)
}
