package conf

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// A parser reads one file. It is a recursive descent with one token of
// look-ahead: the functions stand in the order of the grammar. The first
// syntax error is kept and turns every later token into the end of the file,
// so that all loops end; values are checked as they come and go on.
type parser struct {
	*loader
	lex  *lexer
	path string // absolute
	tok  token  // look-ahead
	err  *ParseError
	// fatal is an error of an included file, already complete.
	fatal error
}

func newParser(l *loader, shown, path string, src []byte) *parser {
	p := &parser{loader: l, lex: newLexer(shown, src), path: path}
	p.advance()
	return p
}

func (p *parser) advance() {
	if p.err != nil {
		return
	}
	t, err := p.lex.next()
	if err != nil {
		p.fail(err)
		return
	}
	p.tok = t
}

func (p *parser) fail(err *ParseError) {
	if p.err == nil {
		p.err = err
		p.tok = token{kind: tokEOF, pos: Pos{err.File, err.Line, err.Col}}
	}
}

func (p *parser) failf(pos Pos, format string, args ...any) { p.fail(errorAt(pos, format, args...)) }

// next takes the look-ahead.
func (p *parser) next() token {
	t := p.tok
	p.advance()
	return t
}

// unexpected is the one form of a syntax error.
func (p *parser) unexpected(t token, want string) {
	p.failf(t.pos, "found %s, expected %s", t, want)
}

func (p *parser) accept(text string) bool {
	if p.tok.is(text) {
		p.advance()
		return true
	}
	return false
}

// expect takes the given punctuation or keyword; or names what else could
// have stood there.
func (p *parser) expect(text string, or ...string) token {
	t := p.next()
	if !t.is(text) {
		want := ""
		for _, o := range or {
			want += fmt.Sprintf("%q or ", o)
		}
		p.unexpected(t, want+fmt.Sprintf("%q", text))
	}
	return t
}

// body reads { ... } and hands each first token of a statement to each. It
// returns the place of the closing brace.
func (p *parser) body(each func(t token)) Pos {
	open := p.expect("{")
	for p.err == nil {
		t := p.next()
		switch {
		case p.err != nil:
		case t.is("}"):
			return t.pos
		case t.kind == tokEOF:
			p.unexpected(t, fmt.Sprintf("%q for the section that begins in line %d", "}", open.pos.Line))
		default:
			each(t)
		}
	}
	return open.pos
}

// reserved are the words that are keywords everywhere; as a name they have to
// be quoted. Source: observed with drbdadm of drbd-utils 9.22.0.
var reserved = wordSet(`address ask cmd-timeout-short cmd-timeout-medium cmd-timeout-long common connection
	connection-mesh device dialog-refresh disable-ip-verification disk flexible-meta-disk floating global
	handlers host hosts include inside ipv4 ipv6 meta-disk minor minor-count net no node-id on options outside
	path port proxy require-drbd-module-version-eq require-drbd-module-version-ne require-drbd-module-version-gt
	require-drbd-module-version-ge require-drbd-module-version-lt require-drbd-module-version-le resource sci sdp
	skip ssocks stacked-on-top-of startup syncer template-file udev-always-use-vnr usage-count via volume yes`)

func wordSet(words string) map[string]bool {
	m := map[string]bool{}
	for _, w := range strings.Fields(words) {
		m[w] = true
	}
	return m
}

// needsQuotes reports whether a name would be read as something else without
// quotes.
func needsQuotes(name string) bool {
	if name == "" || reserved[name] || len(name) > maxWord {
		return true
	}
	for i := range len(name) {
		if !isWordByte(name[i]) {
			return true
		}
	}
	return wordKind(name) != tokWord
}

// name reads a word or quoted string where keywords are not allowed.
func (p *parser) name(what string) token {
	t := p.next()
	switch {
	case t.kind == tokString && t.text != "":
	case t.kind == tokWord && !reserved[t.text]:
	case t.kind == tokWord || t.kind == tokInt || t.kind == tokIPv4 || t.kind == tokVersion:
		p.failf(t.pos, "found %s, expected %s; write it in double quotes if it is meant as a name", t, what)
	default:
		p.unexpected(t, what)
	}
	return t
}

// value reads the value of an option: any word, number, address or string.
func (p *parser) value(what string) token {
	t := p.next()
	if t.kind == tokEOF || t.kind == tokPunct || t.kind == tokOther {
		p.unexpected(t, what)
	}
	return t
}

// integer reads a bare number without a suffix. A number over limit is
// reported and the parser goes on; 0 is returned for it.
func (p *parser) integer(what string, low, high int) (int, Pos) {
	t := p.next()
	if t.kind != tokInt {
		p.unexpected(t, what)
		return 0, t.pos
	}
	n, err := strconv.Atoi(t.text)
	if err != nil {
		p.failf(t.pos, "found %s, expected %s without a suffix", t, what)
		return 0, t.pos
	}
	if n < low || n > high {
		p.errorf(t.pos, "%s %d is out of range, expected %d to %d", what, n, low, high)
		return 0, t.pos
	}
	return n, t.pos
}

// top reads a whole file.
func (p *parser) top() {
	for p.err == nil && p.tok.kind != tokEOF {
		t := p.next()
		switch {
		case p.err != nil:
		case t.is("include"):
			pattern := p.name("a file name or pattern")
			p.expect(";")
			if p.err == nil {
				p.include(pattern)
			}
		case t.is("global"):
			p.global(t)
		case t.is("common"):
			p.common(t)
		case t.is("resource"):
			p.resource(t)
		case t.is("skip"):
			p.skip()
		case t.kind == tokWord && strings.HasPrefix(t.text, "require-drbd-module-version-") && reserved[t.text]:
			if v := p.next(); v.kind != tokVersion {
				p.unexpected(v, "a version N.N.N")
			}
			p.expect(";")
			p.warnf(t.pos, "%s asks for a kernel module; Pollux has none and ignores it", t.text)
		default:
			p.unexpected(t, `"global", "common", "resource", "skip" or "include"`)
		}
	}
}

// skip reads over "skip ANYTHING { balanced }"; "skip" was taken.
func (p *parser) skip() {
	for depth := 0; p.err == nil; {
		t := p.next()
		switch {
		case t.is("{"):
			depth++
		case t.is("}"):
			depth--
			if depth == 0 {
				return
			}
			if depth < 0 {
				p.unexpected(t, `"{" after "skip"`)
			}
		case t.is(";") && depth == 0:
			p.unexpected(t, `"{" after "skip"`)
		case t.kind == tokEOF:
			p.unexpected(t, `the end of a "skip" section`)
		}
	}
}

func (p *parser) global(at token) {
	g := &p.cfg.Global
	if g.Pos.IsSet() {
		p.errorf(at.pos, "conflicting use of the global section, first used at %s", g.Pos.line())
	} else if len(p.resources) > 0 {
		p.warnf(at.pos, "the global section should come before the first resource")
	}
	g.Pos = at.pos
	seen := map[string]Pos{}
	p.body(func(t token) {
		if first, ok := seen[t.text]; ok {
			p.errorf(t.pos, "%s is set twice in the global section, first at %s", t.text, first.line())
		}
		seen[t.text] = t.pos
		switch {
		case t.is("usage-count"):
			v := p.next()
			if !v.is("yes") && !v.is("no") && !v.is("ask") {
				p.unexpected(v, `"yes", "no" or "ask"`)
			}
			g.UsageCount = v.text
		case t.is("minor-count"):
			g.MinorCount, _ = p.integer("minor-count", 1, 255)
		case t.is("dialog-refresh"):
			g.DialogRefresh, _ = p.integer("dialog-refresh", 0, 600)
		case t.is("disable-ip-verification"):
			g.DisableIPVerification = true
		case t.is("udev-always-use-vnr"):
			g.UdevAlwaysUseVNR = true
		case t.is("cmd-timeout-short"), t.is("cmd-timeout-medium"), t.is("cmd-timeout-long"):
			if g.CmdTimeout == nil {
				g.CmdTimeout = map[string]int{}
			}
			g.CmdTimeout[strings.TrimPrefix(t.text, "cmd-timeout-")], _ = p.integer(t.text, 0, 900)
		default:
			p.unexpected(t, `"usage-count", "minor-count", "dialog-refresh", "disable-ip-verification", "udev-always-use-vnr" or "cmd-timeout-..."`)
		}
		p.expect(";")
	})
}

func (p *parser) common(at token) {
	if c := p.cfg.Common; c != nil {
		p.errorf(at.pos, "conflicting use of the common section, first used at %s", c.pos.line())
	}
	s := &Sections{pos: at.pos}
	p.body(func(t token) { p.commonItem(s, t) })
	if p.cfg.Common == nil {
		p.cfg.Common = s
	}
}

func (p *parser) commonItem(s *Sections, t token) {
	switch {
	case p.section(s, "common", t):
	case t.is("skip"):
		p.skip()
	case t.is("on"), t.is("floating"), t.is("stacked-on-top-of"):
		p.failf(t.pos, "found %s: in the common section, there are no host sections allowed", t)
	case t.is("volume"), t.is("device"), t.is("meta-disk"), t.is("flexible-meta-disk"):
		p.failf(t.pos, "found %s: in the common section, there are no volumes allowed", t)
	default:
		p.unexpected(t, `"protocol" or one of the sections "net", "disk", "options", "startup", "handlers", "syncer", "proxy"`)
	}
}

func (p *parser) resource(at token) {
	name := p.name("the name of the resource")
	r := &ResourceSection{Name: name.text, Pos: at.pos, File: p.path, Line: at.pos.Line}
	if p.err != nil {
		return
	}
	if strings.Contains(r.Name, "/") || r.Name == "." || r.Name == ".." {
		p.errorf(name.pos, "resource name %s: \"/\", \".\" and \"..\" cannot be used, the name becomes part of paths and of export names (NAME/VOLUME)", name)
	}
	if r.Name == "all" {
		p.warnf(name.pos, "a resource called \"all\" cannot be named in commands, where the word means every resource")
	}
	if first := p.resources[r.Name]; first != nil {
		p.errorf(at.pos, "conflicting use of resource section %s, first used at %s", name, first.Pos.line())
	} else {
		p.resources[r.Name] = r
	}
	r.end = p.body(func(t token) { p.resourceItem(r, t) })
	p.cfg.Resources = append(p.cfg.Resources, r)
}

func (p *parser) resourceItem(r *ResourceSection, t token) {
	what := "resource " + r.Name
	switch {
	case t.is("disk") && !p.tok.is("{"):
		p.volumeStatement(implicitVolume(&r.Volumes, t.pos), t)
	case p.section(&r.Sections, what, t):
	case t.is("on"):
		p.onHost(r, t)
	case t.is("floating"):
		p.floating(r, t)
	case t.is("stacked-on-top-of"):
		p.stacked(r, t)
	case t.is("ignore-on"):
		p.name("a host name")
		p.expect(";")
	case t.is("volume"):
		p.volume(&r.Volumes, t, what)
	case t.is("device"), t.is("meta-disk"), t.is("flexible-meta-disk"):
		p.volumeStatement(implicitVolume(&r.Volumes, t.pos), t)
	case t.is("connection"):
		p.connection(r, t)
	case t.is("connection-mesh"):
		p.mesh(r, t)
	case t.is("template-file"):
		p.templateFile(r, t)
	case t.is("skip"):
		p.skip()
	default:
		p.unexpected(t, `"on", "floating", "stacked-on-top-of", "volume", "device", "disk", "meta-disk", "protocol", "connection", "connection-mesh", "skip" or one of the sections "net", "disk", "options", "startup", "handlers", "syncer", "proxy"`)
	}
}

// templateFile reads the file whose common section replaces the general one.
func (p *parser) templateFile(r *ResourceSection, at token) {
	name := p.name("a file name")
	p.expect(";")
	if p.err != nil {
		return
	}
	if r.template != nil {
		p.errorf(at.pos, "template-file is set twice in resource %s", r.Name)
		return
	}
	path := name.text
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(p.path), path)
	}
	src, err := p.env.ReadFile(path)
	if err == nil && len(src) > maxFileBytes {
		err = fmt.Errorf("the file is larger than %d KiB", maxFileBytes>>10)
	}
	if p.bytes += len(src); err == nil && p.bytes > maxTotalBytes {
		err = fmt.Errorf("more than %d MiB of files", maxTotalBytes>>20)
	}
	if err != nil {
		p.failf(name.pos, "template-file %s: %v", name, err)
		return
	}
	r.TemplateFile, r.template = path, &Sections{}
	q := newParser(p.loader, path, path, src)
	for q.err == nil && q.tok.kind != tokEOF {
		t := q.next()
		switch {
		case t.is("common"):
			if r.template.pos.IsSet() {
				q.errorf(t.pos, "conflicting use of the common section, first used at %s", r.template.pos.line())
			}
			r.template.pos = t.pos
			q.body(func(t token) { q.commonItem(r.template, t) })
		case t.is("skip"):
			q.skip()
		default:
			q.unexpected(t, `"common": nothing else has a place in a template file`)
		}
	}
	if q.err != nil {
		p.fail(q.err)
	}
}
