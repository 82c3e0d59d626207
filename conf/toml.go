package conf

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// A tomlFile is a decoded TOML file that knows where its keys stand; the
// toml library gives positions for wrong syntax only.
type tomlFile struct {
	report
	name string
	keys map[string][]Pos // by path, elements joined with \x00; arrays of tables have several
}

// decodeTOML decodes src strictly into the struct that into points to. A key
// that no field takes, a wrong type and wrong syntax are errors with their
// place. The result is for checks of values; a nil error means there are no
// such errors yet.
func decodeTOML(name string, src []byte, into any) (*tomlFile, error) {
	if len(src) > maxFileBytes {
		return nil, fmt.Errorf("read configuration %s: the file is larger than %d KiB", name, maxFileBytes>>10)
	}
	f := &tomlFile{name: name, keys: tomlKeys(name, src)}
	md, err := toml.Decode(string(src), into)
	if err != nil {
		return nil, f.syntaxError(err)
	}
	count := map[string]int{}
	for _, key := range md.Undecoded() {
		path := strings.Join(key, "\x00")
		if under := strings.Join(key[:len(key)-1], "\x00"); count[under] > 0 && len(key) > 1 {
			continue // the table itself is unknown and was reported
		}
		pos := f.nth(key, count[path])
		count[path]++
		f.errorf(pos, "unknown key %q%s", key.String(), suggestKey(key, into))
	}
	return f, nil
}

// syntaxError gives an error of the library its place in our form.
func (f *tomlFile) syntaxError(err error) error {
	var parse toml.ParseError
	if !errors.As(err, &parse) {
		return &ParseError{File: f.name, Line: 1, Col: 1, Msg: strings.TrimPrefix(err.Error(), "toml: ")}
	}
	line, col := parse.Position.Line, parse.Position.Col
	msg := parse.Message
	if msg == "" {
		msg = strings.TrimPrefix(parse.Error(), "toml: ")
	}
	if parse.LastKey != "" {
		msg = fmt.Sprintf("key %q: %s", parse.LastKey, msg)
		if line == 0 {
			p := f.at(strings.Split(parse.LastKey, ".")...)
			line, col = p.Line, p.Col
		}
	}
	return &ParseError{File: f.name, Line: max(line, 1), Col: max(col, 1), Msg: msg}
}

// at is where a key stands: the key itself, else the table it would be in,
// else the beginning of the file.
func (f *tomlFile) at(key ...string) Pos { return f.nth(key, 0) }

func (f *tomlFile) nth(key []string, n int) Pos {
	for k := key; len(k) > 0; k = k[:len(k)-1] {
		if list := f.keys[strings.Join(k, "\x00")]; len(list) > 0 {
			return list[min(n, len(list)-1)]
		}
	}
	return Pos{File: f.name, Line: 1, Col: 1}
}

// suggestKey names a key of the same table that is spelled nearly the same.
func suggestKey(key toml.Key, into any) string {
	t := reflect.TypeOf(into)
	var names []string
	for i := 0; ; i++ {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
			if t.Kind() == reflect.Map {
				i++ // the name of an element stands for no field
			}
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || i >= len(key) {
			return ""
		}
		names = names[:0]
		var next reflect.Type
		for j := range t.NumField() {
			tag := t.Field(j).Tag.Get("toml")
			if tag == key[i] {
				next = t.Field(j).Type
			}
			if tag != "" && tag != "-" {
				names = append(names, tag)
			}
		}
		if next == nil {
			break
		}
		t = next
	}
	if near := nearest(key[len(key)-1], names); near != "" {
		return fmt.Sprintf(", did you mean %q?", near)
	}
	slices.Sort(names)
	return ", expected one of " + strings.Join(names, ", ")
}

// tomlKeys finds where keys and tables of a TOML text stand. It is as lenient
// as can be: the library has the say on what is right.
func tomlKeys(name string, src []byte) map[string][]Pos {
	s := &tomlScanner{name: name, src: src, line: 1, keys: map[string][]Pos{}}
	var table []string
	for s.pos < len(s.src) {
		s.blank()
		if s.pos >= len(s.src) {
			break
		}
		p := Pos{File: name, Line: s.line, Col: s.pos - s.lineStart + 1}
		switch c := s.src[s.pos]; c {
		case '\n':
			s.newline()
			continue
		case '#':
		case '[':
			for s.pos < len(s.src) && s.src[s.pos] == '[' {
				s.pos++
			}
			table = s.key("]")
			s.add(table, p)
		default:
			key := s.key("=")
			s.add(slices.Concat(table, key), p)
			s.value()
		}
		for s.pos < len(s.src) && s.src[s.pos] != '\n' {
			s.pos++
		}
	}
	return s.keys
}

type tomlScanner struct {
	name      string
	src       []byte
	pos       int
	line      int
	lineStart int
	keys      map[string][]Pos
}

func (s *tomlScanner) add(key []string, p Pos) {
	if len(key) > 16 {
		return
	}
	path := strings.Join(key, "\x00")
	s.keys[path] = append(s.keys[path], p)
}

func (s *tomlScanner) newline() {
	s.pos++
	s.line++
	s.lineStart = s.pos
}

func (s *tomlScanner) blank() {
	for s.pos < len(s.src) && (s.src[s.pos] == ' ' || s.src[s.pos] == '\t' || s.src[s.pos] == '\r') {
		s.pos++
	}
}

// key reads a dotted key up to a stop character or the end of the line.
func (s *tomlScanner) key(stop string) []string {
	var key []string
	for s.pos < len(s.src) && s.src[s.pos] != '\n' {
		s.blank()
		start := s.pos
		switch {
		case s.pos >= len(s.src):
			return key
		case strings.IndexByte(stop, s.src[s.pos]) >= 0:
			s.pos++
			return key
		case s.src[s.pos] == '"' || s.src[s.pos] == '\'':
			s.str()
			key = append(key, strings.Trim(string(s.src[start:s.pos]), `"'`))
		case s.src[s.pos] == '.':
			s.pos++
		default:
			for s.pos < len(s.src) && strings.IndexByte(" \t\r\n.\"'=]", s.src[s.pos]) < 0 {
				s.pos++
			}
			if s.pos == start {
				s.pos++
				continue
			}
			key = append(key, string(s.src[start:s.pos]))
		}
	}
	return key
}

// value skips a value: strings, and brackets over several lines.
func (s *tomlScanner) value() {
	for depth := 0; s.pos < len(s.src); {
		switch c := s.src[s.pos]; c {
		case '"', '\'':
			s.str()
			continue
		case '#':
			for s.pos < len(s.src) && s.src[s.pos] != '\n' {
				s.pos++
			}
			continue
		case '[', '{':
			depth++
		case ']', '}':
			depth--
		case '\n':
			if depth <= 0 {
				return
			}
			s.newline()
			continue
		}
		s.pos++
	}
}

// str skips a string of any of the four kinds.
func (s *tomlScanner) str() {
	q := s.src[s.pos]
	three := strings.Repeat(string(q), 3)
	if strings.HasPrefix(string(s.src[s.pos:min(s.pos+3, len(s.src))]), three) {
		s.pos += 3
		for s.pos < len(s.src) {
			switch {
			case s.src[s.pos] == '\n':
				s.newline()
			case s.src[s.pos] == '\\' && q == '"' && s.pos+1 < len(s.src) && s.src[s.pos+1] != '\n':
				s.pos += 2
			case strings.HasPrefix(string(s.src[s.pos:min(s.pos+3, len(s.src))]), three):
				s.pos += 3
				return
			default:
				s.pos++
			}
		}
		return
	}
	for s.pos++; s.pos < len(s.src) && s.src[s.pos] != '\n'; s.pos++ {
		if s.src[s.pos] == '\\' && q == '"' && s.pos+1 < len(s.src) && s.src[s.pos+1] != '\n' {
			s.pos++
		} else if s.src[s.pos] == q {
			s.pos++
			return
		}
	}
}

// absPath makes a path of a TOML file absolute: relative ones count from the
// directory of the file. "" stays "".
func (f *tomlFile) absPath(path *string) {
	if *path == "" || filepath.IsAbs(*path) {
		return
	}
	dir := filepath.Dir(f.name)
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	*path = filepath.Join(dir, *path)
}

// oneOf checks a value that is one of a few words.
func (f *tomlFile) oneOf(value string, words []string, key ...string) {
	if !slices.Contains(words, value) {
		f.errorf(f.at(key...), "%s: found %q, expected one of %s", strings.Join(key, "."), value, strings.Join(words, ", "))
	}
}
