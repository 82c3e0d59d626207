package guest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pollux-project/pollux/cmd/internal/demo/records"
)

// ledgerIdle is how long a client may be silent: one whose packets go elsewhere
// now must not hold a connection for ever.
const ledgerIdle = 30 * time.Second

// A Ledger keeps numbered records for clients on the network: the client names
// the number, and gets its acknowledgement when the record is on the disk. All
// methods are safe for concurrent use.
//
// The protocol has one line for each message:
//
//	guest:  HELLO run                  the random number of this boot, hexadecimal
//	client: PUT n         guest: ACK n crc run
//	client: DUMP n        guest: REC m crc for each whole record m >= n, then END
//
// ERROR text is the answer to what can't be done.
type Ledger struct {
	run uint64

	mu   sync.Mutex // the file's owner; one fsync at a time, as its order is the clients'
	file *os.File
}

// OpenLedger opens or makes the file at path; run is as in [Config].
func OpenLedger(path string, run uint64) (*Ledger, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Ledger{run: run, file: f}, nil
}

// Close closes the file. Requests that come later fail.
func (l *Ledger) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Close()
}

// Serve answers the clients of a listener until that is closed.
func (l *Ledger) Serve(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept a client of the ledger: %w", err)
		}
		go l.serve(conn)
	}
}

// serve talks to one client until it falls silent or says nonsense.
func (l *Ledger) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }() // whatever broke it, the client asks again
	out := bufio.NewWriter(conn)
	fmt.Fprintf(out, "HELLO %016x\n", l.run)
	if out.Flush() != nil {
		return
	}
	lines := bufio.NewScanner(conn)
	for {
		if conn.SetDeadline(time.Now().Add(ledgerIdle)) != nil || !lines.Scan() {
			return
		}
		if err := l.answer(out, lines.Text()); err != nil {
			fmt.Fprintf(out, "ERROR %v\n", err)
			_ = out.Flush() // the connection ends anyway
			return
		}
		if out.Flush() != nil {
			return
		}
	}
}

func (l *Ledger) answer(out io.Writer, line string) error {
	word, rest, _ := strings.Cut(line, " ")
	number, err := strconv.ParseUint(rest, 10, 64)
	if err != nil || number == 0 {
		return fmt.Errorf("%q: want PUT or DUMP and a number from 1", line)
	}
	switch word {
	case "PUT":
		rec, err := l.put(number)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "ACK %d %08x %016x\n", number, rec.Sum, l.run)
		return nil
	case "DUMP":
		return l.dump(out, number)
	default:
		return fmt.Errorf("%q: want PUT or DUMP", line)
	}
}

// put writes one record and returns when it is on the disk.
func (l *Ledger) put(number uint64) (records.Record, error) {
	block, rec := records.Encode(number, l.run)
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.file.WriteAt(block, records.Offset(number)); err != nil {
		return rec, fmt.Errorf("write record %d: %w", number, err)
	}
	if err := l.file.Sync(); err != nil {
		return rec, fmt.Errorf("sync record %d: %w", number, err)
	}
	return rec, nil
}

// dump prints what is there. Blocks that aren't records are left out: a crash
// may leave parts of one that was never acknowledged.
func (l *Ledger) dump(out io.Writer, from uint64) error {
	block := make([]byte, records.Size)
	for number := from; ; number++ {
		l.mu.Lock()
		_, err := l.file.ReadAt(block, records.Offset(number))
		l.mu.Unlock()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read record %d: %w", number, err)
		}
		if rec, err := records.Decode(block); err == nil && rec.Number == number {
			fmt.Fprintf(out, "REC %d %08x\n", number, rec.Sum)
		}
	}
	_, err := fmt.Fprintln(out, "END")
	return err
}
