package witness

import (
	"net"
	"net/netip"
	"sync"
)

// limited accepts a bounded number of connections at a time, in all and from one
// host.
type limited struct {
	net.Listener
	mu    sync.Mutex
	all   int
	hosts map[netip.Addr]int
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		host := hostOf(c)
		if l.take(host) {
			return &counted{Conn: c, release: sync.OnceFunc(func() { l.give(host) })}, nil
		}
		c.Close()
	}
}

func hostOf(c net.Conn) netip.Addr {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

func (l *limited) take(host netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= maxConns || l.hosts[host] >= maxHostConns {
		return false
	}
	l.all++
	l.hosts[host]++
	return true
}

func (l *limited) give(host netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.hosts[host]--; l.hosts[host] == 0 {
		delete(l.hosts, host)
	}
}

// counted gives its place back when it is closed.
type counted struct {
	net.Conn
	release func()
}

func (c *counted) Close() error {
	c.release()
	return c.Conn.Close()
}
