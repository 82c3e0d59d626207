// Package nbd turns the bytes of the NBD protocol into values and back: the
// fixed newstyle handshake and the transmission phase with simple and
// structured replies. It owns no socket and no policy.
//
// All integers are big-endian. The server speaks first:
//
//	server  "NBDMAGIC" "IHAVEOPT" u16 handshake flags            18 bytes
//	client  u32 handshake flags                                   4 bytes
//	client  "IHAVEOPT" u32 option u32 length data         16+length bytes
//	server  u64 0x3e889045565a9 u32 option u32 type
//	        u32 length data                               20+length bytes
//
// and after NBD_OPT_GO or NBD_OPT_EXPORT_NAME
//
//	request       u32 0x25609513 u16 flags u16 command u64 cookie
//	              u64 offset u32 length [payload of a write]     28 bytes
//	simple reply  u32 0x67446698 u32 error u64 cookie [data]     16 bytes
//	chunk         u32 0x668e33ef u16 flags u16 type u64 cookie
//	              u32 length payload                             20 bytes
//
// Nothing here allocates by a length that came from the other side: the
// Decode functions work on bytes that the caller has already bounded, and
// check every inner length against them. No checksum protects the stream.
//
//	req, err := nbd.DecodeRequest(header)
//	if err != nil {
//		return err // wrong magic: there is no way to find the next request
//	}
//	out = nbd.AppendSimpleReply(out, nbd.OK, req.Cookie)
//
// Source: NetworkBlockDevice/nbd, doc/proto.md. Constants are go-nbd's where
// it has them.
package nbd
