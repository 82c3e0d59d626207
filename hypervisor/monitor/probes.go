package monitor

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// maxAnswer is how much of an answer is looked at, in bytes.
const maxAnswer = 64 << 10

// connect opens a TCP connection, sends the request if there is one, and reads
// until receive matches if there is one.
func (p *Probe) connect(ctx context.Context) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", p.spec.Address)
	if err != nil {
		return plain(err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // the past: wakes reader and writer
	defer stop()
	if p.spec.Request != "" {
		if _, err := io.WriteString(conn, p.spec.Request); err != nil {
			return fmt.Errorf("send the request: %w", plain(err))
		}
	}
	if p.receive == nil {
		return nil
	}
	answer := make([]byte, 0, 512)
	for len(answer) < maxAnswer {
		if len(answer) == cap(answer) {
			answer = append(answer, 0)[:len(answer)]
		}
		n, err := conn.Read(answer[len(answer):cap(answer)])
		answer = answer[:len(answer)+n]
		if p.receive.Match(answer) {
			return nil
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the answer: %w", plain(err))
		}
	}
	return p.noMatch(answer)
}

// client makes one connection for each request: whether new ones are served is
// the question. A redirection is an answer.
var client = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: maxAnswer},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func (p *Probe) http(ctx context.Context) error {
	path := p.spec.Request
	if path == "" {
		path = "/"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.spec.Address+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "pollux-monitor")
	resp, err := client.Do(req)
	if err != nil {
		return plain(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("GET %s: status %s", path, resp.Status)
	}
	if p.receive == nil {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if p.receive.Match(body) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("GET %s: read the body: %w", path, plain(err))
	}
	return fmt.Errorf("GET %s: %w", path, p.noMatch(body))
}

func (p *Probe) noMatch(answer []byte) error {
	const shown = 80 // bytes
	text := strconv.Quote(string(answer[:min(len(answer), shown)]))
	if len(answer) > shown {
		text += "…"
	}
	return fmt.Errorf("%w %q: it begins with %s", errNoMatch, p.spec.Receive, text)
}

// plain cuts off what only repeats the request: *url.Error and *net.OpError
// name address and operation again.
func plain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		return op.Err
	}
	var u interface {
		error
		Unwrap() error
		Timeout() bool
	}
	if errors.As(err, &u) && u.Unwrap() != nil {
		return u.Unwrap()
	}
	return err
}

// ICMP. Source: RFC 792 and RFC 4443: type, code, checksum, identifier,
// sequence number; then what is echoed.
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
	echoHeader               = 8
	echoPayload              = 16
)

// ping sends one ICMP echo request and waits for its echo. The kernel's ping
// sockets need no privilege but may be switched off (net.ipv4.ping_group_range);
// then a raw one is tried.
func (p *Probe) ping(ctx context.Context) error {
	addr, err := netip.ParseAddr(p.spec.Address)
	if err != nil {
		return err
	}
	addr = addr.Unmap()
	s, isRaw, err := openICMP(addr)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }() // nothing was written that could be lost
	stop := context.AfterFunc(ctx, func() { _ = s.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	request, reply := echo(addr)
	if _, err := s.Write(request); err != nil {
		return plain(err)
	}
	buf := make([]byte, 1500)
	for {
		n, err := s.Read(buf)
		if err != nil {
			var path *os.PathError
			if errors.As(err, &path) {
				err = path.Err // "read ping:…" says nothing
			}
			return err
		}
		if isReply(buf[:n], reply, isRaw && addr.Is4()) {
			return nil
		}
	}
}

// echo makes a request, and what its reply has as type and payload. The kernel
// fills in the identifier of ping sockets and the checksum of ICMPv6.
func echo(addr netip.Addr) (request, reply []byte) {
	request = make([]byte, echoHeader+echoPayload)
	reply = make([]byte, 1+echoPayload)
	request[0], reply[0] = echoRequest4, echoReply4
	if addr.Is6() {
		request[0], reply[0] = echoRequest6, echoReply6
	}
	binary.BigEndian.PutUint64(request[echoHeader:], rand.Uint64())
	binary.BigEndian.PutUint64(request[echoHeader+8:], rand.Uint64())
	copy(reply[1:], request[echoHeader:])
	if addr.Is4() {
		sum := uint32(0)
		for i := 0; i < len(request); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(request[i:]))
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		binary.BigEndian.PutUint16(request[2:], ^uint16(sum)) //nolint:gosec // folded
	}
	return request, reply
}

// isReply tells whether a packet is our reply; hasIP says that an IPv4 header
// precedes it, as raw sockets have it.
func isReply(packet, reply []byte, hasIP bool) bool {
	if hasIP {
		if len(packet) < 20 || len(packet) < 4*int(packet[0]&15) {
			return false
		}
		packet = packet[4*int(packet[0]&15):]
	}
	return len(packet) >= echoHeader+echoPayload && packet[0] == reply[0] && packet[1] == 0 && bytes.Equal(packet[echoHeader:echoHeader+echoPayload], reply[1:])
}

func openICMP(addr netip.Addr) (s *os.File, isRaw bool, err error) {
	domain, protocol := unix.AF_INET, unix.IPPROTO_ICMP
	var to unix.Sockaddr
	if addr.Is6() {
		domain, protocol = unix.AF_INET6, unix.IPPROTO_ICMPV6
		to = &unix.SockaddrInet6{Addr: addr.As16(), ZoneId: zoneID(addr.Zone())}
	} else {
		to = &unix.SockaddrInet4{Addr: addr.As4()}
	}
	const flags = unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|flags, protocol)
	if err != nil {
		isRaw = true
		if fd, err = unix.Socket(domain, unix.SOCK_RAW|flags, protocol); err != nil {
			return nil, false, fmt.Errorf("open an ICMP socket (net.ipv4.ping_group_range or CAP_NET_RAW is needed): %w", err)
		}
	}
	if err := unix.Connect(fd, to); err != nil {
		_ = unix.Close(fd) // never used
		return nil, false, err
	}
	return os.NewFile(uintptr(fd), "ping:"+addr.String()), isRaw, nil
}

func zoneID(zone string) uint32 {
	if i, err := net.InterfaceByName(zone); zone != "" && err == nil {
		return uint32(i.Index) //nolint:gosec // positive
	}
	return 0
}
