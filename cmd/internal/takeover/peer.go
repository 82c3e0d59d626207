package takeover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/pollux-project/pollux/conf"
)

// peerTimeout bounds the look at the peer.
const peerTimeout = 3 * time.Second

// Peer says whether the peer waits for a connection. Nothing is sent: DRBD listens
// only while it looks for its peer, so a node that is StandAlone, after a split
// brain for instance, refuses. The peer need not be there.
func (m Machine) Peer(ctx context.Context, r *conf.Resource) Finding {
	f := Finding{Verdict: Note, About: "peer", Text: fmt.Sprintf("%s at %s", r.Peer.Name, r.Peer.Addr)}
	d := net.Dialer{Timeout: peerTimeout, LocalAddr: &net.TCPAddr{IP: r.Local.Addr.Addr().AsSlice()}}
	conn, err := d.DialContext(ctx, "tcp", r.Peer.Addr.String())
	switch {
	case err == nil:
		conn.Close()
		f.Verdict, f.Text = OK, f.Text+" waits for a connection"
	case errors.Is(err, syscall.ECONNREFUSED):
		f.Text += " does not wait for a connection: it is down there, or StandAlone; they will not connect until that is changed"
		f.Do = []string{fmt.Sprintf("on %s: drbdadm cstate %s; if StandAlone, read its log for the reason, then drbdadm connect %s", r.Peer.Name, r.Name, r.Name)}
	default:
		f.Text += fmt.Sprintf(" can't be reached (%v): it gets what it misses when it is back", short(err))
	}
	return f
}

func short(err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return errors.New("no answer")
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
