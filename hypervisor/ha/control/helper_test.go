package control

import (
	"crypto/tls"
	"encoding/json"
	"net"
)

// helloFrom greets as a node with this identity would, and returns the answer.
func helloFrom(nc net.Conn, id *Identity) (frameKind, []byte, error) {
	tc := tls.Client(nc, id.config(alpnNode))
	if err := tc.Handshake(); err != nil {
		return 0, nil, err
	}
	text, err := json.Marshal(hello{Min: 1, Max: 1, Node: id.Node, Session: "s"})
	if err != nil {
		return 0, nil, err
	}
	if _, err := tc.Write(appendFrame(nil, frameHello, text)); err != nil {
		return 0, nil, err
	}
	for {
		kind, body, err := readFrame(tc, nil, maxFrame)
		if err != nil || kind == frameBye {
			return kind, body, err
		}
	}
}
