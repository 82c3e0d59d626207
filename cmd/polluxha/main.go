// Command polluxha decides which node runs which virtual machine; see polluxha(8).
package main

import (
	"os"

	"github.com/pollux-project/pollux/cmd/internal/ha"
)

func main() {
	os.Exit(ha.Main(os.Args[1:], os.Stdout, os.Stderr))
}
