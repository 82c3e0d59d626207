// Command polluxmeta works on the metadata of a volume that is not in use, with
// drbdmeta's command line, texts and exit codes. See polluxmeta(8).
package main

import (
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/cmd/internal/metacli"
)

func main() {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost" // it stands in a comment of dump-md only
	}
	_, err = unix.IoctlGetTermios(int(os.Stdin.Fd()), unix.TCGETS)
	os.Exit(metacli.Run(metacli.Env{
		Args:       os.Args,
		Stdin:      os.Stdin,
		Stdout:     os.Stdout,
		Stderr:     os.Stderr,
		IsTerminal: err == nil,
		Host:       host,
		Now:        time.Now,
	}))
}
