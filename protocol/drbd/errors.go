package drbd

import (
	"errors"
	"fmt"
)

// A ProtocolError says that the peer broke the protocol: which packet, which
// field, what would have been right and what stood there, by DRBD's names. The
// caller drops the connection and keeps serving; the number of bytes that follow
// in the stream is no longer known.
type ProtocolError struct {
	Packet Command // NoCommand: the header itself could not be read
	Field  string
	Got    any
	Want   any
}

// Named puts the packet's name into an error that a layout shared by several
// packets made; other errors it returns as they are.
func Named(err error, cmd Command) error {
	var pe *ProtocolError
	if errors.As(err, &pe) {
		pe.Packet = cmd
	}
	return err
}

func (e *ProtocolError) Error() string {
	return fmt.Sprintf("%v: %s: wanted %v, got %v", e.Packet, e.Field, e.Want, e.Got)
}

// A VersionError says that two nodes have no protocol version in common. The
// caller gives up: a retry cannot help until one side's software changes.
type VersionError struct {
	Mine, Peer Features
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("no common protocol version: this node speaks %d..%d, the peer %d..%d",
		e.Mine.Min, e.Mine.Max, e.Peer.Min, e.Peer.Max)
}
