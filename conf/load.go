package conf

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Limits on what is read. Our own: the largest real configuration known to us
// is some hundred KiB.
const (
	maxFileBytes  = 1 << 20
	maxTotalBytes = 16 << 20
	maxFiles      = 1000
	maxNesting    = 32 // includes within includes
)

// Env is the host that Load reads for. The zero Env reads the real file
// system, has no host name and checks no addresses; SystemEnv is this machine.
type Env struct {
	// Hostname is compared with the names of "on" sections.
	Hostname string
	// LocalAddr reports whether an address is configured on this host. If it
	// is nil addresses are not checked and no floating section is local.
	LocalAddr func(netip.Addr) bool
	// ReadFile and Glob replace the file system's; errors should satisfy
	// errors.Is(err, fs.ErrNotExist) where that is the reason.
	ReadFile func(path string) ([]byte, error)
	Glob     func(pattern string) ([]string, error)
	// RealPath gives the one name of a file that has several; a file is read
	// once by it. Default: filepath.EvalSymlinks, or the cleaned path if
	// ReadFile is set.
	RealPath func(path string) (string, error)
	// Stdin is read for the file name "-".
	Stdin io.Reader
}

// SystemEnv is the environment of the running machine: its node name, its
// addresses at the time of each call, its files and standard input.
func SystemEnv() Env {
	name, err := os.Hostname()
	if err != nil {
		name = "" // no "on" section matches: every resource is ignored, which dump shows
	}
	return Env{Hostname: name, LocalAddr: isLocalAddr, Stdin: os.Stdin}
}

// isLocalAddr asks the kernel's list of addresses. All of 127.0.0.0/8 and ::1
// are local without being listed.
func isLocalAddr(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if a.IsLoopback() {
		return true
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, x := range addrs {
		if n, ok := x.(*net.IPNet); ok {
			if b, ok := netip.AddrFromSlice(n.IP); ok && b.Unmap() == a {
				return true
			}
		}
	}
	return false
}

func (e Env) withDefaults() Env {
	if e.RealPath == nil {
		e.RealPath = filepath.EvalSymlinks
		if e.ReadFile != nil {
			e.RealPath = func(path string) (string, error) { return filepath.Clean(path), nil }
		}
	}
	if e.ReadFile == nil {
		e.ReadFile = readBounded
	}
	if e.Glob == nil {
		e.Glob = filepath.Glob
	}
	if e.Stdin == nil {
		e.Stdin = strings.NewReader("")
	}
	return e
}

func readBounded(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.IsDir() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("is a directory")}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFileBytes+1))
}

// ExpandGlobs returns the files that the patterns match: each pattern's in
// sorted order, none twice. A pattern without a glob character names a file
// that must be there; reading it will say if it is not.
func ExpandGlobs(patterns []string, env Env) ([]string, error) {
	env = env.withDefaults()
	var files []string
	for _, p := range patterns {
		matches := []string{p}
		if hasGlob(p) {
			var err error
			if matches, err = env.Glob(p); err != nil {
				return nil, fmt.Errorf("expand the file pattern %q: %w", p, err)
			}
			slices.Sort(matches)
		}
		for _, m := range matches {
			if !slices.Contains(files, m) {
				files = append(files, m)
			}
		}
	}
	return files, nil
}

func hasGlob(p string) bool { return strings.ContainsAny(p, "*?[") }

// Load reads resource files and everything they include, and checks all of
// it. Names are of files, not patterns (see ExpandGlobs); "-" is standard
// input. Files named here belong together as if one included the others: one
// common and one global section, each resource once.
//
// The error is an ErrorList of everything wrong, a *ParseError for the first
// wrong syntax, or a wrapped error for a file that cannot be read. With an
// error the Config is nil.
func Load(files []string, env Env) (*Config, error) {
	l := newLoader(env)
	for _, f := range files {
		if err := l.loadMain(f); err != nil {
			return nil, err
		}
	}
	return l.finish()
}

// A loader reads the files of one configuration.
type loader struct {
	report
	env       Env
	cfg       *Config
	seen      map[string]bool // real paths that were read
	bytes     int
	nesting   int
	resources map[string]*ResourceSection
}

func newLoader(env Env) *loader {
	env = env.withDefaults()
	return &loader{
		env:       env,
		cfg:       &Config{Hostname: env.Hostname, Global: Global{MinorCount: 0, DialogRefresh: -1}},
		seen:      map[string]bool{},
		resources: map[string]*ResourceSection{},
	}
}

func (l *loader) finish() (*Config, error) {
	l.link()
	l.validate()
	if err := l.err(); err != nil {
		return nil, err
	}
	l.cfg.Warnings = l.warnings
	return l.cfg, nil
}

func (l *loader) loadMain(name string) error {
	shown, path, read := name, name, l.env.ReadFile
	if name == "-" {
		shown, path = "STDIN", "STDIN"
		read = func(string) ([]byte, error) { return io.ReadAll(io.LimitReader(l.env.Stdin, maxFileBytes+1)) }
	} else if abs, err := filepath.Abs(name); err == nil {
		path = abs
	}
	if l.cfg.File == "" {
		l.cfg.File = path
	}
	src, skip, err := l.read(path, read)
	if skip || err != nil {
		return err
	}
	return l.parse(shown, path, src)
}

// read returns a file's text; skip is set if the file was read before.
func (l *loader) read(path string, read func(string) ([]byte, error)) (src []byte, skip bool, err error) {
	identity := path
	if path != "STDIN" {
		if identity, err = l.env.RealPath(path); err != nil {
			return nil, false, fmt.Errorf("read configuration: %w", err)
		}
	}
	if l.seen[identity] {
		return nil, true, nil
	}
	l.seen[identity] = true
	if len(l.seen) > maxFiles {
		return nil, false, fmt.Errorf("read configuration %s: more than %d files", path, maxFiles)
	}
	if src, err = read(path); err != nil {
		return nil, false, fmt.Errorf("read configuration: %w", err)
	}
	if len(src) > maxFileBytes {
		return nil, false, fmt.Errorf("read configuration %s: the file is larger than %d KiB", path, maxFileBytes>>10)
	}
	if l.bytes += len(src); l.bytes > maxTotalBytes {
		return nil, false, fmt.Errorf("read configuration %s: more than %d MiB of files", path, maxTotalBytes>>20)
	}
	l.cfg.Files = append(l.cfg.Files, path)
	return src, false, nil
}

// parse parses one file into the configuration.
func (l *loader) parse(shown, path string, src []byte) error {
	p := newParser(l, shown, path, src)
	p.top()
	if p.fatal != nil {
		return p.fatal
	}
	if p.err != nil {
		// What was found before the parser had to stop belongs to the report.
		l.errs = append(l.errs, p.err)
		return l.report.err()
	}
	return nil
}

// include reads the files of an include statement; at is where it stands.
func (p *parser) include(pattern token) {
	if p.nesting >= maxNesting {
		p.failf(pattern.pos, "include %s: includes are nested more than %d deep", pattern, maxNesting)
		return
	}
	full := pattern.text
	shown := full
	if !filepath.IsAbs(full) {
		full = escapeGlob(filepath.Dir(p.path)) + "/" + pattern.text
		shown = filepath.Join(filepath.Dir(p.lex.file), pattern.text)
	}
	names := []string{unescapeGlob(full)}
	globbed := hasGlob(pattern.text)
	if globbed {
		var err error
		if names, err = p.env.Glob(full); err != nil {
			p.failf(pattern.pos, "include %s: bad pattern: %v", pattern, err)
			return
		}
		slices.Sort(names)
	}
	for _, name := range names {
		name = filepath.Clean(name)
		display := shown
		if globbed {
			display = name
			if rel, err := filepath.Rel(filepath.Dir(p.path), name); err == nil && !filepath.IsAbs(pattern.text) {
				display = filepath.Join(filepath.Dir(p.lex.file), rel)
			}
		}
		src, skip, err := p.read(name, p.env.ReadFile)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				p.failf(pattern.pos, "include %s: file %s does not exist", pattern, name)
			} else {
				p.failf(pattern.pos, "include %s: %v", pattern, err)
			}
			return
		}
		if skip {
			continue
		}
		p.nesting++
		err = p.parse(display, name, src)
		p.nesting--
		if err != nil {
			p.fatal = err
			p.failf(pattern.pos, "in an included file")
			return
		}
	}
}

func escapeGlob(dir string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(dir)
}

// unescapeGlob undoes escapeGlob for a name that is no pattern.
func unescapeGlob(p string) string {
	return strings.NewReplacer(`\\`, `\`, `\*`, "*", `\?`, "?", `\[`, "[").Replace(p)
}
