package meta

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// A token of a dump: a word, a quoted string with its quotes, or one of { } ;.
// At the end of the text it is empty.
type token struct {
	text string
	line int
}

// maxToken bounds a token, in bytes; the longest that means something is the
// line that marks an unclean dump.
const maxToken = 256

type dumpLexer struct {
	r    *bufio.Reader
	line int
}

func (l *dumpLexer) next() (token, error) {
	c, err := l.skip()
	t := token{line: l.line}
	if errors.Is(err, io.EOF) {
		return t, nil
	}
	if err != nil {
		return t, err
	}
	switch {
	case c == '{' || c == '}' || c == ';':
		t.text = string(rune(c))
		return t, nil
	case c == '"':
		return l.rest(c, func(c byte) bool { return c != '"' && c != '\n' }, true)
	case wordByte(c):
		return l.rest(c, wordByte, false)
	}
	return t, &ParseError{Line: l.line, Msg: fmt.Sprintf("invalid input character '\\x%02x' [%c]", c, printable(c))}
}

func printable(c byte) rune {
	if c < ' ' || c > '~' {
		return '.'
	}
	return rune(c)
}

// wordByte: "'" and "." are there for the line that marks an unclean dump.
func wordByte(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' ||
		c == '-' || c == '_' || c == '.' || c == '\''
}

// skip returns the first byte that isn't white space or part of a comment.
func (l *dumpLexer) skip() (byte, error) {
	comment := false
	for {
		c, err := l.r.ReadByte()
		if err != nil {
			return 0, err
		}
		switch {
		case c == '\n':
			l.line++
			comment = false
		case comment || c == ' ' || c == '\t' || c == '\r':
		case c == '#':
			comment = true
		default:
			return c, nil
		}
	}
}

// rest reads the rest of a token while ok, and the closing quote if quoted.
func (l *dumpLexer) rest(first byte, ok func(byte) bool, quoted bool) (token, error) {
	text := []byte{first}
	for {
		c, err := l.r.ReadByte()
		if err != nil && !errors.Is(err, io.EOF) {
			return token{}, err
		}
		if err == nil && ok(c) {
			if text = append(text, c); len(text) > maxToken {
				return token{}, &ParseError{Line: l.line, Msg: fmt.Sprintf("word of more than %d bytes", maxToken)}
			}
			continue
		}
		if quoted {
			if err != nil || c != '"' {
				return token{}, &ParseError{Line: l.line, Msg: "string without closing quote"}
			}
			text = append(text, c)
		} else if err == nil {
			if err := l.r.UnreadByte(); err != nil {
				return token{}, err
			}
		}
		return token{text: string(text), line: l.line}, nil
	}
}
