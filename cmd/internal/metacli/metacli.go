// Package metacli is the command line of polluxmeta, the offline tool for
// metadata. Syntax, texts and exit codes are those of drbdmeta of drbd-utils
// 9.22.0 (drbd-cli.md, section 5), for format v08; what differs is said where
// it does. Plain files need no --force here.
//
//	metacli.Run(metacli.Env{Args: []string{"polluxmeta", "0", "v08", "disk.img", "internal", "create-md"}, …})
package metacli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/replication/meta"
)

// Exit codes of drbdmeta.
const (
	ExitDone       = 0
	ExitRefused    = 1  // no or unclean metadata, not confirmed, I/O error
	ExitState      = 5  // outdate of an Inconsistent disk
	ExitArgument   = 10 // too small, bad argument, parse error
	ExitUsage      = 20 // usage, cannot open
	ExitFilesystem = 40 // create-md would destroy a file system
)

// Env is what Run needs from its process.
type Env struct {
	Args       []string // with the program's name
	Stdin      io.Reader
	Stdout     io.Writer
	Stderr     io.Writer
	IsTerminal bool // Stdin is a terminal: confirmations can be asked for
	Host       string
	Now        func() time.Time
}

// options are the options of all commands; they may stand anywhere.
type options struct {
	isForced     bool
	ignoreSanity bool
	help         bool
	stripes      int // -1: not given
	stripeKB     int
	peerMaxBio   int
}

// command is one polluxmeta run on an open device.
type command struct {
	Env
	options
	minor  string
	dev    blockdev.Device
	path   string
	place  meta.Placement
	index  int
	args   []string // after the command's name
	layout meta.Layout
}

type verb struct {
	name, args string
	readOnly   bool
	maxArgs    int
	run        func(*command) int
}

// verbs is filled in by a function, as the commands themselves print usage.
func verbs() []verb {
	return []verb{
		{"get-gi", "", true, 0, (*command).getGI},
		{"show-gi", "", true, 0, (*command).showGI},
		{"set-gi", "{gi}", false, 1, (*command).setGI},
		{"dump-md", "", true, 0, (*command).dump},
		{"restore-md", "file", false, 1, (*command).restore},
		{"verify-dump", "file", true, 1, (*command).verifyDump},
		{"apply-al", "", false, 0, (*command).applyAL},
		{"wipe-md", "", false, 0, (*command).wipe},
		{"outdate", "", false, 0, (*command).outdate},
		{"invalidate", "", false, 0, (*command).invalidate},
		{"dstate", "", true, 0, (*command).dstate},
		{"check-resize", "", true, 0, (*command).checkResize},
		{"create-md", "[--peer-max-bio-size {val}] [--al-stripes {val}] [--al-stripe-size-kB {val}]", false, 1, (*command).create},
	}
}

// Run does what the command line asks for and returns the exit code.
func Run(env Env) int {
	words, opts, err := parseOptions(env.Args[1:])
	if err != nil {
		fmt.Fprintf(env.Stderr, "%s: %v\n", filepath.Base(env.Args[0]), err)
		return ExitUsage
	}
	if opts.help {
		usage(env.Stdout, env.Args[0])
		return ExitDone
	}
	if len(words) == 0 {
		usage(env.Stderr, env.Args[0])
		return ExitUsage
	}
	c := &command{Env: env, options: opts}
	v, err := c.parseWords(words)
	if err != nil {
		fmt.Fprintln(env.Stderr, err)
		return ExitUsage
	}
	c.dev, err = blockdev.Open(c.path, blockdev.Options{ReadOnly: v.readOnly, Exclusive: true})
	if err != nil {
		c.sayOpenError(err)
		return ExitUsage
	}
	code := v.run(c)
	if err := c.dev.Close(); err != nil {
		fmt.Fprintln(env.Stderr, err)
		return max(code, ExitRefused)
	}
	return code
}

func (c *command) sayOpenError(err error) {
	switch {
	case errors.Is(err, blockdev.ErrHeld):
		fmt.Fprintf(c.Stderr, "Device '%s' is configured!\n%v\nDetach it first (polluxadm detach).\n", c.minor, err)
	case errors.Is(err, fs.ErrNotExist):
		fmt.Fprintf(c.Stderr, "open(%s) failed: No such file or directory\n", c.path)
	default:
		fmt.Fprintf(c.Stderr, "open(%s) failed: %v\n", c.path, err)
	}
}

func parseOptions(args []string) (words []string, o options, err error) {
	o.stripes, o.stripeKB, o.peerMaxBio = -1, -1, -1
	numbers := map[string]*int{"--al-stripes": &o.stripes, "--al-stripe-size-kB": &o.stripeKB, "--peer-max-bio-size": &o.peerMaxBio, "--node-id": new(int)}
	flags := map[string]*bool{"--force": &o.isForced, "--ignore-sanity-checks": &o.ignoreSanity, "--help": &o.help, "-h": &o.help}
	for i := 0; i < len(args); i++ {
		name, value, hasValue := strings.Cut(args[i], "=")
		switch {
		case args[i] == "--":
			return append(words, args[i+1:]...), o, nil
		case !strings.HasPrefix(args[i], "-") || args[i] == "-":
			words = append(words, args[i])
		case flags[args[i]] != nil:
			*flags[args[i]] = true
		case numbers[name] != nil:
			if !hasValue {
				if i++; i == len(args) {
					return nil, o, fmt.Errorf("option '%s' requires an argument", name)
				}
				value = args[i]
			}
			if *numbers[name], err = strconv.Atoi(value); err != nil || *numbers[name] < 0 {
				return nil, o, fmt.Errorf("option '%s': '%s' is not a number", name, value)
			}
		default:
			return nil, o, fmt.Errorf("unrecognized option '%s'", args[i])
		}
	}
	return words, o, nil
}

// parseWords takes MINOR FORMAT DEVICE INDEX COMMAND ARGS.
func (c *command) parseWords(words []string) (verb, error) {
	c.minor = strings.TrimPrefix(strings.TrimPrefix(words[0], "/dev/"), "drbd")
	if len(words) < 2 {
		return verb{}, errors.New("Too few arguments") //nolint:staticcheck // drbdmeta's texts begin so
	}
	switch words[1] {
	case "v08":
	case "v06", "v07", "v09":
		return verb{}, fmt.Errorf("format '%s' is not supported: Pollux uses v08, the format of DRBD 8.4", words[1])
	default:
		return verb{}, fmt.Errorf("Unknown format '%s'.", words[1]) //nolint:staticcheck // as above
	}
	if len(words) < 4 {
		return verb{}, errors.New("Too few arguments for format") //nolint:staticcheck // as above
	}
	c.path = words[2]
	if err := c.parseIndex(words[3]); err != nil {
		return verb{}, err
	}
	if len(words) < 5 {
		return verb{}, errors.New("command missing")
	}
	for _, v := range verbs() {
		if v.name != words[4] {
			continue
		}
		if c.args = words[5:]; len(c.args) > v.maxArgs {
			fmt.Fprintln(c.Stderr, "Ignoring additional arguments")
		}
		return v, nil
	}
	return verb{}, fmt.Errorf("Unknown command '%s'.", words[4]) //nolint:staticcheck // as above
}

func (c *command) parseIndex(s string) error {
	switch s {
	case "internal", "flex-internal":
		c.place = meta.Internal
		return nil
	case "flex-external", "flexible":
		c.place = meta.FlexExternal
		return nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > 255 {
		return fmt.Errorf("'%s' is not a valid index number.", s) //nolint:staticcheck // as above
	}
	c.place, c.index = meta.Indexed, n
	return nil
}

func usage(w io.Writer, name string) {
	fmt.Fprintf(w, "\nUSAGE: %s [--force] DEVICE FORMAT [FORMAT ARGS...] COMMAND [CMD ARGS...]\n\nFORMATS:\n  v08 device index\n\nCOMMANDS:\n", filepath.Base(name))
	for _, v := range verbs() {
		fmt.Fprintf(w, "  %s %s\n", v.name, v.args)
	}
}

// confirm asks a question that only a person, or --force, may answer.
func (c *command) confirm(question string) bool {
	fmt.Fprintf(c.Stderr, "\n%s\n", question)
	if c.isForced {
		fmt.Fprintln(c.Stderr, "*** confirmation forced via --force option ***")
		return true
	}
	if !c.IsTerminal {
		fmt.Fprintln(c.Stderr, "stdin not a TTY, not waiting for confirmation")
		return false
	}
	fmt.Fprint(c.Stderr, "[need to type 'yes' to confirm] ")
	return readLine(c.Stdin) == "yes"
}

// readLine reads one line and not a byte more: restore-md may need the rest.
func readLine(r io.Reader) string {
	var line []byte
	b := make([]byte, 1)
	for len(line) < 64 {
		if n, err := r.Read(b); n == 0 || err != nil || b[0] == '\n' {
			break
		}
		line = append(line, b[0])
	}
	return strings.TrimSpace(string(line))
}

func (c *command) cancelled() int {
	fmt.Fprintln(c.Stdout, "Operation cancelled.")
	return ExitRefused
}
