// Package vip gives this machine addresses that follow a service from node to
// node, and takes them away.
//
// Before an address is added the network is asked whether somebody has it
// already (ARP probes of RFC 5227, neighbour solicitations of RFC 4861): two
// machines with one address serve nobody. Right after, and again for a while,
// the neighbours are told that it has moved: gratuitous ARP, unsolicited
// neighbour advertisements. All that goes over packet sockets on the interface,
// so the program needs CAP_NET_ADMIN and CAP_NET_RAW.
//
// What was added is written down in a directory that a reboot clears, before the
// kernel is told. So a restarted program finds its own addresses, also after a
// crash between the two, and never removes one that somebody else has added.
//
//	m, err := vip.New(vip.Config{Dir: "/run/pollux/vip"})
//	…
//	err = m.Add(ctx, vip.Address{Prefix: netip.MustParsePrefix("192.0.2.10/24")})
//	var used *vip.InUseError
//	if errors.As(err, &used) { … used.MAC … }
//	…
//	err = m.Remove(ctx, netip.MustParseAddr("192.0.2.10"))
package vip
