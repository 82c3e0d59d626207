package conf

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// EditAdopt changes the list adopt in the text of a pollux.toml: it adds the names
// of add that are missing, and drops those of drop. Everything else stays byte for
// byte, comments included; src may be empty. path is for messages.
//
// The text that was made is read again: if it did not mean what it should, the
// error says what to write by hand. An error of src itself is as ParseDaemon's.
func EditAdopt(path string, src []byte, add, drop []string) ([]byte, error) {
	old, err := ParseDaemon(path, src)
	if err != nil {
		return nil, err
	}
	want := slices.DeleteFunc(slices.Clone(old.Adopt), func(n string) bool { return slices.Contains(drop, n) })
	text := string(src)
	for _, name := range drop {
		for range old.Adopt { // once for each time that it stands there
			text = dropAdopt(text, name)
		}
	}
	for _, name := range add {
		if !slices.Contains(want, name) {
			want = append(want, name)
			text = addAdopt(text, name)
		}
	}
	now, err := ParseDaemon(path, []byte(text))
	if err != nil || !slices.Equal(now.Adopt, want) || !sameButAdopt(old, now) {
		line, _ := toml.Marshal(map[string][]string{"adopt": want}) // a list of texts always can be
		return nil, fmt.Errorf("%s: the list adopt can't be changed automatically, expected to write by hand: %s", path, strings.TrimSpace(string(line)))
	}
	return []byte(text), nil
}

// sameButAdopt reports whether two settings differ in adopt alone.
func sameButAdopt(a, b *Daemon) bool {
	x, y := *a, *b
	for _, d := range []*Daemon{&x, &y} {
		d.Adopt, d.adoptPos, d.resourcePos = nil, nil, nil
	}
	return reflect.DeepEqual(x, y)
}

// An adoptList is where the list stands in a text; all in bytes from its start.
type adoptList struct {
	found       bool
	open, close int   // of its brackets
	elements    []elt // in order
	afterKeys   int   // the end of the line of the last top-level key; 0 if there is none
}

type elt struct {
	start, end int
	name       string
	hasComma   bool
	afterComma int // behind the comma, if there is one
}

// findAdopt looks for the top-level key adopt. It relies on the text being right.
func findAdopt(text string) adoptList {
	var l adoptList
	s := &tomlScanner{src: []byte(text), line: 1, keys: map[string][]Pos{}}
	for s.pos < len(s.src) {
		s.blank()
		if s.pos >= len(s.src) {
			break
		}
		switch s.src[s.pos] {
		case '\n':
			s.newline()
			continue
		case '[': // a table: top-level keys stand above
			return l
		case '#':
		default:
			key := s.key("=")
			begin := s.pos
			s.value()
			if len(key) == 1 && key[0] == "adopt" {
				l.parse(text, begin, s.pos)
			}
			for s.pos < len(s.src) && s.src[s.pos] != '\n' {
				s.pos++
			}
			l.afterKeys = s.pos
			continue
		}
		for s.pos < len(s.src) && s.src[s.pos] != '\n' {
			s.pos++
		}
	}
	return l
}

// leadingComment is the length of the lines of comment that a text begins with.
func leadingComment(text string) int {
	n := 0
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "#") {
			break
		}
		n += len(line)
	}
	return n
}

// parse finds the elements of a list that stands in text[begin:end].
func (l *adoptList) parse(text string, begin, end int) {
	s := &tomlScanner{src: []byte(text), pos: begin, line: 1, keys: map[string][]Pos{}}
	for s.pos < end {
		switch c := s.src[s.pos]; {
		case c == '#':
			for s.pos < end && s.src[s.pos] != '\n' {
				s.pos++
			}
			continue
		case c == '[' && !l.found:
			l.found, l.open = true, s.pos
		case c == ']':
			l.close = s.pos
			return
		case c == ',' && len(l.elements) > 0:
			last := &l.elements[len(l.elements)-1]
			last.hasComma, last.afterComma = true, s.pos+1
		case c == '"' || c == '\'':
			e := elt{start: s.pos}
			s.str()
			e.end = s.pos
			var v struct{ X string }
			if _, err := toml.Decode("x = "+text[e.start:e.end], &v); err == nil {
				e.name = v.X
			}
			l.elements = append(l.elements, e)
			continue
		}
		s.pos++
	}
}

// lineOf returns the bounds of the line around a place, without its newline.
func lineOf(text string, at int) (start, end int) {
	start = strings.LastIndexByte(text[:at], '\n') + 1
	if end = strings.IndexByte(text[at:], '\n'); end < 0 {
		return start, len(text)
	}
	return start, at + end
}

func addAdopt(text, name string) string {
	l := findAdopt(text)
	word := fmt.Sprintf("%q", name)
	if !l.found {
		return insertLine(text, l.afterKeys, "adopt = ["+word+"]\n")
	}
	if len(l.elements) == 0 {
		return text[:l.open+1] + word + text[l.open+1:]
	}
	last := l.elements[len(l.elements)-1]
	start, _ := lineOf(text, l.close)
	if start <= last.end || strings.TrimSpace(text[start:l.close]) != "" { // all in one line
		return text[:last.end] + ", " + word + text[last.end:]
	}
	lineStart, _ := lineOf(text, last.start)
	indent := text[lineStart:last.start]
	if strings.TrimSpace(indent) != "" {
		indent = "    "
	}
	text = text[:start] + indent + word + ",\n" + text[start:]
	if !last.hasComma {
		text = text[:last.end] + "," + text[last.end:]
	}
	return text
}

// insertLine puts a line behind the last top-level key; without one, at the top
// of the file, below the comment that it begins with.
func insertLine(text string, afterKeys int, line string) string {
	at := afterKeys
	if at == 0 {
		if at = leadingComment(text); at < len(text) && text[at] != '\n' {
			line += "\n"
		}
		if at > 0 && text[at-1] != '\n' {
			line = "\n" + line
		}
		return text[:at] + line + text[at:]
	}
	if at == len(text) {
		return text + "\n" + line
	}
	return text[:at+1] + line + text[at+1:]
}

func dropAdopt(text, name string) string {
	l := findAdopt(text)
	i := slices.IndexFunc(l.elements, func(e elt) bool { return e.name == name })
	if i < 0 {
		return text
	}
	e := l.elements[i]
	start, end := lineOf(text, e.start)
	behind := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(text[e.end:end]), ","))
	if strings.TrimSpace(text[start:e.start]) == "" && (behind == "" || behind[0] == '#') && end < len(text) {
		return text[:start] + text[end+1:] // it has a line of its own
	}
	switch {
	case e.hasComma:
		return text[:e.start] + strings.TrimLeft(text[e.afterComma:], " \t")
	case i > 0 && l.elements[i-1].hasComma:
		return text[:l.elements[i-1].end] + text[e.end:]
	}
	return text[:e.start] + text[e.end:]
}
