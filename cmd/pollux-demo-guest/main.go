// Command pollux-demo-guest is the program that works inside the virtual machine of
// "make demo" and "make ha". It takes the path of the file of records, and
// with -listen also keeps a ledger for clients on the network.
package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/pollux-project/pollux/cmd/internal/demo/guest"
)

// defaultPause between two records: fast enough that a random moment hits something
// in flight, slow enough that the console log stays readable.
const defaultPause = 4 * time.Millisecond

func main() {
	pause := flag.Duration("pause", defaultPause, "between two records")
	listen := flag.String("listen", "", "`address` of the ledger; none without it")
	ledger := flag.String("ledger", "", "`file` of the ledger")
	flag.Parse()
	if flag.NArg() != 1 || (*listen == "") != (*ledger == "") {
		fmt.Fprintln(os.Stderr, "usage: pollux-demo-guest [-pause TIME] [-listen ADDRESS -ledger FILE] FILE")
		os.Exit(2)
	}
	if err := run(flag.Arg(0), *listen, *ledger, *pause); err != nil {
		fmt.Printf("ERROR guest: %v\n", err)
		os.Exit(1)
	}
}

func run(path, listen, ledger string, pause time.Duration) (err error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go func() {
		if err := guest.WaitPowerButton("/dev/input/event*"); err != nil {
			fmt.Printf("WARNING power button: %v\n", err)
			return // the writer goes on: only a graceful stop is impossible
		}
		cancel(nil)
	}()
	var seed [8]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return err
	}
	id := binary.LittleEndian.Uint64(seed[:])
	if listen != "" {
		l, err := guest.OpenLedger(ledger, id)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, l.Close()) }()
		listener, err := net.Listen("tcp", listen)
		if err != nil {
			return err
		}
		go func() { cancel(l.Serve(listener)) }()
		defer func() { _ = listener.Close() }() // ends Serve
	}
	err = guest.Run(ctx, guest.Config{Path: path, Console: os.Stdout, Run: id, Pause: pause})
	if cause := context.Cause(ctx); err == nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}
