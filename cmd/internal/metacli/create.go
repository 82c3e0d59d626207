package metacli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pollux-project/pollux/replication/meta"
)

// Defaults of the activity log's geometry.
const (
	defaultStripes  = 1
	defaultStripeKB = 32
)

func (c *command) create() int {
	stripes, kb := defaultStripes, defaultStripeKB
	if c.stripes >= 0 {
		stripes = c.stripes
	}
	if c.stripeKB >= 0 {
		kb = c.stripeKB
	}
	switch blocks := int64(stripes) * int64(kb/4); {
	case kb%4 != 0 || blocks < 8:
		fmt.Fprintln(c.Stderr, "invalid (too small) al-stripe* settings")
		return ExitArgument
	case blocks > 4194304:
		fmt.Fprintln(c.Stderr, "invalid (too large) al-stripe* settings")
		return ExitArgument
	}
	l, err := c.newLayout(stripes, kb/4)
	if err != nil {
		return c.layoutRefused(err)
	}
	c.layout = l
	if code := c.mayOverwrite(); code != ExitDone {
		return code
	}
	fmt.Fprintf(c.Stderr, "initializing bitmap (%s) to all zero\n", meta.HumanKB(uint64(l.BitmapBytes)/1024))
	fmt.Fprint(c.Stdout, "initializing activity log\nWriting meta data...\n")
	var opts meta.CreateOptions
	if c.peerMaxBio > 0 {
		opts.PeerMaxBio = uint32(c.peerMaxBio)
	}
	if err := meta.Create(c.dev, l, opts); err != nil {
		return c.done(err)
	}
	fmt.Fprintln(c.Stdout, "New drbd meta data block successfully created.")
	return ExitDone
}

// layoutRefused says why a device can't hold the metadata asked for.
func (c *command) layoutRefused(err error) int {
	at := int64(c.index) << 27 // slots of 128 MiB
	switch {
	case errors.Is(err, meta.ErrTooSmall) && c.place == meta.Indexed:
		fmt.Fprintf(c.Stderr, "Device too small: expecting meta data block at\nbyte offset %d, but %s is only %d bytes.\n", at, c.path, c.dev.Size())
	case errors.Is(err, meta.ErrTooSmall):
		fmt.Fprintf(c.Stderr, "%s is only %d bytes. That's not enough.\n%v\n", c.path, c.dev.Size(), err)
	default:
		fmt.Fprintf(c.Stderr, "%s: %v\n", c.path, err)
	}
	return ExitArgument
}

// mayOverwrite looks for anything of value and asks about it. The exit code is
// ExitDone if metadata may be written.
//
// A file system that metadata would cut off or overwrite is refused even with
// --force, as drbdmeta does; --ignore-sanity-checks is the way past that.
func (c *command) mayOverwrite() int {
	found, err := meta.DetectContent(c.dev, c.dev.Size())
	if err != nil {
		return c.done(err)
	}
	slot, err := c.slotContent(found)
	if err != nil {
		return c.done(err)
	}
	asked := false
	for _, f := range append(found, slot...) {
		if !f.Metadata || c.isOtherSlot(f) {
			continue
		}
		asked = true
		fmt.Fprintf(c.Stderr, "You want me to create a v08 style %s meta data block.\n"+
			"There appears to be a %s block\nalready in place on %s at byte offset %d\n",
			placeName(c.place), f.Name, c.path, f.Offset)
		if !c.confirm("Do you really want to overwrite the existing meta-data?") {
			return c.cancelled()
		}
	}
	for _, f := range found {
		if f.Metadata {
			continue
		}
		asked = true
		if code := c.overContent(f); code != ExitDone {
			return code
		}
	}
	if asked {
		return ExitDone
	}
	blank, err := meta.Blank(c.dev, c.dev.Size(), c.layout)
	if err != nil {
		return c.done(err)
	}
	if blank {
		return ExitDone
	}
	c.sayOffsets()
	fmt.Fprint(c.Stdout, "Found some data\n\n ==> This might destroy existing data! <==\n")
	if !c.confirm("Do you want to proceed?") {
		return c.cancelled()
	}
	return ExitDone
}

// isOtherSlot reports whether f is another slot of the indexed device that this
// one is to be written on, which is no reason against it. The superblock of a
// slot stands at its beginning; no other kind of v08 metadata has it there.
func (c *command) isOtherSlot(f meta.Content) bool {
	const slot = 128 << 20
	return c.place == meta.Indexed && f.Offset != c.layout.Superblock && f.Offset%slot == 0 &&
		(f.Offset == 0 || strings.HasPrefix(f.Name, "v08"))
}

// slotContent is the metadata in this very place if DetectContent did not look
// there.
func (c *command) slotContent(found []meta.Content) ([]meta.Content, error) {
	at := c.layout.Superblock
	for _, f := range found {
		if f.Metadata && f.Offset == at {
			return nil, nil
		}
	}
	block := make([]byte, meta.BlockSize)
	if _, err := c.dev.ReadAt(block, at); err != nil {
		return nil, err
	}
	v := meta.MetadataVersion(block)
	if v == "" {
		return nil, nil
	}
	return []meta.Content{{Name: fmt.Sprintf("%s %s meta data", v, placeName(c.place)), Offset: at, Metadata: true}}, nil
}

func placeName(p meta.Placement) string {
	switch p {
	case meta.Internal:
		return "flexible-size internal"
	case meta.FlexExternal:
		return "flexible-size external"
	default:
		return "fixed-size indexed"
	}
}

func (c *command) sayOffsets() {
	fmt.Fprintf(c.Stdout, "md_offset %d\nal_offset %d\nbm_offset %d\n\n", c.layout.Superblock, c.layout.AL, c.layout.Bitmap)
}

// overContent decides about one foreign content.
func (c *command) overContent(f meta.Content) int {
	c.sayOffsets()
	fmt.Fprintf(c.Stdout, "Found %s\n", f.Name)
	isInternal := c.place == meta.Internal
	usable := c.layout.Usable.Bytes()
	if isInternal {
		if f.IsUsed() {
			fmt.Fprintf(c.Stdout, "%12d kB data area apparently used\n", f.UsedBytes/1024)
		}
		fmt.Fprintf(c.Stdout, "%12d kB left usable by current configuration\n", usable/1024)
	}
	if isInternal && f.IsUsed() && f.UsedBytes <= usable {
		fmt.Fprint(c.Stdout, "\nEven though it looks like this would place the new meta data into\n"+
			"unused space, you still need to confirm, as this is only a guess.\n")
		if !c.confirm("Do you want to proceed?") {
			return c.cancelled()
		}
		return ExitDone
	}
	if c.ignoreSanity {
		fmt.Fprint(c.Stdout, "\n ==> This will destroy existing data! <==\n")
		if !c.confirm("Do you want to proceed?") {
			return c.cancelled()
		}
		return ExitDone
	}
	if isInternal {
		fmt.Fprint(c.Stdout, "\nDevice size would be truncated, which\nwould corrupt data and result in\n"+
			"'access beyond end of device' errors.\nYou need to either\n"+
			"   * use external meta data (recommended)\n   * shrink that filesystem first\n"+
			"   * zero out the device (destroy the filesystem)\nOperation refused.\n\n")
	} else {
		fmt.Fprint(c.Stdout, "\nThis would corrupt existing data.\nIf you want me to do this, you need to zero out the first part\n"+
			"of the device (destroy the content).\nYou should be very sure that you mean it.\nOperation refused.\n\n")
	}
	return ExitFilesystem
}
