package adm

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Version is the version of the protocol that this package speaks.
const Version = 1

// Bounds of one line in bytes, newline included.
const (
	// MaxRequest is ample for a name and a few options.
	MaxRequest = 16 << 10
	// MaxResponse holds the status of some thousand volumes.
	MaxResponse = 16 << 20
)

// maxName bounds resource, node and command names, in bytes; drbd.conf words
// have at most 128.
const maxName = 255

// Command is what a Request asks for.
type Command string

// The commands. All but hello, status, events, reload and lease name a resource.
const (
	CmdHello            Command = "hello"  // -> Hello
	CmdStatus           Command = "status" // of one resource or all -> Status
	CmdEvents           Command = "events" // of one resource or all; turns the connection into a stream of Event
	CmdReload           Command = "reload" // read all configuration files again
	CmdPerf             Command = "perf"   // -> Perf; one volume or all; Reset
	CmdUp               Command = "up"
	CmdDown             Command = "down"
	CmdAdjust           Command = "adjust"
	CmdAttach           Command = "attach" // one volume or all
	CmdDetach           Command = "detach" // one volume or all; Force
	CmdConnect          Command = "connect"
	CmdDisconnect       Command = "disconnect"
	CmdPrimary          Command = "primary"
	CmdSecondary        Command = "secondary"
	CmdInvalidate       Command = "invalidate"        // one volume or all
	CmdInvalidateRemote Command = "invalidate-remote" // one volume or all
	CmdOutdate          Command = "outdate"
	CmdResumeIO         Command = "resume-io"        // frozen I/O goes on: the lost peer is down
	CmdSuspendIO        Command = "suspend-io"       // I/O waits until resume-io
	CmdVerify           Command = "verify"           // one volume or all; StartSector, StopSector
	CmdPauseSync        Command = "pause-sync"       // one volume or all
	CmdResumeSync       Command = "resume-sync"      // one volume or all
	CmdResize           Command = "resize"           // one volume or all; SizeSectors, AssumeClean, AssumePeerHasSpace
	CmdNewCurrentUUID   Command = "new-current-uuid" // one volume or all; ClearBitmap
	CmdDiskOptions      Command = "disk-options"     // one volume or all; Options, SetDefaults
	CmdNetOptions       Command = "net-options"      // Options, SetDefaults
	CmdForget           Command = "forget"           // a resource that is down and that no file defines for Pollux any more
	CmdPromiseTerm      Command = "promise-term"     // Term: no write of a lower one is accepted from now on
	CmdFreeze           Command = "freeze"           // reads and writes wait until thaw, or until this node has a new term
	CmdThaw             Command = "thaw"             // ends freeze; what the terms freeze stays frozen
	CmdFailsafe         Command = "failsafe"         // a Primary asks its peer to stand back: it does not take over when the connection ends
	CmdFailsafeOver     Command = "failsafe-over"    // ends failsafe
	CmdLease            Command = "lease"            // LeaseMS: after that, reads of a shared term wait while the peer is silent. Of one resource, or of all that polluxha manages
	CmdExport           Command = "export"           // Incarnation -> Exports; ends the exports of any other
	CmdUnexport         Command = "unexport"         // Incarnation, or "" for whatever there is
)

// NeedsResource reports whether a request with c must name a resource, and
// whether c is a command of this version at all.
func (c Command) NeedsResource() (needs, known bool) {
	switch c {
	case CmdHello, CmdStatus, CmdEvents, CmdReload, CmdLease:
		return false, true
	case CmdPerf, CmdUp, CmdDown, CmdAdjust, CmdAttach, CmdDetach, CmdConnect, CmdDisconnect, CmdPrimary,
		CmdSecondary, CmdInvalidate, CmdInvalidateRemote, CmdOutdate, CmdResumeIO, CmdSuspendIO,
		CmdVerify, CmdPauseSync, CmdResumeSync, CmdResize, CmdNewCurrentUUID, CmdDiskOptions, CmdNetOptions, CmdForget,
		CmdPromiseTerm, CmdFreeze, CmdThaw, CmdFailsafe, CmdFailsafeOver, CmdExport, CmdUnexport:
		return true, true
	}
	return false, false
}

// A Request is one line from the client.
type Request struct {
	V        int     `json:"v"`
	ID       uint64  `json:"id"` // chosen by the client, comes back in the response
	Cmd      Command `json:"cmd"`
	Resource string  `json:"resource,omitempty"`
	Volume   *int    `json:"volume,omitempty"` // nil: all volumes of the resource
	Args     Args    `json:"args,omitzero"`
}

// Args are the options of all commands; each command's zero value is the
// plain form.
type Args struct {
	Force         bool `json:"force,omitempty"`           // detach, disconnect, primary
	DiscardMyData bool `json:"discard_my_data,omitempty"` // connect
	Tentative     bool `json:"tentative,omitempty"`       // connect: only show what would happen

	StartSector        uint64 `json:"start_sector,omitempty"`          // verify; VerifyContinue
	StopSector         uint64 `json:"stop_sector,omitempty"`           // verify; 0 is the end
	SizeSectors        uint64 `json:"size_sectors,omitempty"`          // resize; 0 is all there is
	AssumeClean        bool   `json:"assume_clean,omitempty"`          // resize: the new part is equal on both
	AssumePeerHasSpace bool   `json:"assume_peer_has_space,omitempty"` // resize without the peer
	ClearBitmap        bool   `json:"clear_bitmap,omitempty"`          // new-current-uuid

	// Options are changed until adjust, by name and as the configuration would
	// have them; SetDefaults first gives all others their defaults.
	Options     map[string]string `json:"options,omitempty"`
	SetDefaults bool              `json:"set_defaults,omitempty"`

	SkipDisk bool `json:"skip_disk,omitempty"` // adjust: leave disks and their options alone
	SkipNet  bool `json:"skip_net,omitempty"`  // adjust: leave connection and net options alone

	Reset bool `json:"reset,omitempty"` // perf: later answers count from now on

	// Term is an arbiter's: of promise-term, and of primary, where 0 is the plain
	// command of an operator. Sole says that the arbiter's record for it names no
	// other copy.
	Term uint64 `json:"term,omitempty"`
	Sole bool   `json:"sole,omitempty"`
	// Confirm is the resource's name once more, from an operator who forces a
	// managed resource.
	Confirm string `json:"confirm,omitempty"`
	// Incarnation is one start of what uses the volumes: see ValidIncarnation.
	Incarnation string `json:"incarnation,omitempty"`
	// LeaseMS is how long the lease lasts from now, in milliseconds; 0 ends its
	// effect. See CmdLease.
	LeaseMS uint64 `json:"lease_ms,omitempty"`
}

// MaxLeaseMS is the longest lease that can be told: a day.
const MaxLeaseMS = 24 * 3600 * 1000

// maxIncarnation bounds an incarnation, in bytes.
const maxIncarnation = 64

// ValidIncarnation reports whether s names an incarnation: 1 to 64 letters,
// digits, dots, hyphens and underscores.
func ValidIncarnation(s string) bool {
	return s != "" && len(s) <= maxIncarnation && strings.Trim(s, "-._0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") == ""
}

// Exports is the answer to CmdExport.
type Exports struct {
	Incarnation string         `json:"incarnation"`
	Names       map[int]string `json:"names"` // of each volume's export
}

// Validate reports the first thing wrong with r, as a *ProtocolError.
func (r *Request) Validate() error {
	if r.V != Version {
		return &ProtocolError{What: fmt.Sprintf("version %d of the control protocol, this side speaks %d", r.V, Version)}
	}
	needs, known := r.Cmd.NeedsResource()
	switch {
	case !known:
		return &ProtocolError{What: fmt.Sprintf("unknown command %q", clip(string(r.Cmd)))}
	case needs && r.Resource == "":
		return &ProtocolError{What: fmt.Sprintf("command %q without a resource", r.Cmd)}
	case len(r.Resource) > maxName || strings.ContainsAny(r.Resource, "\x00\n"):
		return &ProtocolError{What: fmt.Sprintf("resource name %q", clip(r.Resource))}
	case r.Cmd == CmdExport && !ValidIncarnation(r.Args.Incarnation), r.Args.Incarnation != "" && !ValidIncarnation(r.Args.Incarnation):
		return &ProtocolError{What: fmt.Sprintf("incarnation %q: want 1 to %d letters, digits, dots, hyphens and underscores", clip(r.Args.Incarnation), maxIncarnation)}
	case r.Args.LeaseMS > MaxLeaseMS:
		return &ProtocolError{What: fmt.Sprintf("lease of %d ms, at most %d are taken", r.Args.LeaseMS, MaxLeaseMS)}
	case r.Volume != nil && (*r.Volume < 0 || *r.Volume > 65535):
		return &ProtocolError{What: fmt.Sprintf("volume %d is not within 0..65535", *r.Volume)}
	}
	return nil
}

// A Response answers the Request with the same ID.
type Response struct {
	V      int             `json:"v"`
	ID     uint64          `json:"id"`
	OK     bool            `json:"ok"`
	Code   int             `json:"code"`             // exit status for the client: 0, 5, 10, 11, 16, 17 or 20 (drbdsetup's)
	Number int             `json:"number,omitempty"` // DRBD's own: -1...-20 state change, 100...170 request
	Error  string          `json:"error,omitempty"`
	Advice string          `json:"advice,omitempty"` // one line: what to do next
	Data   json.RawMessage `json:"data,omitempty"`
}

// Err is the failure that r reports, an *Error, or nil.
func (r *Response) Err() error {
	if r.OK {
		return nil
	}
	code := r.Code
	if code == 0 {
		code = ExitEnvironment // a refusal must never look like success
	}
	return &Error{Exit: code, Number: r.Number, Text: r.Error, Advice: r.Advice}
}

// Exit statuses of drbdsetup, and of drbdadm that ran it.
const (
	ExitOK           = 0
	ExitUsage        = 1
	ExitLowerState   = 5  // state lower than Outdated; a wait ran into its timeout
	ExitRefused      = 10 // request refused; configuration invalid
	ExitStateChange  = 11 // state change refused, all but the next two
	ExitNoLocalDisk  = 16 // (-4)
	ExitNeedUpToDate = 17 // (-2)
	ExitEnvironment  = 20 // daemon absent, bad answer
	ExitFilesystem   = 40 // create-md would destroy a file system
)

// An Error is a refusal with everything that the user is to see of it.
type Error struct {
	Exit   int    // exit status for the client, never 0
	Number int    // DRBD's number, 0 if there is none
	Text   string // "r0: State change failed: (-2) Need access to UpToDate data"
	Advice string // one line, may be empty
}

func (e *Error) Error() string { return e.Text }

// StateExit is the exit status for a refused state change with DRBD's number
// (drbd-utils, drbdsetup: exit codes of state changes).
func StateExit(number int) int {
	switch number {
	case -2:
		return ExitNeedUpToDate
	case -4:
		return ExitNoLocalDisk
	case -16:
		return ExitLowerState
	}
	return ExitStateChange
}

// Hello describes the daemon.
type Hello struct {
	Version     string   `json:"version"`
	Protocol    int      `json:"protocol"`
	PID         int      `json:"pid"`
	Node        string   `json:"node"`
	BootID      string   `json:"boot_id"`
	ConfigFiles []string `json:"config_files"` // the resource files in use
	NBDListen   []string `json:"nbd_listen"`   // unix:PATH or ADDRESS:PORT
}

// Kinds of Event.
const (
	EventStatus = "status" // Resource holds the new status
	EventGone   = "gone"   // the resource called Name is no longer configured
	EventReady  = "ready"  // the initial dump is complete
)

// An Event is one line of an event stream.
type Event struct {
	V        int       `json:"v"`
	Kind     string    `json:"event"`
	Name     string    `json:"name,omitempty"`
	Resource *Resource `json:"resource,omitempty"`
}

// A ProtocolError is a line that isn't one of this protocol.
type ProtocolError struct {
	What string
	Err  error // cause, may be nil
}

func (e *ProtocolError) Error() string {
	if e.Err == nil {
		return "control protocol: " + e.What
	}
	return fmt.Sprintf("control protocol: %s: %v", e.What, e.Err)
}

// Unwrap returns the cause.
func (e *ProtocolError) Unwrap() error { return e.Err }

func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "..."
	}
	return s
}

// VerifyContinue as Args.StartSector: where the last verify was cut off, or 0.
const VerifyContinue = ^uint64(0)
