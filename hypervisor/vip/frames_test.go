package vip

import (
	"bytes"
	"encoding/hex"
	"net"
	"net/netip"
	"testing"
)

var (
	macA = net.HardwareAddr{2, 0, 0, 0, 0, 0x0a}
	macB = net.HardwareAddr{2, 0, 0, 0, 0, 0x0b}
	ip4  = netip.MustParseAddr("192.0.2.10")
	ip6  = netip.MustParseAddr("2001:db8::10")
)

// The frames, byte by byte, as the RFCs have them.
func TestFrames(t *testing.T) {
	for _, tt := range []struct {
		name  string
		frame []byte
		want  string
	}{
		{
			"ARP probe", arpProbe(macA, ip4),
			"ffffffffffff" + "02000000000a" + "0806" + "0001080006040001" + "02000000000a" + "00000000" + "000000000000" + "c000020a",
		},
		{
			"gratuitous ARP", arpAnnouncements(macA, ip4)[0],
			"ffffffffffff" + "02000000000a" + "0806" + "0001080006040001" + "02000000000a" + "c000020a" + "000000000000" + "c000020a",
		},
		{
			"gratuitous reply", arpAnnouncements(macA, ip4)[1],
			"ffffffffffff" + "02000000000a" + "0806" + "0001080006040002" + "02000000000a" + "c000020a" + "02000000000a" + "c000020a",
		},
		{
			"solicitation", ndProbe(macA, ip6),
			"3333ff000010" + "02000000000a" + "86dd" + "60000000" + "0018" + "3a" + "ff" +
				"00000000000000000000000000000000" + "ff0200000000000000000001ff000010" +
				"8700" + "4c6f" + "00000000" + "20010db8000000000000000000000010",
		},
		{
			"advertisement", ndAnnouncement(macA, ip6),
			"333300000001" + "02000000000a" + "86dd" + "60000000" + "0020" + "3a" + "ff" +
				"20010db8000000000000000000000010" + "ff020000000000000000000000000001" +
				"8800" + "ffff" + "20000000" + "20010db8000000000000000000000010" + "0201" + "02000000000a",
		},
	} {
		want, err := hex.DecodeString(tt.want)
		if err != nil {
			t.Fatal(err)
		}
		if tt.frame[12] == 0x86 { // the checksum is checked below
			copy(want[56:58], tt.frame[56:58])
			zeroed := bytes.Clone(tt.frame)
			if icmpv6Checksum(zeroed) != 0 {
				t.Errorf("%s: the sum over message and checksum is not 0xffff", tt.name)
			}
		}
		if !bytes.Equal(tt.frame, want) {
			t.Errorf("%s is\n%x, want\n%x", tt.name, tt.frame, want)
		}
	}
}

func TestClaims(t *testing.T) {
	other := netip.MustParseAddr("192.0.2.11")
	for _, tt := range []struct {
		name  string
		frame []byte
		want  net.HardwareAddr
	}{
		{"a reply", arp(arpReply, macB, ip4, netip.IPv4Unspecified(), macA), macB},
		{"its announcement", arpAnnouncements(macB, ip4)[0], macB},
		{"its question about somebody else", arp(arpRequest, macB, ip4, other, noMAC), macB},
		{"another one's probe", arpProbe(macB, ip4), macB},
		{"another one's question", arp(arpRequest, macB, other, ip4, noMAC), nil},
		{"our own probe", arpProbe(macA, ip4), nil},
		{"another address", arpAnnouncements(macB, other)[0], nil},
		{"half of one", arpAnnouncements(macB, ip4)[0][:41], nil},
		{"nothing", nil, nil},
	} {
		if got := arpClaim(tt.frame, macA, ip4); !bytes.Equal(got, tt.want) {
			t.Errorf("ARP, %s: %v, want %v", tt.name, got, tt.want)
		}
	}
	for _, tt := range []struct {
		name  string
		frame []byte
		want  net.HardwareAddr
	}{
		{"an advertisement", ndAnnouncement(macB, ip6), macB},
		{"one without an option", nd(ndAdvertise, 0, macB, ip6, allNodes, ip6, nil), macB},
		{"our own", ndAnnouncement(macA, ip6), nil},
		{"another address", ndAnnouncement(macB, netip.MustParseAddr("2001:db8::11")), nil},
		{"a solicitation", ndProbe(macB, ip6), nil},
		{"half of one", ndAnnouncement(macB, ip6)[:77], nil},
	} {
		if got := ndClaim(tt.frame, macA, ip6); !bytes.Equal(got, tt.want) {
			t.Errorf("NDP, %s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// Whatever the network sends: a claim names somebody else's six bytes, or nobody.
func FuzzClaims(f *testing.F) {
	f.Add(arpAnnouncements(macB, ip4)[0])
	f.Add(arpProbe(macB, ip4))
	f.Add(ndAnnouncement(macB, ip6))
	f.Add(ndProbe(macB, ip6))
	f.Fuzz(func(t *testing.T, frame []byte) {
		for _, mac := range []net.HardwareAddr{arpClaim(frame, macA, ip4), ndClaim(frame, macA, ip6)} {
			if mac != nil && (len(mac) != ethernetAddr || bytes.Equal(mac, noMAC) && !bytes.Contains(frame, noMAC)) {
				t.Errorf("%x is a claim of %v", frame, mac)
			}
		}
	})
}
