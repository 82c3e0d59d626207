package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// maxLine is the longest line that a monitor may send, in bytes. The longest
// known, the reply to query-qmp-schema, is a good 200 KiB.
const maxLine = 4 << 20

// ErrMonitorClosed says that QEMU, or the caller, has closed the monitor.
var ErrMonitorClosed = errors.New("the monitor connection is closed")

// A CommandError is QEMU's refusal of a command.
type CommandError struct {
	Command string
	Class   string // "GenericError", "CommandNotFound", …
	Desc    string // QEMU's sentence
}

func (e *CommandError) Error() string { return fmt.Sprintf("QEMU refuses %s: %s", e.Command, e.Desc) }

// An Event is something that QEMU reports by itself.
type Event struct {
	Name string // "SHUTDOWN", "STOP", "BLOCK_IO_ERROR", …
	Data json.RawMessage
	At   time.Time // by QEMU's clock
}

// Monitor is a client of QEMU's machine protocol (QMP): JSON objects, one a
// line, over a unix socket. QEMU serves one client at a time; the next one
// waits for its greeting, so keep a Monitor no longer than needed. Safe for
// concurrent use.
//
//	QEMU    {"QMP": {"version": …, "capabilities": []}}
//	client  {"execute": "qmp_capabilities", "id": 1}
//	QEMU    {"return": {}, "id": 1}
//	client  {"execute": "query-status", "id": 2}
//	QEMU    {"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}
//	QEMU    {"return": {"status": "paused", "running": false}, "id": 2}
type Monitor struct {
	conn    net.Conn
	onEvent func(Event)

	mu      sync.Mutex
	nextID  uint64
	waiting map[uint64]chan message
	err     error // set once, when reading ended
	done    chan struct{}
}

// message is any line that QEMU sends.
type message struct {
	Greeting json.RawMessage `json:"QMP"`
	ID       *uint64         `json:"id"`
	Return   json.RawMessage `json:"return"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

type command struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        uint64 `json:"id"`
}

// DialMonitor connects to the monitor socket at path and negotiates
// capabilities. onEvent, if not nil, is called for every event, in order, from
// the reading goroutine; it must not call Execute. The caller closes the Monitor.
func DialMonitor(ctx context.Context, path string, onEvent func(Event)) (*Monitor, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to the monitor: %w", err)
	}
	m := &Monitor{conn: conn, onEvent: onEvent, waiting: make(map[uint64]chan message), done: make(chan struct{})}
	greeted := make(chan struct{})
	go m.read(greeted)
	select {
	case <-greeted:
		if err := m.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
			_ = m.Close() // the refusal is the error to report
			return nil, fmt.Errorf("negotiate with the monitor: %w", err)
		}
		return m, nil
	case <-m.done:
		return nil, fmt.Errorf("wait for the monitor's greeting: %w", m.err)
	case <-ctx.Done():
		_ = m.Close() // nothing was sent yet
		return nil, fmt.Errorf("wait for the monitor's greeting: %w", ctx.Err())
	}
}

// Execute runs one command and decodes what it returns into result, unless
// that is nil. arguments is marshalled to a JSON object; nil means none. A
// refusal is a *CommandError, a lost connection ErrMonitorClosed.
func (m *Monitor) Execute(ctx context.Context, name string, arguments, result any) error {
	reply := make(chan message, 1)
	id, err := m.send(ctx, name, arguments, reply)
	if err != nil {
		return err
	}
	defer m.forget(id)
	select {
	case r := <-reply:
		return decodeReply(name, r, result)
	case <-m.done:
		select { // the reply may have come just before the end
		case r := <-reply:
			return decodeReply(name, r, result)
		default:
			return fmt.Errorf("%s: %w", name, m.err)
		}
	case <-ctx.Done():
		return fmt.Errorf("%s: no answer from QEMU: %w", name, ctx.Err())
	}
}

// Done is closed when the connection has ended.
func (m *Monitor) Done() <-chan struct{} { return m.done }

// Close ends the connection; QEMU goes on. It waits for the reading goroutine.
func (m *Monitor) Close() error {
	err := m.conn.Close()
	<-m.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// send registers reply under a new id and writes the command. Lines of
// different callers must not mix, so the lock is held while writing.
func (m *Monitor) send(ctx context.Context, name string, arguments any, reply chan message) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return 0, fmt.Errorf("%s: %w", name, m.err)
	}
	id := m.nextID + 1
	line, err := json.Marshal(command{Execute: name, Arguments: arguments, ID: id})
	if err != nil {
		return 0, fmt.Errorf("%s: encode arguments: %w", name, err)
	}
	deadline, _ := ctx.Deadline() // the zero time means none, here as there
	if err := m.conn.SetWriteDeadline(deadline); err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	if _, err := m.conn.Write(append(line, '\n')); err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	m.nextID = id
	m.waiting[id] = reply
	return id, nil
}

func (m *Monitor) forget(id uint64) {
	m.mu.Lock()
	delete(m.waiting, id)
	m.mu.Unlock()
}

// read hands out what QEMU sends until the connection ends.
func (m *Monitor) read(greeted chan struct{}) {
	defer close(m.done)
	scan := bufio.NewScanner(m.conn)
	scan.Buffer(make([]byte, 0, 4096), maxLine)
	err := m.readLines(scan, greeted)
	m.mu.Lock()
	m.err = err
	m.mu.Unlock()
	_ = m.conn.Close() // reading has ended for good; a second Close does no harm
}

func (m *Monitor) readLines(scan *bufio.Scanner, greeted chan struct{}) error {
	for scan.Scan() {
		var msg message
		if err := json.Unmarshal(scan.Bytes(), &msg); err != nil {
			return fmt.Errorf("the monitor sends something that is not QMP: %w", err)
		}
		switch {
		case msg.Greeting != nil && greeted != nil:
			close(greeted)
			greeted = nil
		case msg.Event != "":
			if m.onEvent != nil {
				at := time.Unix(msg.Timestamp.Seconds, msg.Timestamp.Microseconds*1000)
				m.onEvent(Event{Name: msg.Event, Data: msg.Data, At: at})
			}
		case msg.ID != nil:
			m.mu.Lock()
			reply := m.waiting[*msg.ID]
			delete(m.waiting, *msg.ID)
			m.mu.Unlock()
			if reply != nil { // nil: its caller gave up waiting
				reply <- msg
			}
		default:
			return fmt.Errorf("the monitor sends an unexpected line: %.200s", scan.Bytes())
		}
	}
	if err := scan.Err(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("%w: %w", ErrMonitorClosed, err)
	}
	return ErrMonitorClosed
}

func decodeReply(name string, r message, result any) error {
	if r.Error != nil {
		return &CommandError{Command: name, Class: r.Error.Class, Desc: r.Error.Desc}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(r.Return, result); err != nil {
		return fmt.Errorf("%s: decode QEMU's answer: %w", name, err)
	}
	return nil
}
