package conf

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
)

// Hash names what the description says: two nodes whose files differ in it
// must not act on each other's behalf. Comments, order and spelling of the file
// do not count, nor does a key that is written with its default, so that a new
// version's keys don't make a difference until they are used. 16 hexadecimal
// digits.
func (v *VM) Hash() string {
	sum := sha256.Sum256([]byte(v.canonical()))
	return hex.EncodeToString(sum[:8])
}

// canonical has a line for each key that is not as a description with nothing
// in it would have it, in the order of the type.
func (v *VM) canonical() string {
	var b strings.Builder
	base := DefaultVM()
	base.Name = v.Name
	base.Failback, base.Units = v.Failback, v.Units // others depend on these two
	base.settle(&tomlFile{})
	base.Name, base.Failback, base.Units = "", DefaultVM().Failback, nil
	canonical(&b, "", reflect.ValueOf(v.besideFile()).Elem(), reflect.ValueOf(base).Elem())
	return b.String()
}

// besideFile is v with the paths below its file's directory relative to that, as
// they may stand in the file: it need not lie in the same directory on both nodes.
func (v *VM) besideFile() *VM {
	c := *v
	c.LocalDisks = slices.Clone(v.LocalDisks)
	paths := []*string{&c.Boot.Kernel, &c.Boot.Initrd, &c.Boot.Firmware, &c.Console}
	for i := range c.LocalDisks {
		paths = append(paths, &c.LocalDisks[i].Path)
	}
	for _, p := range paths {
		if rest, below := strings.CutPrefix(*p, filepath.Dir(v.File)+"/"); below && v.File != "" {
			*p = rest
		}
	}
	return &c
}

func canonical(b *strings.Builder, key string, v, base reflect.Value) {
	if isLeaf(v.Type()) {
		if text := fmt.Sprint(v.Interface()); !base.IsValid() || text != fmt.Sprint(base.Interface()) {
			fmt.Fprintf(b, "%s=%q\n", key, text)
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			tag := v.Type().Field(i).Tag.Get("toml")
			if tag == "" || tag == "-" {
				continue
			}
			var sub reflect.Value
			if base.IsValid() {
				sub = base.Field(i)
			}
			canonical(b, key+"."+tag, v.Field(i), sub)
		}
	case reflect.Map:
		for _, name := range slices.Sorted(maps.Keys(v.Interface().(map[string]int))) {
			fmt.Fprintf(b, "%s.%q=%d\n", key, name, v.MapIndex(reflect.ValueOf(name)).Int())
		}
	case reflect.Slice: // their defaults are empty
		for i := range v.Len() {
			canonical(b, fmt.Sprintf("%s[%d]", key, i), v.Index(i), reflect.Value{})
		}
	default:
		panic(fmt.Sprintf("conf: no rule for the type %v of key %s", v.Type(), key))
	}
}

// isLeaf: what has one text.
func isLeaf(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Struct:
		_, ok := reflect.New(t).Elem().Interface().(fmt.Stringer)
		return ok
	case reflect.Map, reflect.Slice:
		return false
	default:
		return true
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
