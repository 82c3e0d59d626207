package control

import (
	"crypto/tls"
	"net"
	"testing"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/conf"
)

// What a process that was killed has sent last may come late, over a link that was
// broken, when its successor has greeted already over another one. It must not pass
// for the successor's, whose versions begin anew.
func TestLateBeatOfAnEarlierProcess(t *testing.T) {
	var got []Beat
	ch := &Channel{
		cfg:   Config{now: bootTime, Log: zerolog.Nop(), OnBeat: func(b Beat) { got = append(got, b) }},
		id:    &Identity{Node: "b"},
		conns: map[*conn]bool{}, cluster: &conf.Cluster{},
	}
	p := &peer{ch: ch, name: "a", links: []*link{{n: 0}, {n: 1}}}
	ch.peers = map[string]*peer{"a": p}
	connect := func(n int, session string) *conn {
		t.Helper()
		near, far := net.Pipe()
		t.Cleanup(func() {
			near.Close()
			far.Close()
		})
		c := &conn{
			ch: ch, nc: tls.Client(near, &tls.Config{MinVersion: tls.VersionTLS13}), expect: "a", n: n, session: session,
			out: make(chan []byte, maxOutFrames), beatDue: make(chan struct{}, 1), closed: make(chan struct{}),
		}
		if err := ch.attach(c, hello{Node: "a", Session: session}); err != nil {
			t.Fatal(err)
		}
		return c
	}
	beat := func(c *conn, version uint64, payload string) error {
		h := beatHeader{seq: version, stamp: 1, version: version, hasPayload: true}
		return c.receivedBeat(append(h.append(nil), payload...))
	}
	connect(0, "old")
	late := connect(1, "old")
	if err := beat(late, 4000, "running"); err != nil {
		t.Fatal(err)
	}
	now := connect(0, "new")
	if err := beat(late, 4001, "running"); err == nil {
		t.Error("a heartbeat of an earlier process is taken")
	}
	if err := beat(now, 1, "stopped"); err != nil {
		t.Fatal(err)
	}
	if b := got[len(got)-1]; b.Session != "new" || string(b.Payload) != "stopped" || !b.Changed {
		t.Errorf("its successor says %q, by session %s", b.Payload, b.Session)
	}
}
