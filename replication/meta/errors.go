package meta

import (
	"errors"
	"fmt"
)

// A CorruptError says what is damaged, torn or impossible in metadata, and
// where. Err, if set, is the sentinel or cause behind it.
type CorruptError struct {
	Offset int64 // bytes from the start of the metadata device, -1 if not known
	What   string
	Err    error
}

func (e *CorruptError) Error() string {
	if e.Offset < 0 {
		return "metadata: " + e.What
	}
	return fmt.Sprintf("metadata at byte %d: %s", e.Offset, e.What)
}

// Unwrap returns the sentinel or cause, nil if there is none.
func (e *CorruptError) Unwrap() error { return e.Err }

// A VersionError is metadata of a format that Pollux does not use.
type VersionError struct {
	Version string // "v07", "v09"
}

func (e *VersionError) Error() string {
	return e.Version + " metadata found; Pollux uses v08 (DRBD 8.4)"
}

// A ShrunkError is a backing device that has become smaller than the
// replicated device it holds data of (drbd84-protocol, 8.3: attach refused).
type ShrunkError struct {
	Agreed, Usable uint64 // sectors
}

func (e *ShrunkError) Error() string {
	return fmt.Sprintf("device shrunk: %d sectors were in use, %d sectors are left", e.Agreed, e.Usable)
}

var (
	// ErrNoMetadata means that there is no DRBD superblock where it should be.
	ErrNoMetadata = errors.New("no valid meta data found")
	// ErrTooSmall means that the device has no room for metadata and data.
	ErrTooSmall = errors.New("device too small for metadata")
	// ErrNoLog means that not one block of the activity log is readable as such.
	ErrNoLog = errors.New("activity log unusable")
	// ErrUnclean means that the activity log has to be applied first.
	ErrUnclean = errors.New("unclean metadata: the activity log has to be applied")
	// ErrALFull means that no idle slot is left in the activity log; wait for requests to end.
	ErrALFull = errors.New("activity log full")
	// ErrALBusy means that the activity log cannot change while it is in use.
	ErrALBusy = errors.New("activity log in use")
)
