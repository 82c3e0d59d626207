package witness

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// The log of one cluster is a text file with a line for each batch of changes that
// became durable together:
//
//	NUMBER CRC JSON\n
//
// NUMBER counts the lines that were ever written, CRC is CRC-32C of "NUMBER JSON"
// in eight digits, JSON an entry. A line is written when the one before is on disk,
// so a bad line can be a torn one only at the end: that one was never answered, and
// is cut off. A bad line before a good one is damage, and nothing is served.
//
// When the log has grown to several times what it says, one line with everything
// is written to a new file, which takes its place.
const (
	logName    = "log"
	newLogName = "log.new"
	maxLog     = 64 << 20
	minCompact = 64 << 10 // a smaller log is left as it is
	maxGrowth  = 4        // times the size of what is in it
)

// entry is what changes at once.
type entry struct {
	Records []arbiter.Record `json:"records,omitempty"`
	TTLMS   int64            `json:"ttl_ms,omitempty"` // the longest that a lease may have: it says how long a start waits
}

// store holds the records of one cluster. It belongs to one goroutine.
type store struct {
	fs      vfs
	f       file
	records map[string]arbiter.Record
	ttl     time.Duration
	number  uint64 // of the last line
	size    int64
	live    int64 // size of the log when it was written anew last
	ill     error // the file's state is not known: it has to be written anew first
	flushes uint64
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendLine(dst []byte, number uint64, e entry) ([]byte, error) {
	text, err := json.Marshal(e)
	if err != nil {
		return dst, fmt.Errorf("encode an entry: %w", err)
	}
	dst = strconv.AppendUint(dst, number, 10)
	dst = fmt.Appendf(dst, " %08x ", lineSum(number, text))
	return append(append(dst, text...), '\n'), nil
}

func lineSum(number uint64, text []byte) uint32 {
	return crc32.Update(crc32.Checksum(strconv.AppendUint(nil, number, 10), castagnoli), castagnoli, text)
}

// parseLine reads a line without its newline.
func parseLine(line []byte) (number uint64, e entry, ok bool) {
	head, rest, _ := bytes.Cut(line, []byte(" "))
	sum, text, _ := bytes.Cut(rest, []byte(" "))
	number, err := strconv.ParseUint(string(head), 10, 64)
	if err != nil {
		return 0, e, false
	}
	want, err := strconv.ParseUint(string(sum), 16, 32)
	if err != nil || uint32(want) != lineSum(number, text) || json.Unmarshal(text, &e) != nil {
		return 0, e, false
	}
	return number, e, true
}

// parseLog returns what a log says and how many bytes of it count.
func parseLog(text []byte) (state map[string]arbiter.Record, ttl time.Duration, number uint64, good int64, err error) {
	state = map[string]arbiter.Record{}
	bad := 0 // line number
	for n, rest := 1, text; len(rest) > 0; n++ {
		line, after, whole := bytes.Cut(rest, []byte("\n"))
		num, e, ok := parseLine(line)
		ok = ok && whole
		switch {
		case ok && bad > 0:
			return nil, 0, 0, 0, fmt.Errorf("line %d is damaged, and good ones follow: the disk has lost what it had; move the file away, and both copies of each resource have to be connected once", bad)
		case ok && number > 0 && num != number+1:
			return nil, 0, 0, 0, fmt.Errorf("line %d has number %d behind %d: lines are missing; move the file away, and both copies of each resource have to be connected once", n, num, number)
		case ok:
			for _, r := range e.Records {
				state[r.Resource] = r
			}
			if e.TTLMS > 0 {
				ttl = time.Duration(e.TTLMS) * time.Millisecond
			}
			number, good = num, int64(len(text)-len(after))
		case bad == 0:
			bad = n
		}
		rest = after
	}
	return state, ttl, number, good, nil
}

// openStore reads the log, and makes one where there is none.
func openStore(dir vfs) (*store, error) {
	s := &store{fs: dir, records: map[string]arbiter.Record{}}
	text, err := dir.ReadFile(logName)
	if errors.Is(err, fs.ErrNotExist) {
		return s, s.rewrite()
	}
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	if s.records, s.ttl, s.number, s.size, err = parseLog(text); err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	if s.f, err = dir.Open(logName); err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	if s.size < int64(len(text)) {
		if err := s.f.Truncate(s.size); err != nil {
			return nil, fmt.Errorf("cut the end of the log off: %w", err)
		}
	}
	// What was read may be in memory only: written by a process that was killed
	// before it was flushed, and so never answered. From here on it counts.
	if err := s.f.Sync(); err != nil {
		return nil, fmt.Errorf("sync the log: %w", err)
	}
	s.live = s.size
	return s, nil
}

// commit makes an entry durable; then it is in force. After an error it is not,
// and will not be after a restart once another commit has succeeded.
func (s *store) commit(e entry) error {
	if s.ill != nil || s.size > minCompact && s.size > maxGrowth*s.live {
		if err := s.rewrite(); err != nil {
			return err
		}
	}
	line, err := appendLine(nil, s.number+1, e)
	if err != nil {
		return err
	}
	if _, err = s.f.Write(line); err == nil {
		err = s.f.Sync()
	}
	s.flushes++
	if err != nil {
		s.ill = fmt.Errorf("write the log: %w", err)
		return s.ill
	}
	s.number++
	s.size += int64(len(line))
	s.apply(e)
	return nil
}

func (s *store) apply(e entry) {
	for _, r := range e.Records {
		s.records[r.Resource] = r
	}
	if e.TTLMS > 0 {
		s.ttl = time.Duration(e.TTLMS) * time.Millisecond
	}
}

// rewrite writes a new log with what is in force, and puts it in place of the old.
func (s *store) rewrite() error {
	err := s.replace()
	if err != nil {
		s.ill = fmt.Errorf("write the log anew: %w", err)
		return s.ill
	}
	s.ill = nil
	return nil
}

func (s *store) replace() error {
	all := entry{TTLMS: s.ttl.Milliseconds()}
	for _, name := range slices.Sorted(maps.Keys(s.records)) {
		all.Records = append(all.Records, s.records[name])
	}
	line, err := appendLine(nil, s.number+1, all)
	if err != nil {
		return err
	}
	f, err := s.fs.Create(newLogName)
	if err != nil {
		return err
	}
	if _, err = f.Write(line); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = s.fs.Rename(newLogName, logName)
	}
	if err == nil {
		err = s.fs.SyncDir()
	}
	if err != nil {
		_ = f.Close() // the error is told already
		return err
	}
	if s.f != nil {
		_ = s.f.Close() // it was replaced
	}
	s.f, s.number, s.size, s.live = f, s.number+1, int64(len(line)), int64(len(line))
	return nil
}

func (s *store) close() error {
	if s.f == nil {
		return nil
	}
	return s.f.Close()
}
