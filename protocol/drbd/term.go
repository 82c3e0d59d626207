package drbd

import "fmt"

// Flags of P_TERM.
const (
	TermKnown      uint32 = 1 // the sender's promise is all it ever promised, as far as it can tell
	TermStandsBack uint32 = 2 // of a Secondary: its disk says Outdated, which counts from the end of the connection on
)

// TermPacket is P_TERM, a packet of our own that is sent only if FeatureTerm is
// agreed: which writes the sender makes, and which it accepts.
type TermPacket struct {
	Term     uint64 // of the sender's writes; 0 if it is not Primary
	Promised uint64 // it accepts no writes of a lower term
	Flags    uint32
	// Ask is the number of a Primary's question whether its peer stands back, 0 if it
	// does not ask; with TermStandsBack the number of the question that is answered, 0 if
	// the sender leaves.
	Ask uint32
}

const termSize = 24

// Append appends the 24 bytes of p to dst.
func (p TermPacket) Append(dst []byte) []byte {
	return put32(put32(put64(put64(dst, p.Term), p.Promised), p.Flags), p.Ask)
}

// Decode sets p from b, which is 24 bytes long. A term above the promise is
// refused: a node promises what it writes under. A flag
// that a later version has is ignored.
func (p *TermPacket) Decode(b []byte) error {
	if len(b) != termSize {
		return short(CmdTerm, b, termSize)
	}
	*p = TermPacket{Term: be64(b), Promised: be64(b[8:]), Flags: be32(b[16:]), Ask: be32(b[20:])}
	if p.Term > p.Promised {
		return &ProtocolError{Packet: CmdTerm, Field: "term", Got: p.Term, Want: span64{p.Promised}}
	}
	return nil
}

// span64 is the values up to this one.
type span64 struct{ max uint64 }

func (s span64) String() string { return fmt.Sprintf("at most %d", s.max) }
