package vip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// maxFrame holds every frame that we look at, in bytes; longer ones are cut.
const maxFrame = 1518

// open returns a packet socket on the interface for one kind of frame. Only
// what comes after is received.
func (i iface) open(ether uint16) (*os.File, error) {
	protocol := ether<<8 | ether>>8 // network byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open a packet socket (CAP_NET_RAW is needed): %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: i.Index}); err != nil {
		_ = unix.Close(fd) // never used
		return nil, fmt.Errorf("bind a packet socket to %s: %w", i.Name, err)
	}
	return os.NewFile(uintptr(fd), "packet:"+i.Name), nil
}

// onlyAdvertisements keeps all other IPv6 from filling the socket's buffer. It
// is a program of classic BPF: byte 20 is ICMPv6, byte 54 an advertisement.
var onlyAdvertisements = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 20},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: nextICMPv6, Jf: 3},
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 54},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: ndAdvertise, Jf: 1},
	{Code: unix.BPF_RET | unix.BPF_K, K: maxFrame},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
}

func filter(s *os.File, program []unix.SockFilter) error {
	conn, err := s.SyscallConn()
	if err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]} //nolint:gosec // six
	set := conn.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog)
	})
	return errors.Join(set, err)
}

// whoHas asks the network for the owner of addr; nil if nobody answers within
// the time of the probes. An interface without neighbours has none to ask.
func (i iface) whoHas(ctx context.Context, addr netip.Addr) (net.HardwareAddr, error) {
	if !i.isSpeak {
		return nil, nil
	}
	ether, probe, claim := uint16(etherARP), arpProbe(i.MAC, addr), arpClaim
	if addr.Is6() {
		ether, probe, claim = etherIPv6, ndProbe(i.MAC, addr), ndClaim
	}
	s, err := i.open(ether)
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Close() }() // a packet socket has nothing to flush
	if addr.Is6() {
		if err := filter(s, onlyAdvertisements); err != nil {
			return nil, err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = s.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	frame := make([]byte, maxFrame)
	for range probes {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if _, err := s.Write(probe); err != nil {
			return nil, err
		}
		if err := s.SetReadDeadline(time.Now().Add(probeEvery)); err != nil {
			return nil, err
		}
		for {
			n, err := s.Read(frame)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return nil, err
			}
			if mac := claim(frame[:n], i.MAC, addr); mac != nil {
				return mac, nil
			}
		}
	}
	return nil, ctx.Err()
}

// announce tells the neighbours once.
func (i iface) announce(addr netip.Addr) error {
	if !i.isSpeak {
		return nil
	}
	ether, frames := uint16(etherARP), arpAnnouncements(i.MAC, addr)
	if addr.Is6() {
		ether, frames = etherIPv6, [][]byte{ndAnnouncement(i.MAC, addr)}
	}
	s, err := i.open(ether)
	if err != nil {
		return err
	}
	for _, f := range frames {
		if _, err := s.Write(f); err != nil {
			return errors.Join(err, s.Close())
		}
	}
	return s.Close()
}
