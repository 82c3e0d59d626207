package vip

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
)

// The frames, as they are on an Ethernet.
//
//	ARP (RFC 826), 42 bytes                      NDP (RFC 4861)
//	 0  destination, source: 6 bytes each         0  destination, source
//	12  0x0806                                   12  0x86dd
//	14  1 Ethernet, 0x0800 IPv4, 6, 4            14  IPv6 header, 40 bytes, hop limit 255
//	20  1 request or 2 reply                     54  135 solicitation or 136 advertisement, 0, checksum
//	22  sender's MAC, sender's IP                58  flags: 0x20 override
//	32  target's MAC, target's IP                62  target, 16 bytes; 78 option 2, length 1, MAC
const (
	etherARP     = 0x0806
	etherIPv6    = 0x86dd
	arpRequest   = 1
	arpReply     = 2
	nextICMPv6   = 58
	ndSolicit    = 135
	ndAdvertise  = 136
	ndOverride   = 0x20
	ndTargetMAC  = 2 // option: target link-layer address
	arpFrame     = 42
	ndFrame      = 78 // without options
	hopLimit     = 255
	etherHeader  = 14
	ipv6Header   = 40
	ethernetAddr = 6
)

var (
	broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	noMAC     = make(net.HardwareAddr, ethernetAddr)
	allNodes  = netip.MustParseAddr("ff02::1")
)

// arp makes a broadcast ARP packet.
func arp(op uint16, mac net.HardwareAddr, sender, target netip.Addr, targetMAC net.HardwareAddr) []byte {
	b := make([]byte, 0, arpFrame)
	b = append(append(b, broadcast...), mac...)
	b = binary.BigEndian.AppendUint16(b, etherARP)
	b = append(b, 0, 1, 8, 0, ethernetAddr, 4)
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(append(b, mac...), sender.AsSlice()...)
	return append(append(b, targetMAC...), target.AsSlice()...)
}

// arpProbe asks who has addr, without claiming any address (RFC 5227, 2.1.1).
func arpProbe(mac net.HardwareAddr, addr netip.Addr) []byte {
	return arp(arpRequest, mac, netip.IPv4Unspecified(), addr, noMAC)
}

// arpAnnouncements tell that mac has addr, in both ways that neighbours listen to.
func arpAnnouncements(mac net.HardwareAddr, addr netip.Addr) [][]byte {
	return [][]byte{arp(arpRequest, mac, addr, addr, noMAC), arp(arpReply, mac, addr, addr, mac)}
}

// arpClaim returns the MAC by which an ARP packet claims addr: as the sender's
// address, or, while we probe, by a probe of somebody else. Our own are nil.
func arpClaim(frame []byte, own net.HardwareAddr, addr netip.Addr) net.HardwareAddr {
	if len(frame) < arpFrame || binary.BigEndian.Uint16(frame[12:]) != etherARP || !bytes.Equal(frame[14:20], []byte{0, 1, 8, 0, ethernetAddr, 4}) {
		return nil
	}
	mac := net.HardwareAddr(bytes.Clone(frame[22:28]))
	sender, target := netip.AddrFrom4([4]byte(frame[28:32])), netip.AddrFrom4([4]byte(frame[38:42]))
	isProbe := sender.IsUnspecified() && target == addr && binary.BigEndian.Uint16(frame[20:]) == arpRequest
	if bytes.Equal(mac, own) || sender != addr && !isProbe {
		return nil
	}
	return mac
}

// nd makes a neighbour discovery message.
func nd(kind, flags byte, mac net.HardwareAddr, from, to, target netip.Addr, option []byte) []byte {
	dst := to.As16()
	b := make([]byte, 0, ndFrame+len(option))
	b = append(append(b, 0x33, 0x33, dst[12], dst[13], dst[14], dst[15]), mac...) // RFC 2464, 7
	b = binary.BigEndian.AppendUint16(b, etherIPv6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(ndFrame-etherHeader-ipv6Header+len(option))) //nolint:gosec // 32 at most
	b = append(b, nextICMPv6, hopLimit)
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	b = append(b, kind, 0, 0, 0, flags, 0, 0, 0)
	b = append(append(b, target.AsSlice()...), option...)
	binary.BigEndian.PutUint16(b[56:], icmpv6Checksum(b))
	return b
}

// ndProbe asks who has addr, from the unspecified address (RFC 4862, 5.4.2).
func ndProbe(mac net.HardwareAddr, addr netip.Addr) []byte {
	group := [16]byte{0xff, 0x02, 11: 1, 12: 0xff}
	a := addr.As16()
	copy(group[13:], a[13:]) // the solicited-node address, RFC 4291, 2.7.1
	return nd(ndSolicit, 0, mac, netip.IPv6Unspecified(), netip.AddrFrom16(group), addr, nil)
}

// ndAnnouncement tells that mac has addr (RFC 4861, 7.2.6).
func ndAnnouncement(mac net.HardwareAddr, addr netip.Addr) []byte {
	return nd(ndAdvertise, ndOverride, mac, addr, allNodes, addr, append([]byte{ndTargetMAC, 1}, mac...))
}

// ndClaim is arpClaim for an advertisement.
func ndClaim(frame []byte, own net.HardwareAddr, addr netip.Addr) net.HardwareAddr {
	if len(frame) < ndFrame || binary.BigEndian.Uint16(frame[12:]) != etherIPv6 || frame[20] != nextICMPv6 || frame[21] != hopLimit {
		return nil
	}
	mac := net.HardwareAddr(bytes.Clone(frame[6:12]))
	if frame[54] != ndAdvertise || netip.AddrFrom16([16]byte(frame[62:78])) != addr || bytes.Equal(mac, own) {
		return nil
	}
	if o := frame[ndFrame:]; len(o) >= 2+ethernetAddr && o[0] == ndTargetMAC && o[1] == 1 {
		mac = net.HardwareAddr(bytes.Clone(o[2 : 2+ethernetAddr]))
	}
	return mac
}

// icmpv6Checksum is that of RFC 4443, 2.3, over the pseudo header and the
// message, whose own field is still zero.
func icmpv6Checksum(frame []byte) uint16 {
	message := frame[etherHeader+ipv6Header:]
	sum := uint32(len(message)) + nextICMPv6 //nolint:gosec // below 100
	add := func(b []byte) {
		for ; len(b) >= 2; b = b[2:] {
			sum += uint32(binary.BigEndian.Uint16(b))
		}
	}
	add(frame[22:54]) // both addresses
	add(message)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum) //nolint:gosec // folded
}
