package engine

import (
	"crypto/rand"
	"fmt"
	"io"
	"time"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// greetPeer agrees on version and features and authenticates: the last part
// that is done in lock-step.
func (e *Engine) greetPeer(p *pair) (*link, error) {
	deadline := time.Now().Add(e.handshakeTime())
	p.data.SetDeadline(deadline) //nolint:errcheck // I/O fails if this did
	mine := drbd.Features{
		Min: drbd.MinVersion, Max: drbd.MaxVersion,
		Flags: drbd.FeatureTrim | drbd.FeatureThinResync | drbd.FeatureWSame | drbd.FeatureWZeroes | drbd.FeaturePollux | drbd.FeatureTerm,
	}
	if e.net.Load().DataIntegrityAlg != "" {
		mine.Flags &^= drbd.FeatureWZeroes // drbd.ko expects a digest in P_ZEROES, which none sends (10.3 no. 3)
	}
	body := mine.Append(nil)
	if _, err := p.data.Write(append(drbd.AppendHeader80(nil, drbd.CmdConnectionFeatures, len(body)), body...)); err != nil {
		return nil, fmt.Errorf("send features: %w", err)
	}
	var head [drbd.HeaderSize80]byte
	if _, err := io.ReadFull(p.data, head[:]); err != nil {
		return nil, fmt.Errorf("await the peer's features: %w", err)
	}
	h, err := drbd.DecodeHeader80(head[:])
	if err != nil {
		return nil, err
	}
	switch {
	case h.Command != drbd.CmdConnectionFeatures:
		return nil, fmt.Errorf("%w: %w", errGiveUp, unexpected(h, drbd.CmdConnectionFeatures))
	case int(h.Length) != len(body):
		return nil, fmt.Errorf("%w: %w", errGiveUp, &drbd.ProtocolError{Packet: h.Command, Field: "length", Got: h.Length, Want: len(body)})
	}
	if _, err := io.ReadFull(p.data, body); err != nil {
		return nil, fmt.Errorf("await the peer's features: %w", err)
	}
	var peer drbd.Features
	if err := peer.Decode(body); err != nil {
		return nil, err
	}
	version, features, err := drbd.Agree(mine, peer)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errGiveUp, err)
	}
	if err := e.authenticate(p.data); err != nil {
		return nil, err
	}
	return e.newLink(p.data, p.meta, replication.Link{Version: version, Features: features, ResolveConflicts: p.rc})
}

// authenticate is drbd84-protocol, 1.6, if cram-hmac-alg is configured.
func (e *Engine) authenticate(c *sock) error {
	n := e.net.Load()
	if n.CramHMACAlg == "" {
		return nil
	}
	var mine [drbd.AuthChallengeSize]byte
	if _, err := rand.Read(mine[:]); err != nil {
		return err
	}
	if err := send100(c, drbd.CmdAuthChallenge, mine[:]); err != nil {
		return fmt.Errorf("send challenge: %w", err)
	}
	theirs, err := expect100(c, drbd.CmdAuthChallenge)
	if err != nil {
		return err
	}
	if drbd.AuthReflected(mine[:], theirs) {
		return fmt.Errorf("%w: %w", errGiveUp, &drbd.ProtocolError{
			Packet: drbd.CmdAuthChallenge, Field: "challenge", Got: "this node's own", Want: "one of the peer's",
		})
	}
	answer, err := drbd.AuthResponse(n.CramHMACAlg, n.SharedSecret, theirs)
	if err != nil {
		return fmt.Errorf("%w: %w", errGiveUp, err)
	}
	if err := send100(c, drbd.CmdAuthResponse, answer); err != nil {
		return fmt.Errorf("send response: %w", err)
	}
	got, err := expect100(c, drbd.CmdAuthResponse)
	if err != nil {
		return err
	}
	switch res, err := drbd.CheckAuthResponse(n.CramHMACAlg, n.SharedSecret, mine[:], got); {
	case err != nil:
		return fmt.Errorf("%w: %w", errGiveUp, err)
	case res == drbd.AuthWrongSize: // a kernel tries again, so this node must be there
		return fmt.Errorf("%w: the peer has another cram-hmac-alg: make both configurations alike", &drbd.ProtocolError{
			Packet: drbd.CmdAuthResponse, Field: "length", Got: len(got), Want: len(answer),
		})
	case res != drbd.AuthOK:
		return fmt.Errorf("%w: the peer has another shared-secret or cram-hmac-alg: make both configurations alike, then run connect on both nodes", errGiveUp)
	}
	return nil
}

// unexpected is a packet in the place of another one of the greeting.
func unexpected(h drbd.Header, want drbd.Command) error {
	return &drbd.ProtocolError{Packet: h.Command, Field: "command", Got: h.Command, Want: want}
}

func send100(c *sock, cmd drbd.Command, body []byte) error {
	b := drbd.AppendHeader100(nil, drbd.Header{Command: cmd, Length: uint32(len(body))})
	_, err := c.Write(append(b, body...))
	return err
}

// expect100 reads one packet of the authentication.
func expect100(c *sock, want drbd.Command) ([]byte, error) {
	var head [drbd.HeaderSize100]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return nil, fmt.Errorf("await %v: %w: the peer may have another secret, or none", want, err)
	}
	h, err := drbd.DecodeHeader100(head[:])
	if err != nil {
		return nil, err
	}
	if h.Command != want {
		return nil, fmt.Errorf("%w: %w: cram-hmac-alg must be configured on both nodes", errGiveUp, unexpected(h, want))
	}
	if err := drbd.CheckLength(h, true, drbd.DataSocket); err != nil {
		return nil, fmt.Errorf("%w: %w", errGiveUp, err)
	}
	body := make([]byte, h.Length)
	_, err = io.ReadFull(c, body)
	return body, err
}
