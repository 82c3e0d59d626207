package nbd

import "fmt"

// A Request is the head of a command; the payload of a CmdWrite follows it.
// Offset and Length are the client's word: check them with InRange.
type Request struct {
	Flags   CommandFlags
	Command Command
	Cookie  uint64 // opaque, not necessarily unique
	Offset  uint64 // bytes
	Length  uint32 // bytes
}

// Append appends the request's head, RequestSize bytes.
func (r Request) Append(dst []byte) []byte {
	dst = be.AppendUint32(dst, MagicRequest)
	dst = be.AppendUint16(dst, uint16(r.Flags))
	dst = be.AppendUint16(dst, uint16(r.Command))
	dst = be.AppendUint64(dst, r.Cookie)
	dst = be.AppendUint64(dst, r.Offset)
	return be.AppendUint32(dst, r.Length)
}

// DecodeRequest decodes RequestSize bytes. The error is a *ProtocolError:
// after a wrong magic there is no way to find the next request.
func DecodeRequest(b []byte) (Request, error) {
	_ = b[RequestSize-1]
	if m := be.Uint32(b); m != MagicRequest {
		return Request{}, &ProtocolError{"request", "magic", uint64(m), fmt.Sprintf("%#x", MagicRequest)}
	}
	return Request{
		Flags:   CommandFlags(be.Uint16(b[4:])),
		Command: Command(be.Uint16(b[6:])),
		Cookie:  be.Uint64(b[8:]),
		Offset:  be.Uint64(b[16:]),
		Length:  be.Uint32(b[24:]),
	}, nil
}

// InRange reports whether [Offset, Offset+Length) lies inside size bytes. No
// value of Offset makes it overflow.
func (r Request) InRange(size uint64) bool {
	return r.Offset <= size && uint64(r.Length) <= size-r.Offset
}
