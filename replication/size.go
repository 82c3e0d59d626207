package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// maxVolumeSize is the largest volume that DRBD's tools accept: 1 PiB.
// Source: drbd84-protocol, 10.7.
const maxVolumeSize = drbd.Sector(1 << 41)

// SizeInput is what decides the size of a volume when a P_SIZES arrives, or
// when our own device changed. All sizes are sectors, 0 is none or unknown.
type SizeInput struct {
	MySize      drbd.Sector // usable size of our backing device (d_size), 0 if diskless
	PeerSize    drbd.Sector // the peer's d_size
	PeerCurrent drbd.Sector // what the peer exports (c_size)
	Agreed      drbd.Sector // last agreed size, from our superblock (la_size)
	MyUser      drbd.Sector // disk { size } here
	PeerUser    drbd.Sector // disk { size } of the peer (u_size)
	Current     drbd.Sector // what we export now

	State  drbd.State // ours, before the change
	Forced bool       // resize --assume-peer-has-space: the peer's size counts as ours
}

// UserSize is the user size in force from now on: at the first exchange of a
// connection the smaller one that is set, later the peer's (it resized).
func (in SizeInput) UserSize() drbd.Sector {
	if in.State.Conn <= drbd.WFReportParams {
		return minNonZero(in.MyUser, in.PeerUser)
	}
	return in.PeerUser
}

func minNonZero(a, b drbd.Sector) drbd.Sector {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// A SizeError is a peer whose size we cannot take: Offered is what would be
// agreed, Current what we export, both in sectors.
type SizeError struct {
	Offered, Current drbd.Sector
	Diskless         bool // we have no disk and are Primary
}

func (e *SizeError) Error() string {
	switch {
	case e.Offered > maxVolumeSize:
		return fmt.Sprintf("peer's size of %d sectors is above the limit of %d", e.Offered, maxVolumeSize)
	case e.Diskless:
		return fmt.Sprintf("peer's device is too small: %d sectors, but this diskless Primary exports %d; demote this node first", e.Offered, e.Current)
	default:
		return fmt.Sprintf("peer's disk is too small: %d sectors, but this node exports %d and will not shrink good data; enlarge the peer's device", e.Offered, e.Current)
	}
}

// AgreeSize is the size of the volume that follows from in, in sectors
// (drbd84-protocol, 1.7.3). It is 0 if nobody knows one. The error is a
// *SizeError: the connection must be given up.
func AgreeSize(in SizeInput) (drbd.Sector, error) {
	if in.MySize == 0 {
		return disklessSize(in)
	}
	size := backedSize(in)
	if u := in.UserSize(); u != 0 && u <= size {
		size = u // a larger user size cannot be had and is ignored
	}
	switch {
	case size > maxVolumeSize:
		return 0, &SizeError{Offered: size, Current: in.Current}
	case size < in.Current && in.State.Disk >= drbd.Outdated && !onlineShrink(in.State):
		return 0, &SizeError{Offered: size, Current: in.Current}
	}
	return size, nil
}

// backedSize is what the disks of both sides can hold.
func backedSize(in SizeInput) drbd.Sector {
	peer := in.PeerSize
	if in.Forced {
		peer = in.MySize
	}
	if peer != 0 {
		return min(in.MySize, peer)
	}
	return minNonZero(in.Agreed, in.MySize)
}

// onlineShrink: among connected nodes with disks a smaller size is a request
// of the operator, not a wrong device.
func onlineShrink(s drbd.State) bool {
	return s.Conn >= drbd.Connected && s.Pdsk != drbd.Diskless
}

// disklessSize: without a disk the peer's word counts, since it knows better
// what was agreed last.
func disklessSize(in SizeInput) (drbd.Sector, error) {
	size := in.PeerCurrent
	if size == 0 {
		size = in.PeerUser
	}
	if size == 0 {
		size = in.PeerSize
	}
	switch {
	case size == 0 || size == in.Current:
		return in.Current, nil
	case in.Current != 0 && in.PeerSize == 0:
		return in.Current, nil // diskless as well: it knows no better
	case size > maxVolumeSize:
		return 0, &SizeError{Offered: size, Current: in.Current}
	case size < in.Current && in.State.Role == drbd.Primary:
		return 0, &SizeError{Offered: size, Current: in.Current, Diskless: true}
	}
	return size, nil
}
