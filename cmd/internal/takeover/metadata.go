package takeover

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/replication/meta"
)

// superblockFields is the part of the superblock that DRBD uses, in bytes. Source:
// drbd84-protocol, 8.2.
const superblockFields = 96

// bytesPerBit is the data that one bit of the bitmap stands for.
const bytesPerBit = 4096

// metadata looks at the metadata of an open volume.
func metadata(name string, v conf.Volume, d *Devices) []Finding {
	about := fmt.Sprintf("metadata %d", v.Number)
	pending, err := meta.PendingAL(d.Meta, d.Layout)
	if err != nil {
		return []Finding{metaProblem(about, name, v, err)}
	}
	sb, l, err := meta.ReadSuperblock(d.Meta, d.Layout)
	if err != nil {
		return []Finding{metaProblem(about, name, v, err)}
	}
	if sb.Flags&meta.MDFConsistent != 0 && sb.LASize > l.Usable {
		return []Finding{metaProblem(about, name, v, &meta.ShrunkError{Agreed: uint64(sb.LASize), Usable: uint64(l.Usable)})}
	}
	state := meta.DState(sb.Flags).String()
	if sb.Flags&meta.MDFConsistent != 0 && sb.Flags&meta.MDFWasUpToDate != 0 {
		state += ", and up to date when it was last used"
	}
	fs := []Finding{{About: about, Text: fmt.Sprintf("v08, %s: %s; data generation %016X", l.Placement, state, sb.UUIDs.Current)}}
	note := func(format string, args ...any) {
		fs = append(fs, Finding{Verdict: Note, About: about, Text: fmt.Sprintf(format, args...)})
	}
	fs = append(fs, logFinding(about, sb, pending))
	bitmap, err := meta.LoadBitmap(d.Meta, l, sb)
	if err != nil {
		return []Finding{metaProblem(about, name, v, err)}
	}
	switch dirty := bitmap.Weight() * bytesPerBit; {
	case sb.Flags&meta.MDFFullSync != 0:
		note("a full sync is pending: all of it will be copied, whoever owns it")
	case dirty > 0:
		note("%s are marked out of sync already", human(dirty))
	}
	switch {
	case sb.LASize == 0:
		note("it has never been connected: there is nothing to take over but the disk's size")
	case sb.LASize < l.Usable:
		note("the volume uses %s of %s: `polluxadm resize` can make it larger", human(uint64(sb.LASize)*512), human(uint64(l.Usable)*512))
	}
	if sb.Flags&meta.MDFConsistent == 0 && sb.LASize != 0 {
		note("this copy is Inconsistent: the good one is the peer's, and the resync goes on when it is connected")
	}
	return append(fs, reserved(about, sb, d)...)
}

// logFinding says what there is to be done with the activity log.
func logFinding(about string, sb meta.Superblock, pending meta.Applied) Finding {
	f := Finding{About: about}
	crashed := sb.Flags&(meta.MDFPrimaryInd|meta.MDFCrashedPrimary) != 0
	switch extents := len(pending.Hot); {
	case pending.WasClean && crashed:
		f.Verdict, f.Text = Note, "this node was Primary when it went down; its activity log is applied already"
	case pending.WasClean:
		f.Text = "shut down cleanly"
	case extents == 0:
		f.Text = "not marked clean, as drbd.ko leaves it; the activity log has nothing to apply"
	default:
		f.Verdict = Note
		f.Text = fmt.Sprintf("this node went down while it was writing: its activity log names %d extents, %s, which will be marked out of sync", extents, human(uint64(extents)<<22))
	}
	return f
}

// reserved says what is in the superblock's bytes that DRBD does not use, and
// where a term record lies (docs/adr/0008).
func reserved(about string, sb meta.Superblock, d *Devices) []Finding {
	if sb.Term.Exists() {
		return []Finding{{About: about, Text: fmt.Sprintf("a record of term %d, promised %d: nothing but Pollux has written since", sb.Term.Term, sb.Term.Promised)}}
	}
	raw, plain := make([]byte, meta.BlockSize), make([]byte, meta.BlockSize)
	if _, err := d.Meta.ReadAt(raw, d.Layout.Superblock); err != nil {
		return nil // it was read a moment ago; the attach will say more
	}
	sb.Encode(plain)
	if !bytes.Equal(raw[superblockFields:], plain[superblockFields:]) {
		return []Finding{{Verdict: Note, About: about, Text: "the superblock's reserved bytes are not empty; they will be cleared, as drbd.ko does"}}
	}
	return nil
}

// metaProblem says why metadata can't be used, and what to do.
func metaProblem(about, name string, v conf.Volume, err error) Finding {
	f := Finding{Verdict: Wrong, About: about, Text: err.Error()}
	var version *meta.VersionError
	var shrunk *meta.ShrunkError
	var corrupt *meta.CorruptError
	switch {
	case errors.As(err, &version) && version.Version == "v09":
		f.Do = []string{
			"stay with DRBD 9, whose format this is; or, if the peer is DRBD 8.4 or Pollux and has all the data, new metadata and a full sync:",
			fmt.Sprintf("polluxmeta %d v08 %s create-md", v.Minor, strings.Join(MetaWords(v), " ")),
		}
	case errors.As(err, &version):
		f.Do = []string{"drbdadm create-md " + name + "     # offers to convert it to v08"}
	case errors.Is(err, meta.ErrNoMetadata):
		f.Do = []string{
			"drbdadm dump-md " + name + "     # does DRBD find it?",
			"drbdadm check-resize " + name + "     # if the disk was resized while DRBD was down",
		}
	case errors.As(err, &shrunk):
		f.Do = []string{"give " + v.Disk + " its old size back"}
	case errors.As(err, &corrupt):
		f.Do = []string{
			"drbdadm apply-al " + name + "     # what does DRBD say?",
			"if the peer has good data: drbdadm invalidate " + name + ", then repeat this command: a full sync follows",
		}
	default:
		f.Do = []string{"check the disk"}
	}
	return f
}

// MetaWords are the words DEVICE INDEX by which polluxmeta and drbdmeta are told
// where a volume's metadata is.
func MetaWords(v conf.Volume) []string {
	switch Placement(v) {
	case meta.Internal:
		return []string{v.Disk, "internal"}
	case meta.FlexExternal:
		return []string{v.MetaDisk, "flexible"}
	default:
		return []string{v.MetaDisk, strconv.Itoa(v.MetaIndex)}
	}
}
