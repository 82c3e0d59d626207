// Package drbd is the wire protocol of DRBD 8.4, versions 100 and 101: packets
// as bytes and as structs. It has no sockets and no policy; what packets mean is
// decided in package replication.
//
// # Headers
//
// Two nodes share two TCP connections, the data and the meta socket. A packet is
// a header and as many bytes as its length says. Everything is big-endian.
//
//	h80, before the feature exchange is over    h95, versions 95 to 99 (read only)
//	 0  u32  0x83740267                          0  u16  0x835a
//	 4  u16  command                             2  u16  command
//	 6  u16  length                              4  u32  length
//
//	h100, from then on, on both sockets
//	 0  u32  0x8620ec20
//	 4  u16  volume, 0 for connection-wide packets
//	 6  u16  command
//	 8  u32  length
//	12  u32  0
//
// # Payloads
//
// Offsets are from the end of the header, lengths in bytes. "Opaque" fields are
// the sender's: they are kept as the big-endian number of their bytes and echoed
// in the answer, so the bytes come back as they came.
//
//	Data (24)                     Trim (28)             BlockAck (24)
//	 0  u64  sector                0  Data               0  u64  sector
//	 8  u64  block id, opaque     24  u32  size          8  u64  block id, opaque
//	16  u32  sequence number                            16  u32  size
//	20  u32  flags                                      20  u32  sequence number
//	24  digest, data
//
//	BlockRequest (24)             BlockDesc (16)        Barrier (8)
//	 0  u64  sector                0  u64  sector        0  u32  number, opaque
//	 8  u64  block id, opaque      8  u32  size          4  u32  0
//	16  u32  size                 12  u32  garbage      BarrierAck (8)
//	20  u32  garbage                                     0  u32  number, opaque
//	24  digest                                           4  u32  writes in the epoch
//
//	Features (72)                 ProtocolPacket (25+)  SyncParam89 (148)
//	 0  u32  lowest version        0  u32  protocol      0  u32  resync rate
//	 4  u32  features              4  u32  after-sb 0p   4  64   verify-alg
//	 8  u32  highest version       8  u32  after-sb 1p  68  64   csums-alg
//	12  60   reserved, 0          12  u32  after-sb 2p 132  u32  plan ahead
//	                              16  u32  flags       136  u32  delay target
//	                              20  u32  2 primaries 140  u32  fill target
//	                              24  name, NUL        144  u32  max rate
//
//	Sizes (32; 56 with WSAME)     UUIDs (48)            StatePacket (4)
//	 0  u64  backing device        0  u64  current       0  u32  state word
//	 8  u64  user's wish           8  u64  bitmap       ReqState (8)
//	16  u64  exported             16  u64  history 1     0  u32  mask
//	24  u32  max bio size         24  u64  history 2     4  u32  value
//	28  u16  0                    32  u64  dirty bits   ReqStateReply (4)
//	30  u16  flags                40  u64  flags         0  s32  code
//	32  5 x u32  block limits                           SyncUUID (8)
//	52  4 x u8   capabilities                            0  u64  uuid
//
// P_TERM is ours, for FeatureTerm:
//
//	TermPacket (24)
//	 0  u64  term of the sender's writes, 0 if it is not Primary
//	 8  u64  promised: it accepts no writes of a lower one
//	16  u32  flags
//	20  u32  number of a question, or of what is answered
//
// The digest of data covers the data alone. Digests are as Linux's crypto API
// makes them (NewDigest); that of crc32c is little-endian.
//
// # Bitmap
//
// A bitmap has one bit for 4096 bytes of the volume and is a little-endian
// stream: bit n is bit n%8 of byte n/8. It passes as a sequence of P_BITMAP (up
// to 510 words of 64 bits as they are) and P_COMPRESSED_BITMAP (an encoding byte
// and up to 4079 bytes of code), each going on where the one before ended:
//
//	encoding byte    bits 0-3: 2    bits 4-6: unused bits of the last byte
//	                 bit 7: the first run is of set bits
//	code             lengths of runs, set and clear in turn, low bit first
//
// A code word is a prefix and the run less the smallest of its level:
//
//	prefix    bits  runs             prefix    bits  runs
//	0            1  1, 2             111110       8  49 to 304
//	10           1  3, 4             11111100    13  305 to 8496
//	110          2  5 to 8           11111110    21  8497 to 2105648
//	1110         3  9 to 16          11111101    34  to 17181974832
//	11110        5  17 to 48         11111111    56  above
//
// A bitmap that ends with a plain packet is closed by an empty one.
//
// # Trust
//
// Nothing from the wire sizes anything before it was checked: CheckLength for
// the header, DataSize for what follows a digest, and every Decode for the
// sizes and sectors inside. What is wrong is a *ProtocolError; the caller drops
// the connection, since it no longer knows where the next packet begins.
//
// Values of this package may be used by several goroutines if nobody changes
// them. A BitmapSender or BitmapReceiver belongs to one at a time.
package drbd
