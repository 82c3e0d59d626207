// Command polluxd holds this node's replicated disks; see polluxd(8).
package main

import (
	"os"

	"github.com/pollux-project/pollux/cmd/internal/daemon"
)

func main() {
	os.Exit(daemon.Main(os.Args[1:], os.Stdout, os.Stderr))
}
