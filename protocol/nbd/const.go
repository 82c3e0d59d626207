package nbd

import (
	"fmt"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// Magic numbers of the handshake and of the transmission phase.
const (
	MagicServer          = protocol.NEGOTIATION_MAGIC_OLDSTYLE // "NBDMAGIC"
	MagicOption          = protocol.NEGOTIATION_MAGIC_OPTION   // "IHAVEOPT"
	MagicOptionReply     = protocol.NEGOTIATION_MAGIC_REPLY
	MagicRequest         = protocol.TRANSMISSION_MAGIC_REQUEST
	MagicSimpleReply     = protocol.TRANSMISSION_MAGIC_REPLY
	MagicStructuredReply = uint32(0x668e33ef)
)

// Sizes of the fixed parts, in bytes.
const (
	GreetingSize          = 18
	ClientFlagsSize       = 4
	OptionHeaderSize      = 16
	OptionReplyHeaderSize = 20
	RequestSize           = 28
	SimpleReplySize       = 16
	ChunkHeaderSize       = 20
	ExportNamePadding     = 124 // zeroes after NBD_OPT_EXPORT_NAME unless NO_ZEROES
)

// Limits of the protocol document.
const (
	MaxString  = 4096     // bytes of a name or other string
	MaxPayload = 32 << 20 // bytes that must not be taken for an attack
)

// HandshakeFlags are what server and client say of themselves first; the
// client's word has 32 bits, of which the same two are known.
type HandshakeFlags uint16

// Handshake flags.
const (
	FixedNewstyle HandshakeFlags = HandshakeFlags(protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE)
	NoZeroes      HandshakeFlags = 1 << 1
)

// An Option is a client's wish during the handshake.
type Option uint32

// Options.
const (
	OptExportName      Option = 1
	OptAbort           Option = Option(protocol.NEGOTIATION_ID_OPTION_ABORT)
	OptList            Option = Option(protocol.NEGOTIATION_ID_OPTION_LIST)
	OptStartTLS        Option = 5
	OptInfo            Option = Option(protocol.NEGOTIATION_ID_OPTION_INFO)
	OptGo              Option = Option(protocol.NEGOTIATION_ID_OPTION_GO)
	OptStructuredReply Option = 8
	OptListMetaContext Option = 9
	OptSetMetaContext  Option = 10
	OptExtendedHeaders Option = 11
)

var optionNames = map[Option]string{
	OptExportName: "NBD_OPT_EXPORT_NAME", OptAbort: "NBD_OPT_ABORT", OptList: "NBD_OPT_LIST",
	OptStartTLS: "NBD_OPT_STARTTLS", OptInfo: "NBD_OPT_INFO", OptGo: "NBD_OPT_GO",
	OptStructuredReply: "NBD_OPT_STRUCTURED_REPLY", OptListMetaContext: "NBD_OPT_LIST_META_CONTEXT",
	OptSetMetaContext: "NBD_OPT_SET_META_CONTEXT", OptExtendedHeaders: "NBD_OPT_EXTENDED_HEADERS",
}

func (o Option) String() string {
	if s, ok := optionNames[o]; ok {
		return s
	}
	return fmt.Sprintf("NBD option %d", uint32(o))
}

// A ReplyType is the kind of an answer to an option.
type ReplyType uint32

// Answers to an option; those with bit 31 are errors.
const (
	RepAck         ReplyType = ReplyType(protocol.NEGOTIATION_TYPE_REPLY_ACK)
	RepServer      ReplyType = ReplyType(protocol.NEGOTIATION_TYPE_REPLY_SERVER)
	RepInfo        ReplyType = ReplyType(protocol.NEGOTIATION_TYPE_REPLY_INFO)
	RepMetaContext ReplyType = 4

	repError = 1 << 31

	RepErrUnsup             ReplyType = ReplyType(protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED)
	RepErrPolicy            ReplyType = repError | 2
	RepErrInvalid           ReplyType = repError | 3
	RepErrPlatform          ReplyType = repError | 4
	RepErrTLSRequired       ReplyType = repError | 5
	RepErrUnknown           ReplyType = ReplyType(protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN)
	RepErrShutdown          ReplyType = repError | 7
	RepErrBlockSizeRequired ReplyType = repError | 8
	RepErrTooBig            ReplyType = repError | 9
)

// IsError reports whether the option has failed.
func (t ReplyType) IsError() bool { return t&repError != 0 }

func (t ReplyType) String() string {
	switch t {
	case RepAck:
		return "NBD_REP_ACK"
	case RepServer:
		return "NBD_REP_SERVER"
	case RepInfo:
		return "NBD_REP_INFO"
	case RepMetaContext:
		return "NBD_REP_META_CONTEXT"
	case RepErrUnsup:
		return "NBD_REP_ERR_UNSUP"
	case RepErrPolicy:
		return "NBD_REP_ERR_POLICY"
	case RepErrInvalid:
		return "NBD_REP_ERR_INVALID"
	case RepErrPlatform:
		return "NBD_REP_ERR_PLATFORM"
	case RepErrTLSRequired:
		return "NBD_REP_ERR_TLS_REQD"
	case RepErrUnknown:
		return "NBD_REP_ERR_UNKNOWN"
	case RepErrShutdown:
		return "NBD_REP_ERR_SHUTDOWN"
	case RepErrBlockSizeRequired:
		return "NBD_REP_ERR_BLOCK_SIZE_REQD"
	case RepErrTooBig:
		return "NBD_REP_ERR_TOO_BIG"
	}
	return fmt.Sprintf("NBD option reply %#x", uint32(t))
}

// An InfoType is a kind of information about an export.
type InfoType uint16

// Information types.
const (
	InfoExport      InfoType = InfoType(protocol.NEGOTIATION_TYPE_INFO_EXPORT)
	InfoName        InfoType = InfoType(protocol.NEGOTIATION_TYPE_INFO_NAME)
	InfoDescription InfoType = InfoType(protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION)
	InfoBlockSize   InfoType = InfoType(protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE)
)

// TransmissionFlags say what an export can do.
type TransmissionFlags uint16

// Transmission flags. HasFlags is always set.
const (
	HasFlags        TransmissionFlags = TransmissionFlags(protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS)
	ReadOnly        TransmissionFlags = 1 << 1
	SendFlush       TransmissionFlags = 1 << 2
	SendFUA         TransmissionFlags = 1 << 3
	Rotational      TransmissionFlags = 1 << 4
	SendTrim        TransmissionFlags = 1 << 5
	SendWriteZeroes TransmissionFlags = 1 << 6
	SendDF          TransmissionFlags = 1 << 7
	CanMultiConn    TransmissionFlags = TransmissionFlags(protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN)
	SendCache       TransmissionFlags = 1 << 10
	SendFastZero    TransmissionFlags = 1 << 11
)

// A Command is what a request asks for.
type Command uint16

// Commands.
const (
	CmdRead        Command = Command(protocol.TRANSMISSION_TYPE_REQUEST_READ)
	CmdWrite       Command = Command(protocol.TRANSMISSION_TYPE_REQUEST_WRITE)
	CmdDisc        Command = Command(protocol.TRANSMISSION_TYPE_REQUEST_DISC)
	CmdFlush       Command = 3
	CmdTrim        Command = 4
	CmdCache       Command = 5
	CmdWriteZeroes Command = 6
	CmdBlockStatus Command = 7
)

var commandNames = [...]string{
	CmdRead: "NBD_CMD_READ", CmdWrite: "NBD_CMD_WRITE", CmdDisc: "NBD_CMD_DISC", CmdFlush: "NBD_CMD_FLUSH",
	CmdTrim: "NBD_CMD_TRIM", CmdCache: "NBD_CMD_CACHE", CmdWriteZeroes: "NBD_CMD_WRITE_ZEROES",
	CmdBlockStatus: "NBD_CMD_BLOCK_STATUS",
}

func (c Command) String() string {
	if int(c) < len(commandNames) {
		return commandNames[c]
	}
	return fmt.Sprintf("NBD command %d", uint16(c))
}

// CommandFlags modify a request.
type CommandFlags uint16

// Command flags.
const (
	FlagFUA      CommandFlags = 1 << 0
	FlagNoHole   CommandFlags = 1 << 1
	FlagDF       CommandFlags = 1 << 2
	FlagReqOne   CommandFlags = 1 << 3
	FlagFastZero CommandFlags = 1 << 4
)

// An Errno is an error value on the wire; OK is none.
type Errno uint32

// Errors.
const (
	OK        Errno = 0
	EPERM     Errno = Errno(protocol.TRANSMISSION_ERROR_EPERM)
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = Errno(protocol.TRANSMISSION_ERROR_EINVAL)
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

func (e Errno) String() string {
	switch e {
	case OK:
		return "ok"
	case EPERM:
		return "EPERM"
	case EIO:
		return "EIO"
	case ENOMEM:
		return "ENOMEM"
	case EINVAL:
		return "EINVAL"
	case ENOSPC:
		return "ENOSPC"
	case EOVERFLOW:
		return "EOVERFLOW"
	case ENOTSUP:
		return "ENOTSUP"
	case ESHUTDOWN:
		return "ESHUTDOWN"
	}
	return fmt.Sprintf("error %d", uint32(e))
}

// A ChunkType is the kind of a structured reply's chunk.
type ChunkType uint16

// Chunk types; those with bit 15 are errors.
const (
	ChunkNone        ChunkType = 0
	ChunkOffsetData  ChunkType = 1
	ChunkOffsetHole  ChunkType = 2
	ChunkBlockStatus ChunkType = 5
	ChunkError       ChunkType = 1<<15 | 1
	ChunkErrorOffset ChunkType = 1<<15 | 2
)

// ChunkDone marks the last chunk of a structured reply.
const ChunkDone uint16 = 1

// BaseAllocation is the metadata context of allocated, hole and zero ranges,
// with its flags.
const (
	BaseAllocation = "base:allocation"
	StateHole      = uint32(1)
	StateZero      = uint32(2)
)
