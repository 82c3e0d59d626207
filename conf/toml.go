package conf

import (
	"encoding"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// Bounds on pollux.toml and a VM's description, our own. The toml library
// needs memory that grows with the square of the depth of inline tables and
// of the parts of a dotted key, so both are checked before it sees a text.
const (
	maxTOMLBytes = 256 << 10
	maxTOMLDepth = 16
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
	if len(src) > maxTOMLBytes {
		return nil, fmt.Errorf("read configuration %s: the file is larger than %d KiB", name, maxTOMLBytes>>10)
	}
	keys, deep := tomlKeys(name, src)
	if deep.IsSet() {
		return nil, errorAt(deep, "found more than %d brackets or key parts in each other, expected at most that many", maxTOMLDepth)
	}
	f := &tomlFile{name: name, keys: keys}
	var tree map[string]any
	if _, err := toml.Decode(string(src), &tree); err != nil {
		return nil, f.syntaxError(err)
	}
	f.checkTypes(tree, reflect.TypeOf(into).Elem(), nil, f.at)
	if err := f.err(); err != nil {
		return nil, err
	}
	if _, err := toml.Decode(string(src), into); err != nil {
		return nil, f.syntaxError(err) // a text that a type of ours does not take
	}
	return f, nil
}

// checkTypes compares a decoded value with the Go type it is for: the library
// passes over unknown keys and says where a wrong type stands in words only.
// at tells where a key of the table around the value stands.
func (f *tomlFile) checkTypes(v any, t reflect.Type, key []string, at func(...string) Pos) {
	wrong := func(want string) {
		f.errorf(at(key...), "%s: found %s, expected %s", toml.Key(key), tomlKind(v), want)
	}
	if _, own := reflect.New(t).Interface().(toml.Unmarshaler); own {
		return // it checks the type itself
	}
	if _, text := reflect.New(t).Interface().(encoding.TextUnmarshaler); text {
		if _, ok := v.(string); !ok {
			wrong("a text")
		}
		return
	}
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		table, ok := v.(map[string]any)
		if !ok {
			wrong("a table")
			return
		}
		for _, name := range slices.Sorted(maps.Keys(table)) {
			sub := append(slices.Clone(key), name)
			if t.Kind() == reflect.Map {
				f.checkTypes(table[name], t.Elem(), sub, at)
			} else if field, names := tomlField(t, name); field != nil {
				f.checkTypes(table[name], field, sub, at)
			} else {
				f.errorf(at(sub...), "unknown key %q%s", toml.Key(sub), suggestKey(name, names))
			}
		}
	case reflect.Slice:
		f.checkElements(v, t.Elem(), key, at, wrong)
	case reflect.String:
		if _, ok := v.(string); !ok {
			wrong("a text")
		}
	case reflect.Bool:
		if _, ok := v.(bool); !ok {
			wrong("true or false")
		}
	case reflect.Int:
		if _, ok := v.(int64); !ok {
			wrong("a number")
		}
	default:
		panic(fmt.Sprintf("conf: no rule for the type %v of key %v", t, key))
	}
}

// checkElements looks at an array, be it written as one or as tables [[key]].
func (f *tomlFile) checkElements(v any, elem reflect.Type, key []string, at func(...string) Pos, wrong func(string)) {
	switch list := v.(type) {
	case []any:
		for _, e := range list {
			f.checkTypes(e, elem, key, at)
		}
	case []map[string]any:
		for n, e := range list {
			f.checkTypes(e, elem, key, func(k ...string) Pos { return f.inTable(key, n, k) })
		}
	default:
		wrong("a list in [ ]")
	}
}

func tomlKind(v any) string {
	switch v.(type) {
	case string:
		return "a text"
	case int64, float64:
		return "a number"
	case bool:
		return "true or false"
	case map[string]any:
		return "a table"
	case []any, []map[string]any:
		return "a list"
	}
	return "a date"
}

// tomlField returns the type of the field for a key, or nil and the keys that
// there are.
func tomlField(t reflect.Type, name string) (reflect.Type, []string) {
	var names []string
	for i := range t.NumField() {
		tag := t.Field(i).Tag.Get("toml")
		if tag == name && tag != "-" {
			return t.Field(i).Type, nil
		}
		if tag != "" && tag != "-" {
			names = append(names, tag)
		}
	}
	return nil, names
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
func (f *tomlFile) at(key ...string) Pos {
	for k := key; len(k) > 0; k = k[:len(k)-1] {
		if list := f.keys[strings.Join(k, "\x00")]; len(list) > 0 {
			return list[0]
		}
	}
	return Pos{File: f.name, Line: 1, Col: 1}
}

// inTable is where a key of the nth table [[table]] stands; the table itself
// if it has no such key.
func (f *tomlFile) inTable(table []string, n int, key []string) Pos {
	heads := f.keys[strings.Join(table, "\x00")]
	if n >= len(heads) {
		return f.at(key...)
	}
	for ; len(key) > len(table); key = key[:len(key)-1] {
		for _, p := range f.keys[strings.Join(key, "\x00")] {
			if p.Line > heads[n].Line && (n+1 == len(heads) || p.Line < heads[n+1].Line) {
				return p
			}
		}
	}
	return heads[n]
}

// suggestKey names a key that is spelled nearly the same, else all.
func suggestKey(name string, names []string) string {
	if near := nearest(name, names); near != "" {
		return fmt.Sprintf(", did you mean %q?", near)
	}
	slices.Sort(names)
	return ", expected one of " + strings.Join(names, ", ")
}

// tomlKeys finds where keys and tables of a TOML text stand. It is as lenient
// as can be: the library has the say on what is right. deep is where the text
// is nested too deep for the library, else the zero Pos.
func tomlKeys(name string, src []byte) (keys map[string][]Pos, deep Pos) {
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
	return s.keys, s.deep
}

type tomlScanner struct {
	name      string
	src       []byte
	pos       int
	line      int
	lineStart int
	keys      map[string][]Pos
	deep      Pos
}

func (s *tomlScanner) tooDeep() {
	if !s.deep.IsSet() {
		s.deep = Pos{File: s.name, Line: s.line, Col: s.pos - s.lineStart + 1}
	}
}

func (s *tomlScanner) add(key []string, p Pos) {
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
			if len(key) > maxTOMLDepth {
				s.tooDeep()
				key = key[:maxTOMLDepth]
			}
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
			if len(key) > maxTOMLDepth {
				s.tooDeep()
				key = key[:maxTOMLDepth]
			}
		}
	}
	return key
}

// value skips a value: strings, and brackets over several lines.
func (s *tomlScanner) value() {
	for depth, dots := 0, 0; s.pos < len(s.src); {
		if depth > maxTOMLDepth || dots > maxTOMLDepth {
			s.tooDeep()
		}
		switch c := s.src[s.pos]; c {
		case '.':
			dots++
		case ',', '=':
			dots = 0
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
			dots = 0
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
	if slices.Contains(words, value) {
		return
	}
	known := slices.DeleteFunc(slices.Clone(words), func(w string) bool { return w == "" }) // as if it were not written
	expected := "expected one of " + strings.Join(known, ", ")
	if len(known) == 1 {
		expected = fmt.Sprintf("expected %q", known[0])
	}
	f.errorf(f.at(key...), "%s: found %q, %s", strings.Join(key, "."), value, expected)
}
