// Command pollux-demo-guest is the program that works inside the virtual machine of
// "make demo". It takes the path of the file of records.
package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"github.com/pollux-project/pollux/cmd/internal/demo/guest"
)

// pause between two records: fast enough that a random moment hits something
// in flight, slow enough that the console log stays readable.
const pause = 4 * time.Millisecond

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: pollux-demo-guest FILE")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Printf("ERROR guest: %v\n", err)
		os.Exit(1)
	}
}

func run(path string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		if err := guest.WaitPowerButton("/dev/input/event*"); err != nil {
			fmt.Printf("WARNING power button: %v\n", err)
			return // the writer goes on: only a graceful stop is impossible
		}
		cancel()
	}()
	var seed [8]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return err
	}
	return guest.Run(ctx, guest.Config{
		Path: path, Console: os.Stdout, Run: binary.LittleEndian.Uint64(seed[:]), Pause: pause,
	})
}
