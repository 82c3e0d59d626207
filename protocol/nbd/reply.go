package nbd

import "fmt"

// A SimpleReply answers one request; the data of a successful CmdRead follows.
type SimpleReply struct {
	Error  Errno
	Cookie uint64
}

// AppendSimpleReply appends a simple reply's head, SimpleReplySize bytes.
func AppendSimpleReply(dst []byte, e Errno, cookie uint64) []byte {
	dst = be.AppendUint32(dst, MagicSimpleReply)
	dst = be.AppendUint32(dst, uint32(e))
	return be.AppendUint64(dst, cookie)
}

// DecodeSimpleReply decodes SimpleReplySize bytes.
func DecodeSimpleReply(b []byte) (SimpleReply, error) {
	_ = b[SimpleReplySize-1]
	if m := be.Uint32(b); m != MagicSimpleReply {
		return SimpleReply{}, &ProtocolError{"reply", "magic", uint64(m), fmt.Sprintf("%#x", MagicSimpleReply)}
	}
	return SimpleReply{Error: Errno(be.Uint32(b[4:])), Cookie: be.Uint64(b[8:])}, nil
}

// A Chunk is the head of one part of a structured reply; Length bytes of
// payload follow.
type Chunk struct {
	Flags  uint16
	Type   ChunkType
	Cookie uint64
	Length uint32
}

// Append appends the chunk's head, ChunkHeaderSize bytes.
func (c Chunk) Append(dst []byte) []byte {
	dst = be.AppendUint32(dst, MagicStructuredReply)
	dst = be.AppendUint16(dst, c.Flags)
	dst = be.AppendUint16(dst, uint16(c.Type))
	dst = be.AppendUint64(dst, c.Cookie)
	return be.AppendUint32(dst, c.Length)
}

// DecodeChunk decodes ChunkHeaderSize bytes.
func DecodeChunk(b []byte) (Chunk, error) {
	_ = b[ChunkHeaderSize-1]
	if m := be.Uint32(b); m != MagicStructuredReply {
		return Chunk{}, &ProtocolError{"structured reply", "magic", uint64(m), fmt.Sprintf("%#x", MagicStructuredReply)}
	}
	return Chunk{
		Flags: be.Uint16(b[4:]), Type: ChunkType(be.Uint16(b[6:])), Cookie: be.Uint64(b[8:]), Length: be.Uint32(b[16:]),
	}, nil
}

// DataChunkHead is the size of what AppendDataChunk appends, in bytes.
const DataChunkHead = ChunkHeaderSize + 8

// AppendDataChunk appends the head of a chunk with length bytes of data from
// offset; the data itself follows. length must be > 0.
func AppendDataChunk(dst []byte, cookie, offset uint64, length uint32, isLast bool) []byte {
	c := Chunk{Type: ChunkOffsetData, Cookie: cookie, Length: length + 8}
	if isLast {
		c.Flags = ChunkDone
	}
	return be.AppendUint64(c.Append(dst), offset)
}

// AppendErrorChunk appends a whole final chunk with an error and no text.
func AppendErrorChunk(dst []byte, cookie uint64, e Errno) []byte {
	dst = Chunk{Flags: ChunkDone, Type: ChunkError, Cookie: cookie, Length: 6}.Append(dst)
	dst = be.AppendUint32(dst, uint32(e))
	return be.AppendUint16(dst, 0)
}

// AppendNoneChunk appends a final chunk that says nothing but success.
func AppendNoneChunk(dst []byte, cookie uint64) []byte {
	return Chunk{Flags: ChunkDone, Type: ChunkNone, Cookie: cookie}.Append(dst)
}

// An Extent is a stretch of an export with one allocation state.
type Extent struct {
	Length uint32 // bytes
	Flags  uint32 // StateHole, StateZero
}

// AppendBlockStatus appends a whole final chunk with the extents of one
// metadata context.
func AppendBlockStatus(dst []byte, cookie uint64, context uint32, extents []Extent) []byte {
	c := Chunk{Flags: ChunkDone, Type: ChunkBlockStatus, Cookie: cookie, Length: uint32(4 + 8*len(extents))}
	dst = be.AppendUint32(c.Append(dst), context)
	for _, e := range extents {
		dst = be.AppendUint32(dst, e.Length)
		dst = be.AppendUint32(dst, e.Flags)
	}
	return dst
}
