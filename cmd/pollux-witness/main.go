// Command pollux-witness says which node may write, for clusters of two nodes; see
// pollux-witness(8).
package main

import (
	"os"

	"github.com/pollux-project/pollux/cmd/internal/witness"
)

func main() {
	os.Exit(witness.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
