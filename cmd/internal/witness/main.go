package witness

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/pollux-project/pollux/cmd/internal/service"
)

// The defaults. Our own choices, after the Filesystem Hierarchy Standard; the port
// is the one behind polluxha's.
const (
	DefaultDir    = "/var/lib/pollux-witness"
	DefaultListen = "[::]:7791"
)

// Exit statuses, as polluxd has them.
const (
	exitOK          = 0
	exitUsage       = 1
	exitConfig      = 10
	exitEnvironment = 20
)

// program is one call of pollux-witness.
type program struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	dir            string
	listen         string
	logLevel       string
	logFormat      string
	asJSON         bool
}

// socketPath is where a running witness answers its own program, in the state
// directory: who may read that may ask.
func (p *program) socketPath() string { return filepath.Join(p.dir, "control.sock") }

const usage = `pollux-witness says which node may write, for clusters of two nodes. It is one
small process on a third host, which has nothing of their data.

usage: pollux-witness run [--listen IP:PORT]    answer until SIGTERM; SIGHUP reads the clusters again
       pollux-witness add CLUSTER FILE          FILE is ca.pem of one of its nodes; "-" is standard input
       pollux-witness remove CLUSTER            it gets no answer any more; its records stay
       pollux-witness status [--json]
       pollux-witness --version
`

// Main is pollux-witness with the arguments args. It returns the exit status: 0
// done, 1 usage, 10 what was given can't be used, 20 what it needs of the machine
// can't be had.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	p := &program{stdin: stdin, stdout: stdout, stderr: stderr}
	fs := flag.NewFlagSet("pollux-witness", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&p.dir, "dir", DefaultDir, "the state directory; it has to survive a reboot")
	fs.StringVar(&p.listen, "listen", DefaultListen, "run: IP:PORT where the nodes ask")
	fs.StringVar(&p.logLevel, "log-level", "info", "run: debug, info, warn or error")
	fs.StringVar(&p.logFormat, "log-format", "auto", "run: json, console or auto")
	fs.BoolVar(&p.asJSON, "json", false, "status: for programs")
	version := fs.Bool("version", false, "print the version and end")
	fs.Usage = func() {
		fmt.Fprint(stderr, usage, "\n")
		fs.PrintDefaults()
	}
	words, err := parse(fs, args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return exitUsage // the flag package has told it
	case *version:
		fmt.Fprintf(stdout, "pollux-witness %s\n", service.Version)
		return exitOK
	}
	if p.dir, err = filepath.Abs(p.dir); err != nil {
		fmt.Fprintf(stderr, "pollux-witness: %v\n", err)
		return exitEnvironment
	}
	return p.command(words)
}

// parse takes options before and behind the words.
func parse(fs *flag.FlagSet, args []string) (words []string, err error) {
	for {
		if err := fs.Parse(args); err != nil {
			return nil, err
		}
		if fs.NArg() == 0 {
			return words, nil
		}
		words, args = append(words, fs.Arg(0)), fs.Args()[1:]
	}
}

func (p *program) command(words []string) int {
	name := "run"
	if len(words) > 0 {
		name, words = words[0], words[1:]
	}
	commands := map[string]struct {
		args int
		run  func([]string) int
	}{
		"run": {0, p.run}, "add": {2, p.add}, "remove": {1, p.remove}, "status": {0, p.status},
	}
	c, ok := commands[name]
	switch {
	case !ok:
		fmt.Fprintf(p.stderr, "pollux-witness: unknown command %q\n\n%s", name, usage)
		return exitUsage
	case len(words) != c.args:
		fmt.Fprintf(p.stderr, "pollux-witness %s: found %d arguments (%s), expected %d\n\n%s", name, len(words), strings.Join(words, " "), c.args, usage)
		return exitUsage
	}
	return c.run(words)
}

// fail tells why a command did not do what it should.
func (p *program) fail(status int, format string, args ...any) int {
	fmt.Fprintf(p.stderr, "pollux-witness: "+format+"\n", args...)
	return status
}
