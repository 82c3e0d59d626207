// Command polluxadm controls replicated disks and their virtual machines; see
// polluxadm(8).
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/pollux-project/pollux/cmd/internal/adm"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := adm.Main(ctx, os.Args[1:], adm.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	stop()
	os.Exit(code)
}
