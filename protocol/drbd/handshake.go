package drbd

import (
	"bytes"
	"fmt"
	"strings"
)

// Versions of the protocol that this package's packets have.
const (
	MinVersion = 100
	MaxVersion = 101
)

// Feature flags of P_CONNECTION_FEATURES; a feature holds when both sides have
// it. Source: drbd_protocol.h, DRBD_FF_*.
const (
	FeatureTrim       uint32 = 1
	FeatureThinResync uint32 = 2
	FeatureWSame      uint32 = 4 // P_SIZES has 56 bytes, discards up to MaxDiscardSize
	FeatureWZeroes    uint32 = 8

	// FeaturePollux is ours: no DRBD offers it, so it is agreed only between
	// two nodes of this kind.
	FeaturePollux uint32 = 1 << 31
	// FeatureTerm is ours, too: P_TERM may be sent.
	FeatureTerm uint32 = 1 << 30
)

// Wire protocols: when a write is complete (drbd84-protocol, B.1).
const (
	ProtocolA uint32 = 1 // handed to the peer's socket
	ProtocolB uint32 = 2 // in the peer's memory
	ProtocolC uint32 = 3 // on the peer's disk
)

// Flags of P_PROTOCOL. Source: drbd_protocol.h, enum drbd_conn_flags.
const (
	ConnDiscardMyData uint32 = 1
	ConnDryRun        uint32 = 2 // connect --tentative
)

const (
	featuresSize  = 72
	syncParamSize = 148
)

// Features is P_CONNECTION_FEATURES: the versions and features that a node
// offers, the first packet after both sockets are up.
type Features struct {
	Min, Flags, Max uint32
}

// Append appends the 72 bytes of f to dst; the reserved ones are zero.
func (f Features) Append(dst []byte) []byte {
	dst = put32(put32(put32(dst, f.Min), f.Flags), f.Max)
	return append(dst, make([]byte, featuresSize-12)...)
}

// Decode sets f from b, which is 72 bytes long. A peer of a later DRBD may have
// given the reserved fields a meaning: they are ignored.
func (f *Features) Decode(b []byte) error {
	if len(b) != featuresSize {
		return short(CmdConnectionFeatures, b, featuresSize)
	}
	*f = Features{Min: be32(b), Flags: be32(b[4:]), Max: be32(b[8:])}
	return nil
}

// Agree is the outcome of the feature exchange, equal on both sides: the highest
// version that both speak and the features that both have. If there is no such
// version the error is a *VersionError and the caller gives up.
func Agree(mine, peer Features) (version int, flags uint32, err error) {
	if peer.Max == 0 {
		peer.Max = peer.Min
	}
	if mine.Max < peer.Min || mine.Min > peer.Max {
		return 0, 0, &VersionError{Mine: mine, Peer: peer}
	}
	return int(min(mine.Max, peer.Max)), mine.Flags & peer.Flags, nil
}

// ProtocolPacket is P_PROTOCOL and P_PROTOCOL_UPDATE: the options that have to
// be alike on both sides.
type ProtocolPacket struct {
	Protocol     uint32 // ProtocolA, ProtocolB or ProtocolC
	AfterSB0P    uint32 // policy codes (drbd84-protocol, B.6), as the sender sees them
	AfterSB1P    uint32
	AfterSB2P    uint32
	ConnFlags    uint32 // ConnDiscardMyData, ConnDryRun
	TwoPrimaries uint32 // 0 or 1
	IntegrityAlg string // name of the digest of data packets, "" if unused; at most 63 bytes
	NoIntegrity  bool   // the packet ends before IntegrityAlg: version 86 only
}

// Append appends the 24 bytes of p and the NUL-terminated name to dst.
func (p ProtocolPacket) Append(dst []byte) []byte {
	for _, v := range [...]uint32{p.Protocol, p.AfterSB0P, p.AfterSB1P, p.AfterSB2P, p.ConnFlags, p.TwoPrimaries} {
		dst = put32(dst, v)
	}
	if p.NoIntegrity {
		return dst
	}
	mustName(p.IntegrityAlg)
	return append(append(dst, p.IntegrityAlg...), 0)
}

// Decode sets p from b, the whole payload.
func (p *ProtocolPacket) Decode(b []byte) error {
	if len(b) < 24 || len(b) > 24+AlgNameSize {
		return &ProtocolError{Packet: CmdProtocol, Field: "length", Got: len(b), Want: span{25, 24 + AlgNameSize}}
	}
	*p = ProtocolPacket{
		Protocol: be32(b), AfterSB0P: be32(b[4:]), AfterSB1P: be32(b[8:]), AfterSB2P: be32(b[12:]),
		ConnFlags: be32(b[16:]), TwoPrimaries: be32(b[20:]), NoIntegrity: len(b) == 24,
	}
	if p.NoIntegrity {
		return nil
	}
	name := b[24:]
	if bytes.IndexByte(name, 0) != len(name)-1 {
		return &ProtocolError{Packet: CmdProtocol, Field: "integrity_alg", Got: fmt.Sprintf("%q", name), Want: "one string with a NUL at its end"}
	}
	p.IntegrityAlg = string(name[:len(name)-1])
	return nil
}

// SyncParam89 is P_SYNC_PARAM89: the resync options of a volume.
type SyncParam89 struct {
	ResyncRate   uint32 // KiB/s
	VerifyAlg    string // "" if unused; at most 63 bytes
	CsumsAlg     string // "" if unused; at most 63 bytes
	CPlanAhead   uint32 // 0.1 s
	CDelayTarget uint32 // 0.1 s
	CFillTarget  uint32 // sectors
	CMaxRate     uint32 // KiB/s
	V94          bool   // ends before CPlanAhead: versions 89 to 94 only
}

// Append appends the 148 bytes of p to dst (132 if p.V94).
func (p SyncParam89) Append(dst []byte) []byte {
	dst = put32(dst, p.ResyncRate)
	dst = appendName(dst, p.VerifyAlg)
	dst = appendName(dst, p.CsumsAlg)
	if p.V94 {
		return dst
	}
	return put32(put32(put32(put32(dst, p.CPlanAhead), p.CDelayTarget), p.CFillTarget), p.CMaxRate)
}

// Decode sets p from b, which is 148 bytes long, or 132 from a peer of version
// 89 to 94.
func (p *SyncParam89) Decode(b []byte) error {
	const v94 = syncParamSize - 16
	if len(b) != syncParamSize && len(b) != v94 {
		return short(CmdSyncParam89, b, syncParamSize)
	}
	*p = SyncParam89{ResyncRate: be32(b), V94: len(b) == v94}
	var err error
	if p.VerifyAlg, err = decodeName("verify_alg", b[4:68]); err != nil {
		return err
	}
	if p.CsumsAlg, err = decodeName("csums_alg", b[68:v94]); err != nil {
		return err
	}
	if !p.V94 {
		p.CPlanAhead, p.CDelayTarget, p.CFillTarget, p.CMaxRate = be32(b[132:]), be32(b[136:]), be32(b[140:]), be32(b[144:])
	}
	return nil
}

// SyncParam is P_SYNC_PARAM, the resync options of versions 86 to 88. It is
// here to read captures; CheckLength refuses it.
type SyncParam struct {
	ResyncRate uint32 // KiB/s
	VerifyAlg  string // version 88
	V88        bool   // VerifyAlg is there
}

// Append appends p to dst: 4 bytes, and the NUL-terminated name if p.V88.
func (p SyncParam) Append(dst []byte) []byte {
	dst = put32(dst, p.ResyncRate)
	if !p.V88 {
		return dst
	}
	mustName(p.VerifyAlg)
	return append(append(dst, p.VerifyAlg...), 0)
}

// Decode sets p from b, the whole payload.
func (p *SyncParam) Decode(b []byte) error {
	if len(b) < 4 || len(b) > 4+AlgNameSize {
		return &ProtocolError{Packet: CmdSyncParam, Field: "length", Got: len(b), Want: span{4, 4 + AlgNameSize}}
	}
	*p = SyncParam{ResyncRate: be32(b), V88: len(b) > 4}
	if !p.V88 {
		return nil
	}
	name := b[4:]
	if bytes.IndexByte(name, 0) != len(name)-1 {
		return &ProtocolError{Packet: CmdSyncParam, Field: "verify_alg", Got: fmt.Sprintf("%q", name), Want: "one string with a NUL at its end"}
	}
	p.VerifyAlg = string(name[:len(name)-1])
	return nil
}

// mustName panics if a name cannot stand in a packet. The configuration's
// parser admits known names only, so this is a bug of ours.
func mustName(name string) {
	if len(name) >= AlgNameSize || strings.IndexByte(name, 0) >= 0 {
		panic(fmt.Sprintf("drbd: %q cannot be the name of an algorithm: %d bytes, at most %d and no NUL", name, len(name), AlgNameSize-1))
	}
}

// appendName appends name, zero padded to AlgNameSize bytes.
func appendName(dst []byte, name string) []byte {
	mustName(name)
	return append(append(dst, name...), make([]byte, AlgNameSize-len(name))...)
}

// decodeName is the string in a field of AlgNameSize bytes.
func decodeName(field string, b []byte) (string, error) {
	n := bytes.IndexByte(b, 0)
	if n < 0 {
		return "", &ProtocolError{Packet: CmdSyncParam89, Field: field, Got: fmt.Sprintf("%q", b), Want: "a NUL-terminated string"}
	}
	return string(b[:n]), nil
}
