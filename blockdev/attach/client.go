package attach

import (
	"fmt"
	"io"
	"net"

	"github.com/pollux-project/pollux/protocol/nbd"
)

// maxAnswer bounds the data of a server's answer, in bytes.
const maxAnswer = 64 << 10

// negotiate does the client's part of the handshake on a fresh connection and
// leaves it in the transmission phase. It reads nothing beyond: the kernel
// takes the socket over.
func negotiate(c net.Conn, export string) (nbd.ExportInfo, error) {
	info := nbd.ExportInfo{}
	buf := make([]byte, nbd.OptionReplyHeaderSize)
	if _, err := io.ReadFull(c, buf[:nbd.GreetingSize]); err != nil {
		return info, err
	}
	flags, err := nbd.DecodeGreeting(buf)
	if err != nil {
		return info, err
	}
	flags &= nbd.FixedNewstyle | nbd.NoZeroes
	out := nbd.AppendClientFlags(nil, flags)
	out = nbd.AppendOption(out, nbd.OptGo, nbd.InfoRequest{Name: export, Types: []nbd.InfoType{nbd.InfoBlockSize}}.Append(nil))
	if _, err := c.Write(out); err != nil {
		return info, err
	}
	for {
		if _, err := io.ReadFull(c, buf); err != nil {
			return info, err
		}
		h, err := nbd.DecodeOptionReplyHeader(buf)
		switch {
		case err != nil:
			return info, err
		case h.Option != nbd.OptGo || h.Length > maxAnswer:
			return info, &nbd.ProtocolError{Where: "option reply", Field: "length", Got: uint64(h.Length), Want: "an answer to NBD_OPT_GO"}
		}
		data := make([]byte, h.Length)
		if _, err := io.ReadFull(c, data); err != nil {
			return info, err
		}
		switch {
		case h.Type == nbd.RepAck:
			return info, nil
		case h.Type.IsError():
			return info, fmt.Errorf("the export can't be opened: %w", &nbd.OptionError{Type: h.Type, Text: string(data)})
		case h.Type == nbd.RepInfo:
			if err := info.Add(data); err != nil {
				return info, err
			}
		}
	}
}
