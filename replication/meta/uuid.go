package meta

import "fmt"

// UUIDJustCreated is the current UUID of metadata that holds no data
// generation yet (drbd84-protocol, 5.1: value 4).
const UUIDJustCreated uint64 = 4

// UUIDs are the four generation UUIDs of one copy. Bit 0 of each is a mark of
// the Primary role and not part of its identity.
type UUIDs struct {
	Current uint64    // generation of the data on this disk
	Bitmap  uint64    // generation the peer had when tracking began, 0 if not tracking
	History [2]uint64 // earlier generations, the youngest first
}

// String is the form of drbdadm get-gi, without its flags.
func (u UUIDs) String() string {
	return fmt.Sprintf("%016X:%016X:%016X:%016X", u.Current, u.Bitmap, u.History[0], u.History[1])
}
