package metacli

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/pollux-project/pollux/replication/meta"
)

const noMetadata = "No valid meta data found"

// newLayout is the layout with the default activity log; the size of the data
// device isn't known if metadata is external.
func (c *command) newLayout(stripes, stripeSize4k int) (meta.Layout, error) {
	if c.place == meta.Internal {
		return meta.NewLayout(c.place, 0, c.dev.Size(), 0, stripes, stripeSize4k)
	}
	return meta.NewLayout(c.place, c.index, 0, c.dev.Size(), stripes, stripeSize4k)
}

// read reads the superblock. If ok is false it has said why.
func (c *command) read() (sb meta.Superblock, ok bool) {
	l, err := c.newLayout(1, 8)
	if err != nil {
		fmt.Fprintf(c.Stderr, "%s: %v\n%s\n", c.path, err, noMetadata)
		return sb, false
	}
	c.layout = l
	sb, l, err = meta.ReadSuperblock(c.dev, l)
	if err == nil {
		c.layout = l
		return sb, true
	}
	if !errors.Is(err, meta.ErrNoMetadata) {
		fmt.Fprintf(c.Stderr, "%s: %v\n", c.path, err)
	}
	fmt.Fprintln(c.Stderr, noMetadata)
	return sb, false
}

// done prints an error of a command on valid metadata and gives the exit code.
func (c *command) done(err error) int {
	if err == nil {
		return ExitDone
	}
	if errors.Is(err, meta.ErrInconsistent) {
		fmt.Fprintln(c.Stderr, err)
		return ExitState
	}
	fmt.Fprintf(c.Stderr, "%s: %v\n", c.path, err)
	return ExitRefused
}

func (c *command) getGI() int {
	sb, ok := c.read()
	if !ok {
		return ExitRefused
	}
	fmt.Fprintln(c.Stdout, meta.GetGI(sb))
	return ExitDone
}

func (c *command) showGI() int {
	sb, ok := c.read()
	if !ok {
		return ExitRefused
	}
	fmt.Fprint(c.Stdout, meta.ShowGI(sb))
	return ExitDone
}

func (c *command) setGI() int {
	if len(c.args) == 0 {
		fmt.Fprintln(c.Stderr, "Required Argument missing")
		return ExitArgument
	}
	sb, ok := c.read()
	if !ok {
		return ExitRefused
	}
	changed := sb
	if err := meta.SetGI(&changed, c.args[0]); err != nil {
		fmt.Fprintln(c.Stderr, err)
		return ExitArgument
	}
	fmt.Fprintf(c.Stdout, "previously %s\nset GI to  %s\n", meta.GetGI(sb), meta.GetGI(changed))
	if !c.confirm("Write new GI to disk?") {
		return c.cancelled()
	}
	if err := meta.WriteSuperblock(c.dev, c.layout, changed); err != nil {
		return c.done(err)
	}
	return c.done(c.dev.Sync())
}

func (c *command) dump() int {
	sb, ok := c.read()
	if !ok {
		return ExitRefused
	}
	if !sb.Clean() {
		fmt.Fprintln(c.Stderr, `Found meta data is "unclean", please apply-al first`)
		if !c.isForced {
			return ExitRefused
		}
	}
	now := c.Now()
	return c.done(meta.Dump(c.Stdout, c.dev, c.layout, meta.DumpInfo{
		Date:    now.Format("2006-01-02 15:04:05 -0700") + fmt.Sprintf(" [%d]", now.Unix()),
		Host:    c.Host,
		Command: strings.Join(c.Args, " "),
	}))
}

// parseFile parses the dump that the command names, "-" or nothing being
// standard input. A code of ExitDone means success.
func (c *command) parseFile() (*meta.DumpText, int) {
	in := c.Stdin
	if len(c.args) > 0 && c.args[0] != "-" {
		f, err := os.Open(c.args[0])
		if err != nil {
			fmt.Fprintf(c.Stderr, "open of '%s' failed.\n%v\n", c.args[0], err)
			return nil, ExitUsage
		}
		defer func() { _ = f.Close() }() // only read
		in = f
	}
	d, err := meta.ParseDump(in)
	if err != nil {
		fmt.Fprintln(c.Stderr, err)
		return nil, ExitArgument
	}
	return d, ExitDone
}

func (c *command) verifyDump() int {
	_, code := c.parseFile()
	return code
}

func (c *command) restore() int {
	d, code := c.parseFile()
	if code != ExitDone {
		return code
	}
	l, err := c.newLayout(int(d.ALStripes), int(d.ALStripeSize4k))
	if err != nil {
		return c.layoutRefused(err)
	}
	c.layout = l
	if _, _, err := meta.ReadSuperblock(c.dev, l); err == nil {
		if !c.confirm("Valid meta-data in place, overwrite?") {
			return c.cancelled()
		}
		fmt.Fprintln(c.Stderr, "reinitializing")
	} else if code := c.mayOverwrite(); code != ExitDone {
		return code
	}
	if err := meta.Restore(c.dev, l, d); err != nil {
		return c.done(err)
	}
	fmt.Fprintln(c.Stdout, "Successfully restored meta data")
	return ExitDone
}

func (c *command) applyAL() int {
	sb, ok := c.read()
	if !ok {
		return ExitRefused
	}
	did, err := meta.ApplyAL(c.dev, c.layout)
	for _, e := range did.Beyond {
		first, _ := e.Bits()
		fmt.Fprintf(c.Stderr, "extent %d beyond end of bitmap! (%d >= %d)\n", e, first/8, meta.BitmapBytes(sb.LASize))
	}
	if err == nil && len(did.Hot) > 0 {
		fmt.Fprintf(c.Stderr, "Marked additional %s as out-of-sync based on AL.\n", meta.HumanKB(did.NewBits*4))
	}
	return c.done(err)
}

func (c *command) wipe() int {
	l, err := c.newLayout(1, 8)
	version := ""
	if err == nil {
		block := make([]byte, meta.BlockSize)
		if _, err := c.dev.ReadAt(block, l.Superblock); err != nil {
			return c.done(err)
		}
		version = meta.MetadataVersion(block)
	}
	switch version {
	case "v08":
	case "":
		fmt.Fprintln(c.Stderr, "There appears to be no drbd meta data to wipe out?")
		return ExitDone
	default:
		fmt.Fprintf(c.Stderr, "%s: %s meta data found, only v08 is known here; nothing was wiped\n", c.path, version)
		return ExitRefused
	}
	if !c.confirm("Do you really want to wipe out the DRBD meta data?") {
		return c.cancelled()
	}
	fmt.Fprintln(c.Stdout, "Wiping meta data...")
	if err := meta.Wipe(c.dev, l); err != nil {
		return c.done(err)
	}
	fmt.Fprintln(c.Stdout, "DRBD meta data block successfully wiped out.")
	return ExitDone
}

func (c *command) outdate() int {
	if _, ok := c.read(); !ok {
		return ExitRefused
	}
	return c.done(meta.Outdate(c.dev, c.layout))
}

func (c *command) invalidate() int {
	if _, ok := c.read(); !ok {
		return ExitRefused
	}
	return c.done(meta.Invalidate(c.dev, c.layout))
}

func (c *command) dstate() int {
	sb, ok := c.read()
	if !ok {
		return ExitRefused
	}
	fmt.Fprintln(c.Stdout, meta.DState(sb.Flags))
	return ExitDone
}

// checkResize differs from drbdmeta, which remembers the last known size of
// each minor in /var/lib/drbd and moves internal metadata after the device has
// grown. Nothing is remembered here, so nothing is moved: metadata that isn't
// where it should be is refused, and the way to move it is named.
func (c *command) checkResize() int {
	if _, ok := c.read(); ok {
		return ExitDone
	}
	if c.place == meta.Internal {
		fmt.Fprintf(c.Stderr, "%s has %d bytes. If it was resized while down, give it its old size again,\n"+
			"dump-md into a file, resize, restore-md from that file.\n", c.path, c.dev.Size())
	}
	return ExitRefused
}
