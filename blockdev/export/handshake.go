package export

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/pollux-project/pollux/protocol/nbd"
)

// Limits of a handshake.
const (
	maxOptions    = 128      // options of one client
	maxOptionData = 16 << 10 // bytes of an option that we look at
	maxOptionDrop = 64 << 10 // bytes of an option that we read and drop; beyond we close
)

// errEnded says that a connection has ended as the protocol wants it.
var errEnded = errors.New("ended by the client")

// A handshake is the state of one client's options.
type handshake struct {
	c          *conn
	in         *bufio.Reader
	out        []byte // answers to one option
	noZeroes   bool
	structured bool
	metaFor    *served // SET_META_CONTEXT has chosen base:allocation for it
	last       *told   // what the option before this one was told, if INFO
}

// A told is an export with what its client has been told of it.
type told struct {
	name   string
	export *served
	info   Info
}

// negotiate runs the handshake. On success the connection's export, size and
// flags are set and the Backend's Open has succeeded.
func (c *conn) negotiate(in *bufio.Reader) error {
	if err := c.nc.SetDeadline(time.Now().Add(c.srv.cfg.HandshakeTimeout)); err != nil {
		return err
	}
	h := &handshake{c: c, in: in}
	const offered = nbd.FixedNewstyle | nbd.NoZeroes
	if _, err := c.nc.Write(nbd.AppendGreeting(nil, offered)); err != nil {
		return err
	}
	var buf [nbd.OptionHeaderSize]byte
	if _, err := io.ReadFull(in, buf[:nbd.ClientFlagsSize]); err != nil {
		return err
	}
	flags, err := nbd.DecodeClientFlags(buf[:], offered)
	if err != nil {
		return err
	}
	h.noZeroes = flags&nbd.NoZeroes != 0
	for range maxOptions {
		if _, err := io.ReadFull(in, buf[:]); err != nil {
			return err
		}
		head, err := nbd.DecodeOptionHeader(buf[:])
		if err != nil {
			return err
		}
		isOver, err := h.option(head)
		if err != nil {
			return err
		}
		if isOver {
			return c.nc.SetDeadline(time.Time{})
		}
	}
	return fmt.Errorf("more than %d options", maxOptions)
}

// option answers one option; true starts the transmission phase.
func (h *handshake) option(head nbd.OptionHeader) (bool, error) {
	data, err := h.readData(head)
	if err != nil {
		return false, err
	}
	last := h.last
	h.last = nil
	h.out = h.out[:0]
	if head.Option == nbd.OptExportName {
		return true, h.exportName(data, head)
	}
	isOver := false
	switch {
	case head.Option == nbd.OptAbort:
		h.ack(head.Option)
		_, _ = h.c.nc.Write(h.out) // the client may be gone already
		return false, errEnded
	case head.Length > maxOptionData:
		err = &nbd.OptionError{Type: nbd.RepErrTooBig, Text: fmt.Sprintf("option data of %d bytes, at most %d are taken", head.Length, maxOptionData)}
	default:
		isOver, err = h.answer(head.Option, data, last)
	}
	var oe *nbd.OptionError
	switch {
	case errors.As(err, &oe):
		h.out = nbd.AppendOptionError(h.out[:0], head.Option, oe)
		h.c.log().Debug().Stringer("option", head.Option).Str("reason", oe.Text).Msg("nbd: option refused")
	case err != nil:
		return false, err
	}
	if _, err := h.c.nc.Write(h.out); err != nil {
		return false, err
	}
	return isOver, nil
}

// readData takes an option's data off the stream. Data that is too long for
// any option of ours is dropped, up to a limit.
func (h *handshake) readData(head nbd.OptionHeader) ([]byte, error) {
	if head.Length > maxOptionDrop {
		return nil, &nbd.ProtocolError{Where: "option", Field: "length", Got: uint64(head.Length), Want: fmt.Sprintf("at most %d", maxOptionDrop)}
	}
	if head.Length > maxOptionData {
		_, err := h.in.Discard(int(head.Length))
		return nil, err
	}
	data := make([]byte, head.Length)
	_, err := io.ReadFull(h.in, data)
	return data, err
}

// answer does what an option other than EXPORT_NAME and ABORT asks for.
func (h *handshake) answer(o nbd.Option, data []byte, last *told) (bool, error) {
	switch o {
	case nbd.OptList:
		return false, h.list(data)
	case nbd.OptInfo:
		return false, h.info(o, data, last)
	case nbd.OptGo:
		err := h.info(o, data, last)
		return err == nil, err
	case nbd.OptStructuredReply:
		if len(data) != 0 {
			return false, &nbd.OptionError{Type: nbd.RepErrInvalid, Text: "the option has no data"}
		}
		h.structured = true
		h.ack(o)
		return false, nil
	case nbd.OptListMetaContext, nbd.OptSetMetaContext:
		return false, h.metaContext(o, data)
	case nbd.OptStartTLS:
		return false, &nbd.OptionError{Type: nbd.RepErrUnsup, Text: "this server has no TLS"}
	}
	return false, &nbd.OptionError{Type: nbd.RepErrUnsup, Text: "unknown option"}
}

func (h *handshake) ack(o nbd.Option) {
	h.out = nbd.AppendOptionReply(h.out, o, nbd.RepAck, nil)
}

func (h *handshake) list(data []byte) error {
	if len(data) != 0 {
		return &nbd.OptionError{Type: nbd.RepErrInvalid, Text: "the option has no data"}
	}
	for _, e := range h.c.srv.list() {
		h.out = nbd.AppendOptionReply(h.out, nbd.OptList, nbd.RepServer, nbd.AppendServer(nil, e.name, e.backend.Info().Description))
	}
	h.ack(nbd.OptList)
	return nil
}

// info answers INFO and GO; GO also opens the volume.
func (h *handshake) info(o nbd.Option, data []byte, last *told) error {
	req, err := nbd.DecodeInfoRequest(data)
	if err != nil {
		return err
	}
	t, err := h.enter(req.Name, last, o == nbd.OptInfo)
	if err != nil {
		return err
	}
	flags := h.c.flagsFor(t.info, h.structured)
	reply := func(b []byte) { h.out = nbd.AppendOptionReply(h.out, o, nbd.RepInfo, b) }
	reply(nbd.AppendInfoExport(nil, uint64(usable(t.info)), flags))
	if req.Wants(nbd.InfoName) {
		reply(nbd.AppendInfoText(nil, nbd.InfoName, t.export.name))
	}
	if req.Wants(nbd.InfoDescription) && t.info.Description != "" {
		reply(nbd.AppendInfoText(nil, nbd.InfoDescription, t.info.Description))
	}
	reply(nbd.AppendInfoBlockSize(nil, blockSizes(t.info)))
	h.ack(o)
	if o == nbd.OptInfo {
		h.c.leave()
		h.last = t
		return nil
	}
	h.c.begin(t.info, flags, h.structured, h.metaFor == t.export)
	return nil
}

// enter finds an export and opens its volume for this client. A GO right
// after an INFO of the same name is told the same.
func (h *handshake) enter(name string, last *told, isQuestion bool) (*told, error) {
	if h.c.srv.draining.Load() {
		return nil, &nbd.OptionError{Type: nbd.RepErrShutdown, Text: "the server is shutting down"}
	}
	e := h.c.srv.lookup(name)
	switch {
	case e == nil && name == "":
		return nil, &nbd.OptionError{Type: nbd.RepErrUnknown, Text: "there is no default export: name one of the list"}
	case e == nil || !h.c.srv.claim(h.c, e):
		return nil, &nbd.OptionError{Type: nbd.RepErrUnknown, Text: fmt.Sprintf("no export %q", name)}
	}
	release, err := e.backend.Open(ClientInfo{Export: name, Remote: h.c.remote, PID: h.c.pid, IsQuestion: isQuestion})
	if err != nil {
		h.c.srv.unclaim(h.c)
		return nil, &nbd.OptionError{Type: nbd.RepErrPolicy, Text: err.Error()}
	}
	h.c.release = release
	if last != nil && last.name == name && last.export == e {
		return last, nil
	}
	return &told{name: name, export: e, info: e.backend.Info()}, nil
}

// exportName starts the transmission phase the old way: an error has no other
// answer than closing.
func (h *handshake) exportName(data []byte, head nbd.OptionHeader) error {
	if head.Length > nbd.MaxString {
		return &nbd.ProtocolError{Where: "NBD_OPT_EXPORT_NAME", Field: "length", Got: uint64(head.Length), Want: fmt.Sprintf("at most %d", nbd.MaxString)}
	}
	name, err := nbd.DecodeName(data)
	if err != nil {
		return err
	}
	t, err := h.enter(name, nil, false)
	if err != nil {
		return err
	}
	flags := h.c.flagsFor(t.info, h.structured)
	h.out = nbd.AppendExportName(h.out, uint64(usable(t.info)), flags, !h.noZeroes)
	if _, err := h.c.nc.Write(h.out); err != nil {
		return err
	}
	h.c.begin(t.info, flags, h.structured, h.metaFor == t.export)
	return nil
}

// metaContext answers LIST_META_CONTEXT and SET_META_CONTEXT.
func (h *handshake) metaContext(o nbd.Option, data []byte) error {
	if o == nbd.OptSetMetaContext {
		h.metaFor = nil // replaced even if this one fails
	}
	if !h.structured {
		return &nbd.OptionError{Type: nbd.RepErrInvalid, Text: "structured replies come first"}
	}
	req, err := nbd.DecodeMetaContextRequest(data)
	if err != nil {
		return err
	}
	e := h.c.srv.lookup(req.Name)
	if e == nil {
		return &nbd.OptionError{Type: nbd.RepErrUnknown, Text: fmt.Sprintf("no export %q", req.Name)}
	}
	isList := o == nbd.OptListMetaContext
	matches := isList && len(req.Queries) == 0
	for _, q := range req.Queries {
		if q == nbd.BaseAllocation || isList && q == "base:" {
			matches = true
		}
	}
	if matches {
		if !isList {
			h.metaFor = e
		}
		h.out = nbd.AppendOptionReply(h.out, o, nbd.RepMetaContext, nbd.AppendMetaContext(nil, allocationContext, nbd.BaseAllocation))
	}
	h.ack(o)
	return nil
}

// allocationContext is our identifier of base:allocation.
const allocationContext = 1

// flagsFor says what an export can do.
func (c *conn) flagsFor(i Info, structured bool) nbd.TransmissionFlags {
	// CAN_MULTI_CONN is true of every Backend: nothing is buffered per
	// connection, so a flush covers what was answered on the others.
	f := nbd.HasFlags | nbd.SendFlush | nbd.SendFUA | nbd.SendTrim | nbd.SendWriteZeroes | nbd.CanMultiConn
	if i.ReadOnly {
		f = nbd.HasFlags | nbd.ReadOnly | nbd.SendFlush | nbd.SendFUA | nbd.CanMultiConn
	}
	if structured {
		f |= nbd.SendDF
	}
	return f
}

// usable is the size that is served, in bytes: whole sectors.
func usable(i Info) int64 { return i.Size &^ (sectorSize - 1) }

func blockSizes(i Info) nbd.BlockSizes {
	smallest := uint32(sectorSize)
	if i.BlockSize > sectorSize {
		smallest = uint32(i.BlockSize)
	}
	return nbd.BlockSizes{Minimum: smallest, Preferred: max(4096, smallest), Maximum: nbd.MaxPayload}
}
