package conf

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// A VMFile is one file that should describe a VM, right or wrong.
type VMFile struct {
	Path string
	// Name is what the VM is called: as the file says, or, where that can't be
	// read, the file's own name without ".vm.toml".
	Name string
	VM   *VM   // nil if the file is wrong
	Err  error // what is wrong with it, as LoadVM says it
}

// vmSuffix ends the names of descriptions.
const vmSuffix = ".vm.toml"

// ReadVMFiles reads all files that the patterns match, each for itself, sorted by
// path. The error is one of the patterns.
func ReadVMFiles(patterns []string, env Env) ([]VMFile, error) {
	paths, err := ExpandGlobs(patterns, env)
	if err != nil {
		return nil, err
	}
	var files []VMFile
	for _, path := range paths {
		src, err := readBounded(path)
		if err != nil {
			files = append(files, VMFile{Path: path, Name: nameOfFile(path), Err: err})
			continue
		}
		files = append(files, NewVMFile(path, src))
	}
	return files, nil
}

// NewVMFile is one file with a text that was read before.
func NewVMFile(path string, src []byte) VMFile {
	f := VMFile{Path: path, Name: nameOfFile(path)}
	if f.VM, f.Err = ParseVM(path, src); f.Err == nil {
		f.Name = f.VM.Name
		return f
	}
	var named struct {
		Name string `toml:"name"`
	}
	if _, deep := tomlKeys(path, src); deep.IsSet() || len(src) > maxTOMLBytes {
		return f // not for the library: see maxTOMLDepth
	}
	if _, err := toml.Decode(string(src), &named); err == nil && validVMName(named.Name) {
		f.Name = named.Name
	}
	return f
}

func nameOfFile(path string) string { return strings.TrimSuffix(filepath.Base(path), vmSuffix) }

// A Conflict is two descriptions that can't both hold. Each has its own view of it.
type Conflict struct {
	VMs  [2]*VM
	Errs [2]error // *ParseError, at the key of VMs[i]
}

// VMConflicts finds machines of one name, disks that two machines write to, and
// addresses that two have. Each pair is there once, in the order of vms.
func VMConflicts(vms []*VM) []Conflict {
	var out []Conflict
	clash := func(a, b *VM, key, what, do string) {
		if slices.ContainsFunc(out, func(c Conflict) bool { return c.VMs == [2]*VM{a, b} }) {
			return // the first reason will do
		}
		text := func(v, other *VM) error {
			return errorAt(v.place(key), "%s: %s VM %s (%s) as well: %s", key, what, other.Name, other.File, do)
		}
		out = append(out, Conflict{VMs: [2]*VM{a, b}, Errs: [2]error{text(a, b), text(b, a)}})
	}
	names, writers, holders := map[string][]*VM{}, map[string][]*VM{}, map[string][]*VM{}
	for _, v := range vms {
		for _, other := range names[v.Name] {
			clash(other, v, "name", "it is that of", "rename one of them, or remove its file")
		}
		names[v.Name] = append(names[v.Name], v)
		for _, d := range v.Disks() {
			if d.ReadOnly {
				continue
			}
			for _, other := range writers[d.Export()] {
				clash(other, v, "resources", d.Export()+" is a disk of", "two machines on one disk destroy its file system; give each its own")
			}
			writers[d.Export()] = append(writers[d.Export()], v)
		}
		for _, ip := range v.IPs {
			addr := ip.Address.Addr().String()
			for _, other := range holders[addr] {
				clash(other, v, "ips", addr+" is an address of", "give each its own")
			}
			holders[addr] = append(holders[addr], v)
		}
	}
	return out
}

// Nearest is the one of names that a word was probably meant to be; "" if none is
// near.
func Nearest(word string, names []string) string {
	for _, n := range names {
		if strings.EqualFold(n, word) {
			return n
		}
	}
	near := nearest(word, names)
	if near == "" || 2*editDistance(word, near) > len(word) { // short names are all near each other
		return ""
	}
	return near
}

// DidYouMean is Nearest as the end of a sentence: `; did you mean "web"?`, or "".
func DidYouMean(word string, names []string) string {
	if near := Nearest(word, names); near != "" && near != word {
		return "; did you mean " + strconv.Quote(near) + "?"
	}
	return ""
}
