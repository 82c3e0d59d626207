package hatestbed

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/pollux-project/pollux/cmd/internal/demo/records"
)

// consolePoll is how often a console is read: the resolution of its times.
const consolePoll = 10 * time.Millisecond

// A Boot is one run of the machine, as its console tells it.
type Boot struct {
	Host    string
	Kernel  time.Time // its first line
	Acks    []ConsoleAck
	Journal string // "clean", "replayed", "failed"
	Fsck    string // "clean"
	Found   uint64 // highest record of the machine's own
	Damaged uint64
	Halted  bool   // shut down in order
	Error   string // what the guest has given up for
	Ready   bool   // it has looked at its disk
}

// ConsoleAck is an acknowledgement of the machine's own records.
type ConsoleAck struct {
	records.Ack
	At time.Time
}

// A Console reads the serial console of the machine on one host. Safe for
// concurrent use.
type Console struct {
	host, path string

	mu    sync.Mutex
	boots []*Boot
}

// NewConsole reads the file at path, which need not exist yet.
func NewConsole(host, path string) *Console { return &Console{host: host, path: path} }

// Run reads until ctx is done.
func (c *Console) Run(ctx context.Context) {
	tick := time.NewTicker(consolePoll)
	defer tick.Stop()
	var offset int64
	var rest []byte
	for ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		more := readFrom(c.path, offset)
		offset += int64(len(more))
		rest = append(rest, more...)
		now := time.Now()
		for {
			line, after, whole := bytes.Cut(rest, []byte("\n"))
			if !whole {
				break
			}
			rest = after
			c.read(strings.TrimRight(string(line), "\r"), now)
		}
	}
}

// readFrom returns what a file has behind an offset; nothing if it isn't there.
func readFrom(path string, offset int64) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, offset, 1<<20))
	if err != nil {
		return nil // the next look has it
	}
	return b
}

// read takes one line. The first one of a kernel begins a boot.
func (c *Console) read(line string, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if strings.Contains(line, "Linux version ") {
		c.boots = append(c.boots, &Boot{Host: c.host, Kernel: now})
		return
	}
	if len(c.boots) == 0 {
		return // the firmware's
	}
	b := c.boots[len(c.boots)-1]
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "JOURNAL":
		b.Journal = rest
	case "FSCK":
		b.Fsck = rest
	case "FOUND":
		_, err := fmt.Sscanf(rest, "%d damaged %d", &b.Found, &b.Damaged)
		b.Ready = err == nil
	case "ACK":
		if a, ok := records.ParseAck(line); ok {
			b.Acks = append(b.Acks, ConsoleAck{Ack: a, At: now})
		}
	case "HALT":
		b.Halted = rest == "unmounted"
	case "ERROR":
		b.Error = rest
	}
}

// Boots returns all boots so far, oldest first.
func (c *Console) Boots() []Boot {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]Boot, len(c.boots))
	for i, b := range c.boots {
		list[i] = *b // the slice of acknowledgements only grows
	}
	return list
}

// faults says what is wrong with what a guest has found on its disk.
func (b *Boot) faults() (faults []string) {
	if b.Error != "" {
		faults = append(faults, fmt.Sprintf("the guest on %s has given up: %s", b.Host, b.Error))
	}
	if !b.Ready {
		return faults
	}
	if b.Journal != "clean" && b.Journal != "replayed" {
		faults = append(faults, fmt.Sprintf("the journal on %s is %q", b.Host, b.Journal))
	}
	if b.Fsck != "clean" {
		faults = append(faults, fmt.Sprintf("e2fsck on %s finds the filesystem %q", b.Host, b.Fsck))
	}
	if b.Damaged != 0 {
		faults = append(faults, fmt.Sprintf("the guest on %s finds %d of its records damaged", b.Host, b.Damaged))
	}
	return faults
}
