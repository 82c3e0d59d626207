package drbd

import "fmt"

// A ProtocolError says that the peer broke the protocol: which packet, which
// field, what stood there and what would have been right. The caller drops the
// connection and keeps serving; the number of bytes that follow in the stream
// is no longer known.
type ProtocolError struct {
	Packet Command // NoCommand: the header itself could not be read
	Field  string
	Got    any
	Want   any
}

func (e *ProtocolError) Error() string {
	return fmt.Sprintf("%v: %s is %v, want %v", e.Packet, e.Field, e.Got, e.Want)
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
