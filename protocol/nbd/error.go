package nbd

import "fmt"

// A ProtocolError says that the other side has broken the protocol. The
// connection can't go on.
type ProtocolError struct {
	Where string // the message, e.g. "request"
	Field string
	Got   uint64
	Want  string
}

func (e *ProtocolError) Error() string {
	return fmt.Sprintf("NBD %s: %s is %#x, expected %s", e.Where, e.Field, e.Got, e.Want)
}

// An OptionError says why an option can't be done; it is answered, and the
// handshake goes on with the next option.
type OptionError struct {
	Type ReplyType
	Text string // for people, sent to the client
}

func (e *OptionError) Error() string { return fmt.Sprintf("%v: %s", e.Type, e.Text) }
