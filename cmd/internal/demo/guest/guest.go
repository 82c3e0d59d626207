// Package guest is what runs inside the demo's virtual machine: it appends
// numbered records to a file, one fsync each, and says on the console which
// ones are safe, until somebody presses the power button.
//
//	err := guest.Run(ctx, guest.Config{Path: "/mnt/records", Console: os.Stdout, Run: random})
package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/pollux-project/pollux/cmd/internal/demo/records"
)

// Config says what to write where.
type Config struct {
	Path    string        // of the file of records
	Console io.Writer     // gets FOUND and ACK lines, each in one Write
	Run     uint64        // a random number that tells this run from all others
	Pause   time.Duration // between two records
}

// Run prints "FOUND n damaged m", n being the highest record present and m the
// number of blocks up to there that are not what they should be, then
// continues with record n+1 until ctx is done. A record is acknowledged only
// after its fsync.
func Run(ctx context.Context, cfg Config) (err error) {
	f, err := os.OpenFile(cfg.Path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := syncDir(filepath.Dir(cfg.Path)); err != nil {
		return err
	}
	highest, err := inspect(f, cfg.Console)
	if err != nil {
		return err
	}
	tick := time.NewTicker(max(cfg.Pause, time.Microsecond))
	defer tick.Stop()
	for number := highest + 1; ; number++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if ctx.Err() != nil { // select doesn't say which was first
			return nil
		}
		block, rec := records.Encode(number, cfg.Run)
		if _, err := f.WriteAt(block, records.Offset(number)); err != nil {
			return fmt.Errorf("write record %d: %w", number, err)
		}
		if err := f.Sync(); err != nil {
			return fmt.Errorf("sync record %d: %w", number, err)
		}
		if _, err := cfg.Console.Write([]byte(records.Ack{Number: number, Sum: rec.Sum}.Line())); err != nil {
			return err
		}
	}
}

// inspect returns the highest record that is there. Blocks after it were never
// acknowledged: a crash may leave parts of one there, which are no damage.
func inspect(f *os.File, console io.Writer) (highest uint64, err error) {
	found, damaged, err := records.Read(f)
	if err != nil {
		return 0, err
	}
	for number := range found {
		highest = max(highest, number)
	}
	count := 0
	for _, d := range damaged {
		if d.Number < highest {
			count++
			if _, err := fmt.Fprintf(console, "DAMAGED %d %v\n", d.Number, d.Err); err != nil {
				return 0, err
			}
		}
	}
	_, err = fmt.Fprintf(console, "FOUND %d damaged %d\n", highest, count)
	return highest, err
}

// syncDir makes the entry of a new file durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Numbers of linux/input-event-codes.h, and the layout of struct input_event
// on 64-bit machines: time (16 bytes), type (2), code (2), value (4).
const (
	inputEventBytes = 24
	evKey           = 1
	keyPower        = 116
)

// WaitPowerButton returns when the power button is pressed on one of the input
// devices that the pattern matches, or with the reason why it can't be noticed.
func WaitPowerButton(pattern string) error {
	paths, err := filepath.Glob(pattern)
	if err != nil {
		return err
	}
	if len(paths) == 0 {
		return fmt.Errorf("no input device %s", pattern)
	}
	ended := make(chan error, len(paths))
	for _, path := range paths {
		go func() { ended <- waitKey(path) }()
	}
	var failed error
	for range paths {
		err := <-ended
		if err == nil {
			return nil
		}
		failed = errors.Join(failed, err)
	}
	return failed
}

func waitKey(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	event := make([]byte, inputEventBytes)
	for {
		if _, err := io.ReadFull(f, event); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		kind := binary.LittleEndian.Uint16(event[16:])
		code := binary.LittleEndian.Uint16(event[18:])
		value := binary.LittleEndian.Uint32(event[20:])
		if kind == evKey && code == keyPower && value == 1 {
			return nil
		}
	}
}
