package adm

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// AppendLine appends v as one line of JSON. It fails with a *ProtocolError if
// the line is longer than limit bytes.
func AppendLine(dst []byte, v any, limit int) ([]byte, error) {
	b, err := json.Marshal(v) // escapes newlines, so that a line is a message
	if err != nil {
		return dst, &ProtocolError{What: fmt.Sprintf("encode %T", v), Err: err}
	}
	if len(b)+1 > limit {
		return dst, &ProtocolError{What: fmt.Sprintf("message of %d bytes, at most %d are allowed", len(b)+1, limit)}
	}
	return append(append(dst, b...), '\n'), nil
}

// A LineReader reads lines of bounded length. It is for one goroutine.
type LineReader struct {
	r     *bufio.Reader
	limit int
	long  []byte // a line longer than r's buffer, gathered
}

// NewLineReader reads from r lines of at most limit bytes, newline included.
// No more than limit bytes and a small buffer are held, whatever comes.
func NewLineReader(r io.Reader, limit int) *LineReader {
	return &LineReader{r: bufio.NewReaderSize(r, min(limit, 64<<10)), limit: limit}
}

// Line returns the next line without its newline, valid until the next call.
// The end of input between lines is io.EOF, within one io.ErrUnexpectedEOF; a
// line over the limit is a *ProtocolError and leaves the reader unusable.
func (l *LineReader) Line() ([]byte, error) {
	l.long = l.long[:0]
	for {
		part, err := l.r.ReadSlice('\n')
		if len(l.long)+len(part) > l.limit {
			return nil, l.tooLong()
		}
		switch {
		case err == nil && len(l.long) == 0:
			return part[:len(part)-1], nil
		case err == nil:
			l.long = append(l.long, part...)
			return l.long[:len(l.long)-1], nil
		case errors.Is(err, bufio.ErrBufferFull):
			l.long = append(l.long, part...)
			if len(l.long) >= l.limit {
				return nil, l.tooLong()
			}
		case errors.Is(err, io.EOF) && len(l.long)+len(part) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}

func (l *LineReader) tooLong() error {
	return &ProtocolError{What: fmt.Sprintf("line of more than %d bytes", l.limit)}
}

// DecodeRequest decodes and validates one line. The request is returned as
// far as it was understood, so that its ID can be answered, also with an
// error, which is a *ProtocolError.
func DecodeRequest(line []byte) (Request, error) {
	var r Request
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return r, &ProtocolError{What: fmt.Sprintf("bad request %q", clip(string(line))), Err: err}
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return r, &ProtocolError{What: "more than one request on a line"}
	}
	return r, r.Validate()
}

// DecodeResponse decodes one line of the daemon.
func DecodeResponse(line []byte) (Response, error) {
	var r Response
	if err := json.Unmarshal(line, &r); err != nil {
		return r, &ProtocolError{What: fmt.Sprintf("bad response %q", clip(string(line))), Err: err}
	}
	if r.V != Version {
		return r, &ProtocolError{What: fmt.Sprintf("polluxd speaks version %d of the control protocol, polluxadm %d", r.V, Version)}
	}
	return r, nil
}

// DecodeEvent decodes one line of an event stream.
func DecodeEvent(line []byte) (Event, error) {
	var e Event
	if err := json.Unmarshal(line, &e); err != nil {
		return e, &ProtocolError{What: fmt.Sprintf("bad event %q", clip(string(line))), Err: err}
	}
	switch {
	case e.V != Version:
		return e, &ProtocolError{What: fmt.Sprintf("event of version %d of the control protocol, polluxadm speaks %d", e.V, Version)}
	case e.Kind == EventStatus && e.Resource == nil:
		return e, &ProtocolError{What: "status event without a resource"}
	}
	return e, nil
}
