package nbd

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"
)

var be = binary.BigEndian

// AppendGreeting appends the server's first message.
func AppendGreeting(dst []byte, flags HandshakeFlags) []byte {
	dst = be.AppendUint64(dst, MagicServer)
	dst = be.AppendUint64(dst, MagicOption)
	return be.AppendUint16(dst, uint16(flags))
}

// DecodeGreeting decodes the server's first message, GreetingSize bytes.
func DecodeGreeting(b []byte) (HandshakeFlags, error) {
	if m := be.Uint64(b); m != MagicServer {
		return 0, &ProtocolError{"greeting", "magic", m, "NBDMAGIC"}
	}
	if m := be.Uint64(b[8:]); m != MagicOption {
		return 0, &ProtocolError{"greeting", "style", m, "IHAVEOPT (a newstyle server)"}
	}
	return HandshakeFlags(be.Uint16(b[16:])), nil
}

// AppendClientFlags appends the client's answer to the greeting.
func AppendClientFlags(dst []byte, flags HandshakeFlags) []byte {
	return be.AppendUint32(dst, uint32(flags))
}

// DecodeClientFlags decodes the client's answer to a greeting that offered
// the given flags, ClientFlagsSize bytes. A flag that was not offered ends
// the connection.
func DecodeClientFlags(b []byte, offered HandshakeFlags) (HandshakeFlags, error) {
	f := be.Uint32(b)
	if f&^uint32(offered) != 0 {
		return 0, &ProtocolError{"client flags", "flags", uint64(f), fmt.Sprintf("no others than %#x", uint16(offered))}
	}
	return HandshakeFlags(f), nil
}

// An OptionHeader precedes an option's data. Length is the client's word:
// bound it before anything is sized by it.
type OptionHeader struct {
	Option Option
	Length uint32 // bytes of data that follow
}

// AppendOption appends an option with its data.
func AppendOption(dst []byte, o Option, data []byte) []byte {
	dst = be.AppendUint64(dst, MagicOption)
	dst = be.AppendUint32(dst, uint32(o))
	dst = be.AppendUint32(dst, uint32(len(data)))
	return append(dst, data...)
}

// DecodeOptionHeader decodes OptionHeaderSize bytes.
func DecodeOptionHeader(b []byte) (OptionHeader, error) {
	if m := be.Uint64(b); m != MagicOption {
		return OptionHeader{}, &ProtocolError{"option", "magic", m, "IHAVEOPT"}
	}
	return OptionHeader{Option: Option(be.Uint32(b[8:])), Length: be.Uint32(b[12:])}, nil
}

// An OptionReplyHeader precedes the data of an answer to an option.
type OptionReplyHeader struct {
	Option Option
	Type   ReplyType
	Length uint32 // bytes of data that follow
}

// AppendOptionReply appends an answer to option o with its data.
func AppendOptionReply(dst []byte, o Option, t ReplyType, data []byte) []byte {
	dst = be.AppendUint64(dst, MagicOptionReply)
	dst = be.AppendUint32(dst, uint32(o))
	dst = be.AppendUint32(dst, uint32(t))
	dst = be.AppendUint32(dst, uint32(len(data)))
	return append(dst, data...)
}

// AppendOptionError appends an error answer; its text is cut to MaxString.
func AppendOptionError(dst []byte, o Option, e *OptionError) []byte {
	text := strings.ToValidUTF8(strings.ReplaceAll(e.Text, "\x00", ""), "?")
	if len(text) > MaxString {
		text = strings.ToValidUTF8(text[:MaxString], "")
	}
	return AppendOptionReply(dst, o, e.Type, []byte(text))
}

// DecodeOptionReplyHeader decodes OptionReplyHeaderSize bytes.
func DecodeOptionReplyHeader(b []byte) (OptionReplyHeader, error) {
	if m := be.Uint64(b); m != MagicOptionReply {
		return OptionReplyHeader{}, &ProtocolError{"option reply", "magic", m, fmt.Sprintf("%#x", MagicOptionReply)}
	}
	return OptionReplyHeader{
		Option: Option(be.Uint32(b[8:])), Type: ReplyType(be.Uint32(b[12:])), Length: be.Uint32(b[16:]),
	}, nil
}

// DecodeName checks an export name or other string: at most MaxString bytes,
// UTF-8, no NUL.
func DecodeName(b []byte) (string, error) {
	switch {
	case len(b) > MaxString:
		return "", &OptionError{RepErrTooBig, fmt.Sprintf("a name of %d bytes, at most %d are allowed", len(b), MaxString)}
	case !utf8.Valid(b) || strings.IndexByte(string(b), 0) >= 0:
		return "", &OptionError{RepErrInvalid, "the name is not UTF-8 text without NUL"}
	}
	return string(b), nil
}

// An InfoRequest is the data of NBD_OPT_INFO and NBD_OPT_GO.
type InfoRequest struct {
	Name  string // "" is the default export
	Types []InfoType
}

// Append appends the request's data.
func (r InfoRequest) Append(dst []byte) []byte {
	dst = be.AppendUint32(dst, uint32(len(r.Name)))
	dst = append(dst, r.Name...)
	dst = be.AppendUint16(dst, uint16(len(r.Types)))
	for _, t := range r.Types {
		dst = be.AppendUint16(dst, uint16(t))
	}
	return dst
}

// Wants reports whether the client asked for a type.
func (r InfoRequest) Wants(t InfoType) bool {
	for _, have := range r.Types {
		if have == t {
			return true
		}
	}
	return false
}

// DecodeInfoRequest decodes an option's whole data. The error is an
// *OptionError.
func DecodeInfoRequest(b []byte) (InfoRequest, error) {
	bad := func(text string) (InfoRequest, error) { return InfoRequest{}, &OptionError{RepErrInvalid, text} }
	if len(b) < 6 {
		return bad("the option's data is too short")
	}
	n := uint64(be.Uint32(b))
	if n+6 > uint64(len(b)) {
		return bad("the name's length does not fit the option's")
	}
	name, err := DecodeName(b[4 : 4+n])
	if err != nil {
		return InfoRequest{}, err
	}
	rest := b[4+n:]
	count := int(be.Uint16(rest))
	if len(rest) != 2+2*count {
		return bad("the number of information requests does not fit the option's length")
	}
	req := InfoRequest{Name: name}
	for i := range count {
		req.Types = append(req.Types, InfoType(be.Uint16(rest[2+2*i:])))
	}
	return req, nil
}

// AppendInfoExport appends the data of an NBD_INFO_EXPORT answer. size is in
// bytes.
func AppendInfoExport(dst []byte, size uint64, flags TransmissionFlags) []byte {
	dst = be.AppendUint16(dst, uint16(InfoExport))
	dst = be.AppendUint64(dst, size)
	return be.AppendUint16(dst, uint16(flags))
}

// AppendInfoText appends the data of an NBD_INFO_NAME or DESCRIPTION answer.
func AppendInfoText(dst []byte, t InfoType, text string) []byte {
	dst = be.AppendUint16(dst, uint16(t))
	return append(dst, text...)
}

// BlockSizes are an export's limits in bytes, see NBD_INFO_BLOCK_SIZE.
type BlockSizes struct {
	Minimum   uint32
	Preferred uint32
	Maximum   uint32 // of a payload
}

// AppendInfoBlockSize appends the data of an NBD_INFO_BLOCK_SIZE answer.
func AppendInfoBlockSize(dst []byte, s BlockSizes) []byte {
	dst = be.AppendUint16(dst, uint16(InfoBlockSize))
	dst = be.AppendUint32(dst, s.Minimum)
	dst = be.AppendUint32(dst, s.Preferred)
	return be.AppendUint32(dst, s.Maximum)
}

// An ExportInfo is what a client learns of an export.
type ExportInfo struct {
	Size        uint64 // bytes
	Flags       TransmissionFlags
	Blocks      BlockSizes // zero if the server did not say
	Name        string
	Description string
}

// Add takes the data of one NBD_REP_INFO answer into e; types it does not know
// are ignored.
func (e *ExportInfo) Add(b []byte) error {
	if len(b) < 2 {
		return &ProtocolError{"information", "length", uint64(len(b)), "at least 2"}
	}
	switch t := InfoType(be.Uint16(b)); t {
	case InfoExport:
		if len(b) != 12 {
			return &ProtocolError{"export information", "length", uint64(len(b)), "12"}
		}
		e.Size, e.Flags = be.Uint64(b[2:]), TransmissionFlags(be.Uint16(b[10:]))
	case InfoBlockSize:
		if len(b) != 14 {
			return &ProtocolError{"block size information", "length", uint64(len(b)), "14"}
		}
		e.Blocks = BlockSizes{be.Uint32(b[2:]), be.Uint32(b[6:]), be.Uint32(b[10:])}
	case InfoName:
		e.Name = string(b[2:])
	case InfoDescription:
		e.Description = string(b[2:])
	}
	return nil
}

// AppendExportName appends the answer to NBD_OPT_EXPORT_NAME, which has no
// header.
func AppendExportName(dst []byte, size uint64, flags TransmissionFlags, withZeroes bool) []byte {
	dst = be.AppendUint64(dst, size)
	dst = be.AppendUint16(dst, uint16(flags))
	if withZeroes {
		dst = append(dst, make([]byte, ExportNamePadding)...)
	}
	return dst
}

// AppendServer appends the data of an NBD_REP_SERVER answer to NBD_OPT_LIST.
func AppendServer(dst []byte, name, description string) []byte {
	dst = be.AppendUint32(dst, uint32(len(name)))
	dst = append(dst, name...)
	return append(dst, description...)
}

// A MetaContextRequest is the data of NBD_OPT_LIST_META_CONTEXT and
// NBD_OPT_SET_META_CONTEXT.
type MetaContextRequest struct {
	Name    string
	Queries []string
}

// maxQueries is our own bound: one context is all that we have.
const maxQueries = 64

// DecodeMetaContextRequest decodes an option's whole data. The error is an
// *OptionError.
func DecodeMetaContextRequest(b []byte) (MetaContextRequest, error) {
	var req MetaContextRequest
	bad := &OptionError{RepErrInvalid, "lengths inside the option's data do not fit its own"}
	cut := func() ([]byte, bool) {
		if len(b) < 4 {
			return nil, false
		}
		n := uint64(be.Uint32(b))
		if n > uint64(len(b)-4) {
			return nil, false
		}
		s := b[4 : 4+n]
		b = b[4+n:]
		return s, true
	}
	raw, ok := cut()
	if !ok || len(b) < 4 {
		return req, bad
	}
	var err error
	if req.Name, err = DecodeName(raw); err != nil {
		return req, err
	}
	count := be.Uint32(b)
	b = b[4:]
	if uint64(count)*4 > uint64(len(b)) {
		return req, bad
	}
	if count > maxQueries {
		return req, &OptionError{RepErrTooBig, fmt.Sprintf("more than %d queries", maxQueries)}
	}
	for range count {
		raw, ok := cut()
		if !ok {
			return req, bad
		}
		q, err := DecodeName(raw)
		if err != nil {
			return req, err
		}
		req.Queries = append(req.Queries, q)
	}
	if len(b) != 0 {
		return req, bad
	}
	return req, nil
}

// AppendMetaContext appends the data of an NBD_REP_META_CONTEXT answer.
func AppendMetaContext(dst []byte, id uint32, name string) []byte {
	dst = be.AppendUint32(dst, id)
	return append(dst, name...)
}
