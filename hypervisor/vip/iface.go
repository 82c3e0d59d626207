package vip

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// An iface is a network interface of this machine.
type iface struct {
	Name    string
	Index   int
	MAC     net.HardwareAddr
	isSpeak bool // has neighbours that resolve addresses: Ethernet, not loopback
}

func ifaceOf(l netlink.Link) iface {
	a := l.Attrs()
	return iface{
		Name: a.Name, Index: a.Index, MAC: a.HardwareAddr,
		isSpeak: len(a.HardwareAddr) == 6 && a.Flags&net.FlagLoopback == 0 && a.RawFlags&unix.IFF_NOARP == 0,
	}
}

// holders returns the interfaces of this machine that have the address.
func holders(addr netip.Addr) ([]iface, error) {
	list, err := netlink.AddrList(nil, family(addr))
	if err != nil {
		return nil, fmt.Errorf("list the addresses of this machine: %w", err)
	}
	var on []iface
	for _, a := range list {
		if p, ok := prefixOf(a); !ok || p.Addr() != addr {
			continue
		}
		l, err := netlink.LinkByIndex(a.LinkIndex)
		if err != nil {
			if errors.As(err, new(netlink.LinkNotFoundError)) {
				continue // gone meanwhile, with its addresses
			}
			return nil, err
		}
		on = append(on, ifaceOf(l))
	}
	return on, nil
}

// chooseInterface returns the interface for a: the one that is named, or that
// has an address in the same network, of several the first.
func chooseInterface(a Address) (iface, error) {
	if a.Interface != "" {
		l, err := netlink.LinkByName(a.Interface)
		if err != nil {
			return iface{}, fmt.Errorf("interface %s: %w; ip link shows those that there are", a.Interface, err)
		}
		return upOrWhy(l)
	}
	list, err := netlink.AddrList(nil, family(a.Prefix.Addr()))
	if err != nil {
		return iface{}, fmt.Errorf("list the addresses of this machine: %w", err)
	}
	for _, x := range list {
		p, ok := prefixOf(x)
		if !ok || p.Addr() == a.Prefix.Addr() || p.Bits() == p.Addr().BitLen() || !p.Contains(a.Prefix.Addr()) {
			continue
		}
		l, err := netlink.LinkByIndex(x.LinkIndex)
		if err != nil {
			continue // gone meanwhile
		}
		return upOrWhy(l)
	}
	return iface{}, fmt.Errorf("no interface has an address in %s; name the interface beside the address", a.Prefix.Masked())
}

func upOrWhy(l netlink.Link) (iface, error) {
	i := ifaceOf(l)
	if l.Attrs().Flags&net.FlagUp == 0 {
		return i, fmt.Errorf("interface %s is down; ip link set %s up", i.Name, i.Name)
	}
	return i, nil
}

// addAddress adds p. The kernel's own duplicate detection for IPv6 would leave
// it unusable for a second, and ours is done. As a deprecated address it is
// answered on, but is not what new connections of this machine come from: they
// would break when it moves.
func (i iface) addAddress(p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
		a.ValidLft, a.PreferedLft = int(forever), 0
	}
	err := netlink.AddrAdd(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: i.Index, Name: i.Name}}, a)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// forever is a lifetime without an end. Source: INFINITY_LIFE_TIME of the
// kernel's addrconf.
const forever = uint32(0xffffffff)

// delAddress removes the address with whatever prefix it has. Removing the
// first IPv4 address of a network takes the others of that network along (unless
// promote_secondaries is set); they are added again.
func (i iface) delAddress(addr netip.Addr) error {
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: i.Index, Name: i.Name}}
	before, err := netlink.AddrList(link, family(addr))
	if err != nil {
		return err
	}
	for _, a := range before {
		if p, ok := prefixOf(a); !ok || p.Addr() != addr {
			continue
		}
		if err := netlink.AddrDel(link, &netlink.Addr{IPNet: a.IPNet}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return err
		}
	}
	after, err := netlink.AddrList(link, family(addr))
	if err != nil {
		return err
	}
	for _, a := range before {
		p, ok := prefixOf(a)
		if !ok || p.Addr() == addr || a.Flags&unix.IFA_F_SECONDARY == 0 || slices.ContainsFunc(after, a.Equal) {
			continue
		}
		a.Flags &^= unix.IFA_F_SECONDARY
		if err := netlink.AddrAdd(link, &a); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%s went with it and can't be added again: %w", p, err)
		}
	}
	return nil
}

func family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func prefixOf(a netlink.Addr) (netip.Prefix, bool) {
	if a.IPNet == nil {
		return netip.Prefix{}, false
	}
	ip, ok := netip.AddrFromSlice(a.IP)
	bits, _ := a.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), bits), ok
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
