package e2e

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
)

const (
	writerBlock = 4096
	writerDepth = 16 // writes under way
)

// A writer is an NBD client that numbers its writes and knows for each block
// the last number that was acknowledged and the last one that was sent: after
// a crash a block holds the first of them or a later one.
type writer struct {
	t     *testing.T
	conn  net.Conn
	base  uint64   // numbers begin here
	acked []uint64 // by block; 0 is never written
	sent  []uint64
	quit  atomic.Bool
	done  chan error
	count atomic.Int64 // acknowledged
}

// startWriter writes random blocks of the first size bytes of r0 on node n. It
// returns when the first of them is acknowledged.
func startWriter(t *testing.T, n *node, size int) *writer {
	t.Helper()
	conn, err := openNBD(n.path("nbd"), "r0")
	if err != nil {
		t.Fatalf("%s: %v", n.name, err)
	}
	w := &writer{t: t, conn: conn, base: 1 + rand.Uint64N(1<<40), acked: make([]uint64, size/writerBlock), sent: make([]uint64, size/writerBlock), done: make(chan error, 1)}
	t.Cleanup(func() { conn.Close() })
	go func() { w.done <- w.loop() }()
	poll(t, "the first acknowledgement", func() bool { return w.count.Load() > 0 })
	return w
}

// openNBD does the handshake of the NBD protocol (nbd, section 1).
func openNBD(socket, export string) (net.Conn, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	fail := func(what string, err error) (net.Conn, error) {
		conn.Close()
		return nil, fmt.Errorf("NBD handshake: %s: %w", what, err)
	}
	hello := make([]byte, 18)
	if _, err := io.ReadFull(conn, hello); err != nil {
		return fail("greeting", err)
	}
	b := binary.BigEndian.AppendUint32(nil, 3) // fixed newstyle, no zeroes
	b = append(b, "IHAVEOPT"...)
	b = binary.BigEndian.AppendUint32(b, 1) // NBD_OPT_EXPORT_NAME
	b = binary.BigEndian.AppendUint32(b, uint32(len(export)))
	b = append(b, export...)
	if _, err := conn.Write(b); err != nil {
		return fail("export name", err)
	}
	info := make([]byte, 10)
	if _, err := io.ReadFull(conn, info); err != nil {
		return fail("export", err)
	}
	return conn, nil
}

func (w *writer) loop() error {
	replies := bufio.NewReader(w.conn)
	inFlight := map[uint64]int{} // number -> block
	busy := map[int]bool{}       // one write per block at a time, so that order is known
	number := w.base
	buf := make([]byte, 28+writerBlock)
	reply := make([]byte, 16)
	for {
		for len(inFlight) < writerDepth && !w.quit.Load() {
			block := rand.IntN(len(w.acked))
			if busy[block] {
				continue
			}
			number++
			request(buf, number, block)
			w.sent[block] = number
			if _, err := w.conn.Write(buf); err != nil {
				return err
			}
			inFlight[number], busy[block] = block, true
		}
		if len(inFlight) == 0 {
			return nil
		}
		if _, err := io.ReadFull(replies, reply); err != nil {
			return err
		}
		if e := binary.BigEndian.Uint32(reply[4:]); e != 0 {
			return fmt.Errorf("write refused with NBD error %d", e)
		}
		n := binary.BigEndian.Uint64(reply[8:])
		block, ok := inFlight[n]
		if !ok {
			return fmt.Errorf("reply to unknown request %d", n)
		}
		delete(inFlight, n)
		delete(busy, block)
		w.acked[block] = n
		w.count.Add(1)
	}
}

// request fills buf with a write of a block full of its number.
func request(buf []byte, number uint64, block int) {
	binary.BigEndian.PutUint32(buf, 0x25609513)
	binary.BigEndian.PutUint32(buf[4:], 1) // NBD_CMD_WRITE
	binary.BigEndian.PutUint64(buf[8:], number)
	binary.BigEndian.PutUint64(buf[16:], uint64(block)*writerBlock)
	binary.BigEndian.PutUint32(buf[24:], writerBlock)
	for i := 28; i < len(buf); i += 8 {
		binary.BigEndian.PutUint64(buf[i:], number)
	}
}

// stop ends the writer after its last acknowledgement.
func (w *writer) stop() {
	w.t.Helper()
	w.quit.Store(true)
	if err := <-w.done; err != nil {
		w.t.Errorf("writer: %v", err)
	}
	w.conn.Close()
}

// end waits for the writer whose server has died.
func (w *writer) end() {
	w.t.Helper()
	if err := <-w.done; err == nil || !errors.Is(err, io.EOF) && !isClosed(err) {
		w.t.Errorf("writer: %v", err)
	}
	if w.count.Load() == 0 {
		w.t.Error("the writer got no acknowledgement at all")
	}
}

func isClosed(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) || errors.Is(err, io.ErrUnexpectedEOF)
}

// check reads the blocks from a node and compares them with the record.
func (w *writer) check(n *node) {
	w.t.Helper()
	got := readExport(w.t, n.uri("r0"))
	lost, torn := 0, 0
	for block := range w.acked {
		if w.sent[block] == 0 {
			continue
		}
		b := got[block*writerBlock:][:writerBlock]
		first := binary.BigEndian.Uint64(b)
		for i := 8; i < writerBlock; i += 8 {
			if binary.BigEndian.Uint64(b[i:]) != first {
				torn++
				break
			}
		}
		if w.acked[block] != 0 && first != w.acked[block] && first != w.sent[block] {
			lost++
		}
	}
	if lost > 0 || torn > 0 {
		w.t.Errorf("%s: of %d acknowledged writes %d blocks are lost, %d are torn", n.name, w.count.Load(), lost, torn)
	}
}

// readExport copies an export with nbdcopy.
func readExport(t *testing.T, uri string) []byte {
	t.Helper()
	needTool(t, "nbdcopy")
	to := filepath.Join(t.TempDir(), "copy")
	mustRun(t, "nbdcopy", uri, to)
	b, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
