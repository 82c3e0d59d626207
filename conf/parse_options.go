package conf

import (
	"fmt"
	"slices"
	"strings"
)

// section reads an option section, or the statement protocol, that t begins.
// It returns false if t begins something else. what names the place for
// errors.
func (p *parser) section(s *Sections, what string, t token) bool {
	if t.kind != tokWord {
		return false
	}
	switch name := Section(t.text); name {
	case SectionNet, SectionDisk, SectionOptions, SectionStartup, SectionHandlers:
		sec := s.get(name)
		p.once(&sec.Pos, t, what)
		p.body(func(t token) { p.option(s, sec, name, t) })
	case SectionProxy:
		p.once(&s.Proxy.Pos, t, what)
		p.proxySection(s)
	case "syncer":
		p.once(&s.syncer, t, what)
		p.body(func(t token) { p.syncerOption(s, t) })
	case "protocol":
		p.once(&s.protocol, t, what)
		p.optionValue(&s.Net, optionIndex[optionKey{SectionNet, "protocol"}], t, "protocol")
	default:
		return false
	}
	return true
}

// once reports a section that stands twice.
func (p *parser) once(first *Pos, t token, what string) {
	if first.IsSet() {
		p.errorf(t.pos, "conflicting use of section %s in %s, first used at %s", t.text, what, first.line())
		return
	}
	*first = t.pos
}

// option reads one option of a section of a resource or of common.
func (p *parser) option(s *Sections, sec *OptionSection, section Section, t token) {
	if section == SectionDisk && (t.text == "fencing") {
		// 8.4 has it in disk, 9 in net; it is one policy per connection.
		p.optionValue(&s.Net, optionIndex[optionKey{SectionNet, "fencing"}], t, t.text)
		return
	}
	p.plainOption(sec, section, t)
}

// plainOption reads one option of any section into sec; t is its name.
func (p *parser) plainOption(sec *OptionSection, section Section, t token) {
	if t.kind != tokWord && t.kind != tokString {
		p.unexpected(t, fmt.Sprintf("an option of the %s section or %q", section, "}"))
		return
	}
	if spec := optionIndex[optionKey{section, t.text}]; spec != nil {
		p.optionValue(sec, spec, t, t.text)
		return
	}
	if base, ok := strings.CutPrefix(t.text, "no-"); ok {
		if spec := optionIndex[optionKey{section, base}]; spec != nil && spec.Type == Boolean {
			p.expect(";")
			p.add(sec, Option{Name: base, Value: "no", Pos: t.pos, spec: spec, shown: base})
			return
		}
		if optionIndex[optionKey{section, base}] != nil {
			p.failf(t.pos, "found %s, expected %q with a value: only booleans have a form with \"no-\"", t, base)
			return
		}
	}
	switch {
	case slices.Contains(forgotten, t.text):
		p.value("a value of " + t.text)
		p.expect(";")
		p.warnf(t.pos, "%s is an option of DRBD 8.3 that has no effect any more", t.text)
	case section == SectionDisk && t.text == "use-bmbv":
		p.expect(";")
		p.warnf(t.pos, "%s is an option of DRBD 8.3 that has no effect any more", t.text)
	default:
		p.unknownOption(section, t)
	}
}

func (p *parser) unknownOption(section Section, t token) {
	for _, other := range sectionOrder {
		if other != section && optionIndex[optionKey{other, t.text}] != nil {
			p.failf(t.pos, "found %s, expected an option of the %s section; %s belongs into %s { }", t, section, t.text, other)
			return
		}
	}
	hint := ""
	if near := nearest(t.text, optionNames(section)); near != "" {
		hint = fmt.Sprintf(" such as %q", near)
	}
	p.failf(t.pos, "unknown option: found %s, expected an option of the %s section%s", t, section, hint)
}

// optionValue reads the value and the semicolon of an option and appends it.
func (p *parser) optionValue(sec *OptionSection, spec *OptionSpec, t token, shown string) {
	o := Option{Name: spec.Name, Pos: t.pos, spec: spec, shown: shown}
	if spec.Alias != "" {
		o.Name = spec.Alias
	}
	switch spec.Type {
	case Flag:
		p.expect(";")
	case Names:
		var names []string
		for p.err == nil && !p.tok.is(";") {
			names = append(names, p.value(`a host name or "both"`).text)
		}
		if len(names) == 0 {
			p.unexpected(p.tok, `host names or "both"`)
		}
		o.Value, o.hidden = strings.Join(names, " "), true // drbdadm 9 doesn't print it either
		p.expect(";")
	case Boolean:
		if o.Value = "yes"; !p.accept(";") {
			v := p.value(`"yes", "no" or ";"`)
			p.check(spec, t, v)
			o.Value = v.text
			p.expect(";")
		}
	case Numeric, Enum, NumericOrSymbol, String, VolumeName, Ignored:
		v := p.value("a value of " + t.text)
		p.check(spec, t, v)
		o.Value = v.text
		p.expect(";")
	}
	p.add(sec, o)
}

func (p *parser) check(spec *OptionSpec, name, v token) {
	if p.err != nil {
		return
	}
	if msg := spec.checkValue(v.text); msg != "" {
		found := v.String()
		if spec.Name == "shared-secret" {
			found = "(not shown)"
		}
		p.errorf(v.pos, "while parsing value %s for %s: %s", found, name.text, msg)
	}
}

// add appends an option; the same one with another value is an error.
func (p *parser) add(sec *OptionSection, o Option) {
	if p.err != nil {
		return
	}
	if first := sec.lookup(o.Name); first != nil && first.Value != o.Value {
		p.errorf(o.Pos, "conflicting use of option %s, first used with another value at %s", o.Name, first.Pos.line())
	} else if first != nil {
		p.warnf(o.Pos, "option %s is written twice, first at %s", o.Name, first.Pos.line())
	}
	sec.Options = append(sec.Options, o)
}

// syncerOption reads one option of 8.3's syncer section into where it lives
// now.
func (p *parser) syncerOption(s *Sections, t token) {
	name := t.text
	if base, ok := strings.CutPrefix(name, "no-"); ok {
		name = base
	}
	to, ok := legacySyncer[name]
	if t.kind != tokWord || !ok {
		names := make([]string, 0, len(legacySyncer))
		for n := range legacySyncer {
			names = append(names, n)
		}
		slices.Sort(names)
		p.unexpected(t, "one of the options of the syncer section: "+strings.Join(names, ", "))
		return
	}
	if t.text == name {
		t.text = to.name
	}
	p.plainOption(s.get(to.section), to.section, t)
}

// maxProxyOptions is our own bound; there are about ten.
const maxProxyOptions = 100

// proxySection reads a resource's proxy section, which is kept for dumps only.
func (p *parser) proxySection(s *Sections) {
	p.body(func(t token) {
		if !t.is("plugin") {
			p.proxyOption(&s.Proxy, t)
			return
		}
		p.body(func(t token) {
			line := quoteWord(t.text)
			for p.err == nil && !p.tok.is(";") {
				line += " " + quoteWord(p.value(`a word or ";"`).text)
			}
			p.expect(";")
			s.Proxy.Plugins = append(s.Proxy.Plugins, line)
		})
	})
}

func (p *parser) proxyOption(sec *OptionSection, t token) {
	if t.kind != tokWord {
		p.unexpected(t, "an option of the proxy section")
		return
	}
	v := p.value("a value of " + t.text)
	p.expect(";")
	p.add(sec, Option{Name: t.text, Value: v.text, Pos: t.pos, spec: &anyProxyOption, shown: t.text})
	p.bounded(t.pos, "proxy options", len(sec.Options), maxProxyOptions)
}

// nearest returns the candidate that is at most two edits away, or "".
func nearest(word string, candidates []string) string {
	best, at := "", 3
	for _, c := range candidates {
		if d := editDistance(word, c); d < at {
			best, at = c, d
		}
	}
	return best
}

// editDistance is Levenshtein's, with neighbours that are swapped counted once; it
// has three rows.
func editDistance(a, b string) int {
	before, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := range len(a) {
		cur[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			cur[j+1] = min(prev[j]+cost, prev[j+1]+1, cur[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				cur[j+1] = min(cur[j+1], before[j-1]+1)
			}
		}
		before, prev, cur = prev, cur, before
	}
	return prev[len(b)]
}
