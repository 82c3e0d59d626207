package meta

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// ErrInconsistent means that an Inconsistent disk cannot become Outdated.
var ErrInconsistent = errors.New("Device is inconsistent.") //nolint:staticcheck // drbdmeta's text

// giFlags are the flags of get-gi, in its order.
var giFlags = [...]Flags{
	MDFConsistent, MDFWasUpToDate, MDFPrimaryInd, MDFConnectedInd,
	MDFFullSync, MDFPeerOutdated, MDFCrashedPrimary,
}

// DState is the state of the disk before any handshake, as drbdmeta dstate has
// it: UpToDate only if the peer is known to be worse.
func DState(f Flags) drbd.DiskState {
	switch {
	case f&MDFConsistent == 0:
		return drbd.Inconsistent
	case f&MDFWasUpToDate == 0:
		return drbd.Outdated
	case f&MDFPeerOutdated != 0:
		return drbd.UpToDate
	}
	return drbd.Consistent
}

// Outdate marks the data as Outdated, durably. ErrInconsistent if it's worse.
func Outdate(dev Device, l Layout) error {
	return change(dev, l, func(sb *Superblock) error {
		if sb.Flags&MDFConsistent == 0 {
			return ErrInconsistent
		}
		sb.Flags &^= MDFWasUpToDate
		return nil
	})
}

// Invalidate marks the data as Inconsistent and all of it as out of sync,
// durably.
func Invalidate(dev Device, l Layout) error {
	return change(dev, l, func(sb *Superblock) error {
		sb.Flags = sb.Flags&^(MDFConsistent|MDFWasUpToDate) | MDFFullSync
		return nil
	})
}

// change is the durable read-modify-write of a superblock.
func change(dev Device, l Layout, f func(*Superblock) error) error {
	sb, l, err := ReadSuperblock(dev, l)
	if err != nil {
		return err
	}
	if err := f(&sb); err != nil {
		return err
	}
	return storeSuperblock(dev, l, sb)
}

// GetGI is the line of drbdadm get-gi: UUIDs and flags.
func GetGI(sb Superblock) string {
	var b strings.Builder
	b.WriteString(sb.UUIDs.String())
	for _, f := range giFlags {
		if sb.Flags&f != 0 {
			b.WriteString(":1")
		} else {
			b.WriteString(":0")
		}
	}
	return b.String()
}

// SetGI changes the UUIDs and flags of sb to those of s, in the form of GetGI.
// A field that is left out or empty stays as it is. UUIDs are hexadecimal, 0x
// is allowed.
func SetGI(sb *Superblock, s string) error {
	fields := strings.Split(s, ":")
	if len(fields) > 4+len(giFlags) {
		return fmt.Errorf("%q has %d fields, at most %d are known", s, len(fields), 4+len(giFlags))
	}
	out := *sb
	uuids := [...]*uint64{&out.UUIDs.Current, &out.UUIDs.Bitmap, &out.UUIDs.History[0], &out.UUIDs.History[1]}
	for i, f := range fields {
		if f == "" {
			continue
		}
		if i < len(uuids) {
			digits := strings.TrimPrefix(strings.TrimPrefix(f, "0x"), "0X")
			v, err := strconv.ParseUint(digits, 16, 64)
			if err != nil {
				return fmt.Errorf("'%s' is not a number.", f) //nolint:staticcheck // drbdmeta's text
			}
			*uuids[i] = v
			continue
		}
		switch flag := giFlags[i-len(uuids)]; f {
		case "0":
			out.Flags &^= flag
		case "1":
			out.Flags |= flag
		default:
			return fmt.Errorf("'%s' for a flag, 0 or 1 expected", f)
		}
	}
	*sb = out
	return nil
}

const giPicture = `
       +--<  Current data generation UUID  >-
       |               +--<  Bitmap's base data generation UUID  >-
       |               |                 +--<  younger history UUID  >-
       |               |                 |         +-<  older history  >-
       V               V                 V         V
%s
                                                                    ^ ^ ^ ^ ^ ^ ^
                                      -<  Data consistency flag  >--+ | | | | | |
                             -<  Data was/is currently up-to-date  >--+ | | | | |
                                  -<  Node was/is currently primary  >--+ | | | |
                                  -<  Node was/is currently connected  >--+ | | |
         -<  Node was in the progress of setting all bits in the bitmap  >--+ | |
                        -<  The peer's disk was out-dated or inconsistent  >--+ |
      -<  This node was a crashed primary, and has not seen its peer since   >--+

flags: %s
meta-data: %s
`

// ShowGI is the text of drbdadm show-gi: GetGI explained.
func ShowGI(sb Superblock) string {
	has := func(f Flags) bool { return sb.Flags&f != 0 }
	pick := func(f Flags, yes, no string) string {
		if has(f) {
			return yes
		}
		return no
	}
	disk := "Inconsistent"
	if has(MDFConsistent) {
		disk = pick(MDFWasUpToDate, "UpToDate", "Outdated")
	}
	words := []string{
		pick(MDFCrashedPrimary, "crashed ", "") + pick(MDFPrimaryInd, "Primary", "Secondary"),
		pick(MDFConnectedInd, "Connected", "StandAlone"), disk,
	}
	if has(MDFFullSync) {
		words = append(words, "need full sync")
	}
	if has(MDFPeerOutdated) {
		words = append(words, "peer Outdated")
	}
	clean := "need apply-al"
	if sb.Clean() {
		clean = "clean"
	}
	text := fmt.Sprintf(giPicture, GetGI(sb), strings.Join(words, ", "), clean)
	if sb.LASize == 0 {
		return text + "zero size device -- never seen peer yet?\n"
	}
	return text + fmt.Sprintf("last agreed size: %s (%d sectors)\nlast agreed max bio size: %d Byte\n",
		HumanKB(uint64(sb.LASize)/2), uint64(sb.LASize), sb.PeerMaxBio)
}

// HumanKB is an amount of kB (1024 bytes) as DRBD's tools print it: at most
// four digits, rounded.
func HumanKB(kb uint64) string {
	const units = "KMGTPE"
	i := 0
	for kb >= 10000 && i < len(units)-1 {
		kb = kb>>10 + kb>>9&1
		i++
	}
	return fmt.Sprintf("%d %cB", kb, units[i])
}
