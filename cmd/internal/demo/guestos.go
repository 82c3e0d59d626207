package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/pollux-project/pollux/cmd/internal/demo/records"
)

// consolePoll is how often a console log is looked at.
const consolePoll = 30 * time.Millisecond

// console is the log of a VM's serial console. All runs of the VM on one node
// are in one file; mark separates them.
type console struct {
	path string
	mark int // bytes at the start that belong to earlier runs
}

func (c *console) text() (string, error) {
	b, err := os.ReadFile(c.path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return string(b), err
}

// newRun makes run, wait and lines look at what comes from now on.
func (c *console) newRun() error {
	all, err := c.text()
	c.mark = len(all)
	return err
}

// run returns what the present run has said.
func (c *console) run() (string, error) {
	all, err := c.text()
	if err != nil {
		return "", err
	}
	return all[min(c.mark, len(all)):], nil
}

// acks returns all acknowledgements of all runs.
func (c *console) acks() ([]records.Ack, error) {
	all, err := c.text()
	return records.Acks(all), err
}

// line returns the rest of the first whole line of text that starts with word.
func line(text, word string) (rest string, found bool) {
	for l := range strings.Lines(text) {
		if !strings.HasSuffix(l, "\n") {
			break
		}
		if l = strings.TrimRight(l, "\r\n"); l == word || strings.HasPrefix(l, word+" ") {
			return strings.TrimSpace(l[len(word):]), true
		}
	}
	return "", false
}

// wait polls until the present run has said a line that starts with word. An
// ERROR of the guest, or the end of ctx, ends it with what was said last.
func (c *console) wait(ctx context.Context, word string) (rest string, err error) {
	err = c.until(ctx, "a line "+word, func(text string) bool {
		var found bool
		rest, found = line(text, word)
		return found
	})
	return rest, err
}

// waitAcks polls until the present run has acknowledged n records.
func (c *console) waitAcks(ctx context.Context, n int, show func(done int)) error {
	return c.until(ctx, fmt.Sprintf("%d acknowledged records", n), func(text string) bool {
		done := len(records.Acks(text))
		show(done)
		return done >= n
	})
}

func (c *console) until(ctx context.Context, what string, reached func(text string) bool) error {
	tick := time.NewTicker(consolePoll)
	defer tick.Stop()
	for {
		text, err := c.run()
		if err != nil {
			return err
		}
		if reached(text) {
			return nil
		}
		if why, failed := line(text, "ERROR"); failed {
			return fmt.Errorf("the guest has given up: %s", why)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: waited for %s: %w; the console ends with %q", c.path, what, ctx.Err(), tail(text))
		}
	}
}

// tail returns the last words of a text.
func tail(text string) string {
	const enough = 300
	return text[max(0, len(text)-enough):]
}

// health is what the guest says about its filesystem when it boots.
type health struct {
	journal string // "clean", "replayed"
	fsck    string // "clean"
	found   uint64 // highest record present
	damaged uint64 // blocks below it that are not what they should be
}

// booted waits until the guest has looked at its disk and begins to write.
func (c *console) booted(ctx context.Context) (h health, err error) {
	found, err := c.wait(ctx, "FOUND")
	if err != nil {
		return h, err
	}
	if _, err := fmt.Sscanf(found, "%d damaged %d", &h.found, &h.damaged); err != nil {
		return h, fmt.Errorf("%s: line FOUND %s: %w", c.path, found, err)
	}
	text, err := c.run()
	h.journal, _ = line(text, "JOURNAL")
	h.fsck, _ = line(text, "FSCK")
	return h, err
}

// faults says what is wrong with the filesystem of a guest that was booted
// after highest had been acknowledged.
func (h health) faults(highest uint64) (faults []string) {
	if h.journal != "clean" && h.journal != "replayed" {
		faults = append(faults, fmt.Sprintf("the journal is %q", h.journal))
	}
	if h.fsck != "clean" {
		faults = append(faults, fmt.Sprintf("e2fsck finds the filesystem %q", h.fsck))
	}
	if h.damaged != 0 {
		faults = append(faults, fmt.Sprintf("the guest finds %d of its records damaged", h.damaged))
	}
	if h.found < highest {
		faults = append(faults, fmt.Sprintf("the guest finds %d records, but %d were acknowledged", h.found, highest))
	}
	return faults
}
