package conf

import (
	"fmt"
	"strings"
)

// Limits of tokens. Source: drbd-utils, drbdadm scanner (observed with 9.22.0).
const (
	maxWord   = 128 // characters of a word
	maxString = 255 // characters of a quoted string, an escaped one counts once
	cutToken  = 20  // characters of a token that an error shows
)

type tokenKind uint8

const (
	tokEOF     tokenKind = iota
	tokPunct             // one of { } ; [ ] :
	tokWord              // also keywords; the parser decides by place
	tokString            // quoted; text is without quotes and escapes
	tokInt               // 1 to 8 digits and perhaps one of M K G s
	tokIPv4              // four groups of digits, range not checked
	tokIPv6              // hex groups with colons, perhaps a scope
	tokVersion           // N.N.N
	tokOther             // a character that begins nothing; an error but in skip
)

type token struct {
	kind tokenKind
	text string
	pos  Pos
	end  int // offset behind the token
}

// is reports whether the token is this keyword or punctuation. A quoted
// string is never a keyword.
func (t token) is(text string) bool {
	return (t.kind == tokWord || t.kind == tokPunct) && t.text == text
}

// String shows the token as an error message names it.
func (t token) String() string {
	if t.kind == tokEOF {
		return "the end of the file"
	}
	if t.kind == tokOther {
		return quoteCut(t.text) + " (text with such characters has to be in double quotes)"
	}
	return quoteCut(t.text)
}

func quoteCut(s string) string {
	if len(s) > cutToken {
		s = s[:cutToken] + "..."
	}
	return fmt.Sprintf("%q", s)
}

// A lexer cuts one file into tokens. The longest match counts and of equal
// ones the earlier kind in the order of tokenKind's comment: as every kind but
// the string and IPv6 is made of word characters only, it takes a run of them
// first and then looks what it is.
type lexer struct {
	file      string
	src       []byte
	pos       int
	line      int
	lineStart int
}

func newLexer(file string, src []byte) *lexer {
	return &lexer{file: file, src: src, line: 1}
}

func (l *lexer) here() Pos { return Pos{File: l.file, Line: l.line, Col: l.pos - l.lineStart + 1} }

// next returns the next token; at the end of the file it returns tokEOF for
// ever.
func (l *lexer) next() (token, *ParseError) {
	l.skipBlank()
	p := l.here()
	if l.pos >= len(l.src) {
		return token{kind: tokEOF, pos: p, end: l.pos}, nil
	}
	if n := scanIPv6(l.src[l.pos:]); n > 0 {
		return l.take(tokIPv6, n, p), nil
	}
	c := l.src[l.pos]
	switch {
	case strings.IndexByte("{};[]:", c) >= 0:
		return l.take(tokPunct, 1, p), nil
	case c == '"':
		return l.quoted(p)
	case isWordByte(c):
		n := 1
		for l.pos+n < len(l.src) && isWordByte(l.src[l.pos+n]) {
			n++
		}
		text := string(l.src[l.pos : l.pos+n])
		if n > maxWord {
			return token{}, errorAt(p, "word too long: %s has %d characters, at most %d are allowed", quoteCut(text), n, maxWord)
		}
		return l.take(wordKind(text), n, p), nil
	}
	return l.take(tokOther, 1, p), nil
}

func (l *lexer) take(kind tokenKind, n int, p Pos) token {
	text := string(l.src[l.pos : l.pos+n])
	l.pos += n
	return token{kind: kind, text: text, pos: p, end: l.pos}
}

func (l *lexer) skipBlank() {
	for l.pos < len(l.src) {
		switch l.src[l.pos] {
		case ' ', '\t', '\r':
			l.pos++
		case '\n':
			l.pos++
			l.line++
			l.lineStart = l.pos
		case '#':
			for l.pos < len(l.src) && l.src[l.pos] != '\n' {
				l.pos++
			}
		default:
			return
		}
	}
}

// quoted reads a double quoted string: the backslash makes the next character
// literal, there are no other escapes and no newlines.
func (l *lexer) quoted(p Pos) (token, *ParseError) {
	start := l.pos
	var text []byte
	for i := start + 1; i < len(l.src); i++ {
		c := l.src[i]
		switch {
		case c == '"':
			if len(text) > maxString {
				return token{}, errorAt(p, "quoted string too long: %s has %d characters, at most %d are allowed", quoteCut(string(text)), len(text), maxString)
			}
			l.pos = i + 1
			return token{kind: tokString, text: string(text), pos: p, end: l.pos}, nil
		case c == 0:
			return token{}, errorAt(p, "zero byte in the quoted string %s", quoteCut(string(text)))
		case c == '\\' && i+1 < len(l.src) && l.src[i+1] != '\n' && l.src[i+1] != 0:
			i++
			c = l.src[i]
		case c == '\n' || c == '\\':
			return token{}, unterminated(p, text)
		}
		text = append(text, c)
	}
	return token{}, unterminated(p, text)
}

func unterminated(p Pos, text []byte) *ParseError {
	return errorAt(p, "unterminated double quoted string %s: found the end of the line, expected '\"'", quoteCut(string(text)))
}

func isWordByte(c byte) bool {
	return isDigit(c) || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '/' || c == '.' || c == '_' || c == '-'
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isHex(c byte) bool { return isDigit(c) || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F' }

// wordKind says what a run of word characters is.
func wordKind(s string) tokenKind {
	if isInteger(s) {
		return tokInt
	}
	groups := strings.Split(s, ".")
	for _, g := range groups {
		if g == "" || strings.Trim(g, "0123456789") != "" || len(groups) == 4 && len(g) > 3 {
			return tokWord
		}
	}
	switch len(groups) {
	case 3:
		return tokVersion
	case 4:
		return tokIPv4
	}
	return tokWord
}

// isInteger reports whether s is 1 to 8 digits with perhaps a unit.
func isInteger(s string) bool {
	digits := strings.TrimRight(s, "MKGs")
	return len(digits) >= 1 && len(digits) <= 8 && len(s)-len(digits) <= 1 && strings.Trim(digits, "0123456789") == ""
}

// scanIPv6 returns the length of the IPv6 address that b begins with, with
// its scope, or 0. Two colons at least make one, so "10:20" stays a number, a
// colon and a number.
func scanIPv6(b []byte) int {
	n, colons, group := 0, 0, 0
	for ; n < len(b) && n < 40; n++ {
		switch {
		case b[n] == ':':
			colons, group = colons+1, 0
		case isHex(b[n]) && group < 4:
			group++
		default:
			goto done
		}
	}
done:
	if colons < 2 {
		return 0
	}
	if n < len(b) && b[n] == '.' && strings.EqualFold(string(b[:min(7, n)]), "::ffff:") {
		for n < len(b) && (isDigit(b[n]) || b[n] == '.') && n < 24 {
			n++
		}
	}
	if n < len(b) && b[n] == '%' {
		scope := n + 1
		for scope < len(b) && isWordByte(b[scope]) && scope-n <= 16 {
			scope++
		}
		if scope > n+1 {
			n = scope
		}
	}
	return n
}
