package nbd

import (
	"fmt"
	"io"
)

// maxAnswer bounds the data of a server's answer, in bytes.
const maxAnswer = 64 << 10

// Negotiate does the client's part of the handshake on a fresh connection and
// leaves it in the transmission phase, with simple replies. It reads nothing
// beyond: whoever takes the connection over finds it at the first reply. The
// error is a *ProtocolError, it wraps an *OptionError if the server refused,
// or it is c's.
func Negotiate(c io.ReadWriter, export string) (ExportInfo, error) {
	info := ExportInfo{}
	buf := make([]byte, OptionReplyHeaderSize)
	if _, err := io.ReadFull(c, buf[:GreetingSize]); err != nil {
		return info, err
	}
	flags, err := DecodeGreeting(buf)
	if err != nil {
		return info, err
	}
	flags &= FixedNewstyle | NoZeroes
	out := AppendClientFlags(nil, flags)
	out = AppendOption(out, OptGo, InfoRequest{Name: export, Types: []InfoType{InfoBlockSize}}.Append(nil))
	if _, err := c.Write(out); err != nil {
		return info, err
	}
	for {
		if _, err := io.ReadFull(c, buf); err != nil {
			return info, err
		}
		h, err := DecodeOptionReplyHeader(buf)
		switch {
		case err != nil:
			return info, err
		case h.Option != OptGo || h.Length > maxAnswer:
			return info, &ProtocolError{Where: "option reply", Field: "length", Got: uint64(h.Length), Want: "an answer to NBD_OPT_GO"}
		}
		data := make([]byte, h.Length)
		if _, err := io.ReadFull(c, data); err != nil {
			return info, err
		}
		switch {
		case h.Type == RepAck:
			return info, nil
		case h.Type.IsError():
			return info, fmt.Errorf("the export can't be opened: %w", &OptionError{Type: h.Type, Text: string(data)})
		case h.Type == RepInfo:
			if err := info.Add(data); err != nil {
				return info, err
			}
		}
	}
}
