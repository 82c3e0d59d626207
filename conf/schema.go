package conf

import (
	"math"
	"slices"
	"strconv"
	"strings"
)

// A Section is one of the option sections of a resource or of common.
type Section string

// The option sections, in the order in which a dump prints them.
const (
	SectionOptions  Section = "options"
	SectionNet      Section = "net"
	SectionDisk     Section = "disk"
	SectionStartup  Section = "startup"
	SectionProxy    Section = "proxy"
	SectionHandlers Section = "handlers"
)

// A Dialect says which drbdadm knows an option.
type Dialect uint8

// The dialects of the language.
const (
	Both  Dialect = iota // 8.4 and 9
	Only8                // 8.4 alone
	Only9                // 9 alone
	Newer                // 9, in versions after drbd-utils 9.22
)

// A Type is the kind of value an option takes.
type Type uint8

// The types of values.
const (
	Numeric         Type = iota // a number with a unit, Min to Max
	Boolean                     // yes or no; the bare name is yes, no-NAME is no
	Enum                        // one of Values
	NumericOrSymbol             // a number, or one of Values
	String                      // any text, at most Max bytes if Max is set
	Names                       // host names, one or more
	Flag                        // takes no value
	VolumeName                  // RESOURCE or RESOURCE/VOLUME
	Ignored                     // any one value, accepted and forgotten
)

// A Unit is what a bare number of an option counts.
type Unit uint8

// The units of bare numbers. A number with a suffix counts bytes, or bytes
// per second, and is converted; without a unit of bytes it just multiplies.
const (
	Plain       Unit = iota
	Byte             // bytes
	SectorUnit       // 512 bytes
	KiBps            // KiB/s
	Decisecond       // 0.1 s
	Second           // s
	Millisecond      // ms
)

// bytes is the weight of one unit when a suffix is converted.
func (u Unit) bytes() uint64 {
	switch u {
	case SectorUnit:
		return 512
	case KiBps:
		return 1024
	case Plain, Byte, Decisecond, Second, Millisecond:
		return 1
	}
	return 1
}

// name is the unit as an error message says it, with a blank before it.
func (u Unit) name() string {
	return [...]string{Plain: "", Byte: " bytes", SectorUnit: " sectors of 512 bytes", KiBps: " KiB/s", Decisecond: " tenths of a second", Second: " seconds", Millisecond: " milliseconds"}[u]
}

// An OptionSpec is one row of the table of all options.
type OptionSpec struct {
	Section  Section
	Name     string
	Dialect  Dialect
	Type     Type
	Unit     Unit
	Default  string // as it would be written; "" is unset
	Min, Max uint64 // inclusive, in Unit
	Values   []string
	// PeerDevice marks what DRBD 9 calls a peer-device option: written in
	// disk, allowed per connection, printed behind the others.
	PeerDevice bool
	// Alias is the canonical name if this is an old spelling.
	Alias string
}

var (
	fencingValues = []string{"dont-care", "resource-only", "resource-and-stonith"}
	quorumSymbols = []string{"off", "majority", "all"}
)

// options is the one table of all options. Source: drbd.conf(5) of 8.4 and
// drbdadm of drbd-utils 9.22.0 as observed; where the ranges of the dialects
// differ the wider one stands here.
var options = []OptionSpec{
	// disk: what belongs to the backing device
	{Section: "disk", Name: "size", Unit: SectorUnit, Default: "0", Max: 2199023255552},
	{Section: "disk", Name: "max-bio-bvecs", Dialect: Only8, Default: "0", Max: 128},
	{Section: "disk", Name: "on-io-error", Type: Enum, Default: "detach", Values: []string{"pass_on", "call-local-io-error", "detach"}},
	{Section: "disk", Name: "fencing", Dialect: Only8, Type: Enum, Default: "dont-care", Values: fencingValues},
	{Section: "disk", Name: "disk-barrier", Type: Boolean, Default: "no"},
	{Section: "disk", Name: "disk-flushes", Type: Boolean, Default: "yes"},
	{Section: "disk", Name: "disk-drain", Type: Boolean, Default: "yes"},
	{Section: "disk", Name: "md-flushes", Type: Boolean, Default: "yes"},
	{Section: "disk", Name: "resync-after", Type: VolumeName, Default: "-1", Max: 1048575},
	{Section: "disk", Name: "al-extents", Default: "1237", Min: 67, Max: 65534},
	{Section: "disk", Name: "al-updates", Type: Boolean, Default: "yes"},
	{Section: "disk", Name: "discard-zeroes-if-aligned", Type: Boolean, Default: "yes"},
	{Section: "disk", Name: "disable-write-same", Type: Boolean, Default: "no"},
	{Section: "disk", Name: "disk-timeout", Unit: Decisecond, Default: "0", Max: 6000},
	{Section: "disk", Name: "read-balancing", Type: Enum, Default: "prefer-local", Values: []string{
		"prefer-local", "prefer-remote", "round-robin", "least-pending", "when-congested-remote",
		"32K-striping", "64K-striping", "128K-striping", "256K-striping", "512K-striping", "1M-striping",
	}},
	{Section: "disk", Name: "rs-discard-granularity", Unit: Byte, Default: "0", Max: 1048576},
	{Section: "disk", Name: "max-bio-size", Dialect: Only9, Unit: Byte, Default: "1048576", Min: 512, Max: 1048576},
	{Section: "disk", Name: "diskless", Dialect: Only9, Type: Boolean, Default: "no"},
	{Section: "disk", Name: "block-size", Dialect: Newer, Unit: Byte, Default: "512", Min: 512, Max: 4096},
	{Section: "disk", Name: "discard-granularity", Dialect: Newer, Unit: Byte, Default: "0", Max: 128 << 20},
	// disk: what belongs to the connection of the device to its peer
	{Section: "disk", Name: "resync-rate", Unit: KiBps, Default: "250", Min: 1, Max: 8388608, PeerDevice: true},
	{Section: "disk", Name: "c-plan-ahead", Unit: Decisecond, Default: "20", Max: 300, PeerDevice: true},
	{Section: "disk", Name: "c-delay-target", Unit: Decisecond, Default: "10", Min: 1, Max: 100, PeerDevice: true},
	{Section: "disk", Name: "c-fill-target", Unit: SectorUnit, Default: "100", Max: 1048576, PeerDevice: true},
	{Section: "disk", Name: "c-max-rate", Unit: KiBps, Default: "102400", Max: 4194304, PeerDevice: true},
	{Section: "disk", Name: "c-min-rate", Unit: KiBps, Default: "250", Max: 4194304, PeerDevice: true},
	{Section: "disk", Name: "bitmap", Dialect: Only9, Type: Boolean, Default: "yes", PeerDevice: true},
	{Section: "disk", Name: "peer-tiebreaker", Dialect: Newer, Type: Boolean, Default: "yes", PeerDevice: true},
	{Section: "disk", Name: "resync-without-replication", Dialect: Newer, Type: Boolean, Default: "no", PeerDevice: true},

	{Section: "net", Name: "protocol", Type: Enum, Default: "C", Values: []string{"A", "B", "C"}},
	{Section: "net", Name: "timeout", Unit: Decisecond, Default: "60", Min: 1, Max: 600},
	{Section: "net", Name: "max-epoch-size", Default: "2048", Min: 1, Max: 20000},
	{Section: "net", Name: "max-buffers", Default: "2048", Min: 32, Max: 131072},
	{Section: "net", Name: "unplug-watermark", Dialect: Only8, Default: "128", Min: 1, Max: 131072},
	{Section: "net", Name: "connect-int", Unit: Second, Default: "10", Min: 1, Max: 120},
	{Section: "net", Name: "ping-int", Unit: Second, Default: "10", Min: 1, Max: 120},
	{Section: "net", Name: "sndbuf-size", Unit: Byte, Default: "0", Max: 10485760},
	{Section: "net", Name: "rcvbuf-size", Unit: Byte, Default: "0", Max: 10485760},
	{Section: "net", Name: "ko-count", Default: "7", Max: 200},
	{Section: "net", Name: "allow-two-primaries", Type: Boolean, Default: "no"},
	{Section: "net", Name: "cram-hmac-alg", Type: String, Max: 63},
	{Section: "net", Name: "shared-secret", Type: String, Max: 63},
	{Section: "net", Name: "after-sb-0pri", Type: Enum, Default: "disconnect", Values: []string{
		"disconnect", "discard-younger-primary", "discard-older-primary", "discard-zero-changes",
		"discard-least-changes", "discard-local", "discard-remote",
	}},
	{Section: "net", Name: "after-sb-1pri", Type: Enum, Default: "disconnect", Values: []string{"disconnect", "consensus", "discard-secondary", "call-pri-lost-after-sb", "violently-as0p"}},
	{Section: "net", Name: "after-sb-2pri", Type: Enum, Default: "disconnect", Values: []string{"disconnect", "call-pri-lost-after-sb", "violently-as0p"}},
	{Section: "net", Name: "always-asbp", Type: Boolean, Default: "no"},
	{Section: "net", Name: "rr-conflict", Type: Enum, Default: "disconnect", Values: []string{"disconnect", "call-pri-lost", "violently", "retry-connect", "auto-discard"}},
	{Section: "net", Name: "ping-timeout", Unit: Decisecond, Default: "5", Min: 1, Max: 300},
	{Section: "net", Name: "data-integrity-alg", Type: String, Max: 63},
	{Section: "net", Name: "tcp-cork", Type: Boolean, Default: "yes"},
	{Section: "net", Name: "on-congestion", Type: Enum, Default: "block", Values: []string{"block", "pull-ahead", "disconnect"}},
	{Section: "net", Name: "congestion-fill", Unit: SectorUnit, Default: "0", Max: 20971520},
	{Section: "net", Name: "congestion-extents", Default: "1237", Min: 67, Max: 65534},
	{Section: "net", Name: "csums-alg", Type: String, Max: 63},
	{Section: "net", Name: "csums-after-crash-only", Type: Boolean, Default: "no"},
	{Section: "net", Name: "verify-alg", Type: String, Max: 63},
	{Section: "net", Name: "use-rle", Type: Boolean, Default: "yes"},
	// Like ping-timeout, which it replaces when it is 0, in tenths of a second.
	{Section: "net", Name: "socket-check-timeout", Unit: Decisecond, Default: "0", Max: 300},
	{Section: "net", Name: "transport", Dialect: Only9, Type: String, Max: 63},
	{Section: "net", Name: "fencing", Dialect: Only9, Type: Enum, Default: "dont-care", Values: fencingValues},
	{Section: "net", Name: "allow-remote-read", Dialect: Only9, Type: Boolean, Default: "yes"},
	{Section: "net", Name: "_name", Dialect: Only9, Type: String, Max: 127},
	{Section: "net", Name: "load-balance-paths", Dialect: Newer, Type: Boolean, Default: "no"},
	{Section: "net", Name: "tls", Dialect: Newer, Type: Boolean, Default: "no"},
	{Section: "net", Name: "tls-keyring", Dialect: Newer, Type: String, Max: 63},
	{Section: "net", Name: "tls-privkey", Dialect: Newer, Type: String, Max: 63},
	{Section: "net", Name: "tls-certificate", Dialect: Newer, Type: String, Max: 63},
	{Section: "net", Name: "rdma-ctrl-rcvbuf-size", Dialect: Newer, Unit: Byte, Default: "0", Max: 10485760},
	{Section: "net", Name: "rdma-ctrl-sndbuf-size", Dialect: Newer, Unit: Byte, Default: "0", Max: 10485760},

	{Section: "options", Name: "cpu-mask", Type: String, Max: 500},
	{Section: "options", Name: "on-no-data-accessible", Type: Enum, Default: "io-error", Values: []string{"io-error", "suspend-io"}},
	{Section: "options", Name: "auto-promote", Dialect: Only9, Type: Boolean, Default: "yes"},
	{Section: "options", Name: "peer-ack-window", Dialect: Only9, Unit: SectorUnit, Default: "4096", Min: 2048, Max: 204800},
	{Section: "options", Name: "peer-ack-delay", Dialect: Only9, Unit: Millisecond, Default: "100", Min: 1, Max: 10000},
	{Section: "options", Name: "twopc-timeout", Dialect: Only9, Unit: Decisecond, Default: "300", Min: 50, Max: 600},
	{Section: "options", Name: "twopc-retry-timeout", Dialect: Only9, Unit: Decisecond, Default: "1", Min: 1, Max: 50},
	{Section: "options", Name: "auto-promote-timeout", Dialect: Only9, Unit: Decisecond, Default: "20", Max: 600},
	{Section: "options", Name: "max-io-depth", Dialect: Only9, Default: "8000", Min: 4, Max: math.MaxUint32},
	{Section: "options", Name: "quorum", Dialect: Only9, Type: NumericOrSymbol, Default: "off", Min: 1, Max: 32, Values: quorumSymbols},
	{Section: "options", Name: "on-no-quorum", Dialect: Only9, Type: Enum, Default: "suspend-io", Values: []string{"io-error", "suspend-io"}},
	{Section: "options", Name: "quorum-minimum-redundancy", Dialect: Only9, Type: NumericOrSymbol, Default: "off", Min: 1, Max: 32, Values: quorumSymbols},
	{Section: "options", Name: "on-suspended-primary-outdated", Dialect: Only9, Type: Enum, Default: "disconnect", Values: []string{"disconnect", "force-secondary"}},
	{Section: "options", Name: "drbd8-compat-mode", Dialect: Newer, Type: Boolean, Default: "no"},
	{Section: "options", Name: "drbd8-api-compatibility", Dialect: Newer, Type: Boolean, Default: "no"},

	{Section: "startup", Name: "wfc-timeout", Unit: Second, Default: "0", Max: 300000},
	{Section: "startup", Name: "degr-wfc-timeout", Unit: Second, Default: "0", Max: 300000},
	{Section: "startup", Name: "outdated-wfc-timeout", Unit: Second, Default: "0", Max: 300000},
	{Section: "startup", Name: "wait-after-sb", Type: Boolean, Default: "no"},
	{Section: "startup", Name: "become-primary-on", Type: Names},
	{Section: "startup", Name: "stacked-timeouts", Type: Flag},

	{Section: "handlers", Name: "pri-on-incon-degr", Type: String},
	{Section: "handlers", Name: "pri-lost-after-sb", Type: String},
	{Section: "handlers", Name: "pri-lost", Type: String},
	{Section: "handlers", Name: "initial-split-brain", Type: String},
	{Section: "handlers", Name: "split-brain", Type: String},
	{Section: "handlers", Name: "fence-peer", Type: String},
	{Section: "handlers", Name: "outdate-peer", Type: String, Alias: "fence-peer"},
	{Section: "handlers", Name: "unfence-peer", Type: String},
	{Section: "handlers", Name: "local-io-error", Type: String},
	{Section: "handlers", Name: "before-resync-target", Type: String},
	{Section: "handlers", Name: "after-resync-target", Type: String},
	{Section: "handlers", Name: "before-resync-source", Type: String},
	{Section: "handlers", Name: "out-of-sync", Type: String},
	{Section: "handlers", Name: "quorum-lost", Dialect: Only9, Type: String},
	{Section: "handlers", Name: "disconnected", Dialect: Only9, Type: String},
}

// anyProxyOption takes every option of a proxy section: the proxy is read and
// dumped, never acted on.
var anyProxyOption = OptionSpec{Section: SectionProxy, Type: String}

// forgotten are options of 8.3 that 8.4 reads with a value and ignores.
var forgotten = []string{"delay-probe-volume", "delay-probe-interval", "throttle-threshold", "hold-off-threshold"}

// legacySyncer maps the options of 8.3's syncer section to where they live
// now. resync-rate and resync-after are taken by their new names as well.
var legacySyncer = map[string]struct {
	section Section
	name    string
}{
	"rate":                  {SectionDisk, "resync-rate"},
	"resync-rate":           {SectionDisk, "resync-rate"},
	"after":                 {SectionDisk, "resync-after"},
	"resync-after":          {SectionDisk, "resync-after"},
	"al-extents":            {SectionDisk, "al-extents"},
	"c-plan-ahead":          {SectionDisk, "c-plan-ahead"},
	"c-delay-target":        {SectionDisk, "c-delay-target"},
	"c-fill-target":         {SectionDisk, "c-fill-target"},
	"c-max-rate":            {SectionDisk, "c-max-rate"},
	"c-min-rate":            {SectionDisk, "c-min-rate"},
	"verify-alg":            {SectionNet, "verify-alg"},
	"csums-alg":             {SectionNet, "csums-alg"},
	"use-rle":               {SectionNet, "use-rle"},
	"cpu-mask":              {SectionOptions, "cpu-mask"},
	"on-no-data-accessible": {SectionOptions, "on-no-data-accessible"},
}

type optionKey struct {
	section Section
	name    string
}

var optionIndex = func() map[optionKey]*OptionSpec {
	m := make(map[optionKey]*OptionSpec, len(options))
	for i := range options {
		m[optionKey{options[i].Section, options[i].Name}] = &options[i]
	}
	return m
}()

// Options returns the table of all options, in the order of the sections; the
// man page and shell completion are made from it.
func Options() []OptionSpec { return slices.Clone(options) }

// LookupOption returns the row of an option, nil if there is none. Names of
// handlers may be old spellings.
func LookupOption(section Section, name string) *OptionSpec {
	s := optionIndex[optionKey{section, name}]
	if s != nil && s.Alias != "" {
		return optionIndex[optionKey{section, s.Alias}]
	}
	return s
}

// optionNames lists the names of a section, for suggestions.
func optionNames(section Section) []string {
	var names []string
	for i := range options {
		if options[i].Section == section {
			names = append(names, options[i].Name)
		}
	}
	return names
}

// ParseNumber reads a number as drbd.conf has it: digits and one optional
// suffix, s for 512 byte sectors, k or K, m or M, g or G for powers of 1024.
// The result is in the given unit; a part of a unit is rounded up. ok is false
// if text is not a number; a number too big for the type is MaxUint64.
func ParseNumber(text string, unit Unit) (n uint64, ok bool) {
	digits := strings.TrimPrefix(text, "-")
	scale := unit.bytes()
	if digits != "" {
		shift, found := map[byte]uint64{'s': 512, 'k': 1 << 10, 'K': 1 << 10, 'm': 1 << 20, 'M': 1 << 20, 'g': 1 << 30, 'G': 1 << 30}[digits[len(digits)-1]]
		if found {
			scale, digits = shift, digits[:len(digits)-1]
		}
	}
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, false
	}
	v, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || text[0] == '-' || v > math.MaxUint64/scale {
		return math.MaxUint64, true // drbdadm reads a negative number as a huge one
	}
	bytes := v * scale
	per := unit.bytes()
	n = bytes / per
	if bytes%per != 0 {
		n++
	}
	return n, true
}

// checkValue returns what is wrong with a value, "" if nothing.
func (s *OptionSpec) checkValue(value string) string {
	switch s.Type {
	case Numeric:
		return s.checkNumber(value)
	case NumericOrSymbol:
		if slices.Contains(s.Values, value) {
			return ""
		}
		if _, ok := ParseNumber(value, s.Unit); !ok {
			return "value is not valid, expected a number or one of " + strings.Join(s.Values, ", ")
		}
		return s.checkNumber(value)
	case Boolean:
		if value != "yes" && value != "no" {
			return "value is not 'yes' or 'no'"
		}
	case Enum:
		if s.Name == "protocol" {
			value = strings.ToUpper(value)
		}
		if s.Name == "after-sb-0pri" && len(value) > len(discardNode) && strings.HasPrefix(value, discardNode) {
			return "" // the host is checked once all are known
		}
		if !slices.Contains(s.Values, value) {
			return "value is not valid, expected one of " + strings.Join(s.Values, ", ")
		}
	case String:
		if s.Max > 0 && uint64(len(value)) > s.Max {
			return "value is too long: " + strconv.Itoa(len(value)) + " bytes, at most " + strconv.FormatUint(s.Max, 10) + " are allowed"
		}
	case VolumeName, Names, Flag, Ignored:
	}
	return ""
}

// discardNode is 8.4's after-sb-0pri discard-node-NAME without the name.
const discardNode = "discard-node-"

func (s *OptionSpec) checkNumber(value string) string {
	n, ok := ParseNumber(value, s.Unit)
	bounds := ", expected " + strconv.FormatUint(s.Min, 10) + " to " + strconv.FormatUint(s.Max, 10) + s.Unit.name()
	switch {
	case !ok:
		return "value is not a number" + bounds
	case n < s.Min:
		return "value is too small" + bounds
	case n > s.Max:
		return "value is too big" + bounds
	}
	return ""
}
