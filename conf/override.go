package conf

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// An OverrideError is an option that can't be changed on a running resource,
// or not to that value.
type OverrideError struct {
	Section     Section
	Option, Msg string
}

func (e *OverrideError) Error() string {
	return fmt.Sprintf("option %s of section %s: %s", e.Option, e.Section, e.Msg)
}

// notAtRuntime are options that belong to another command: a size is changed
// by resize, together with the peer, and TLS is what the files say.
var notAtRuntime = map[string]string{
	"size": "it is changed with resize --size",
	"tls":  "it is changed in the configuration of both nodes, then with adjust: the connection is made anew",
}

// RuntimeOptions are the options of a section that disk-options and
// net-options take, by name: DRBD 8.4's, as they are in the table.
func RuntimeOptions(section Section) []OptionSpec {
	var specs []OptionSpec
	for _, o := range options {
		if o.Section == section && o.Alias == "" && (o.Dialect == Both || o.Dialect == Only8) && notAtRuntime[o.Name] == "" {
			specs = append(specs, o)
		}
	}
	return specs
}

// RefusedOptions are those that disk-options and net-options know and refuse,
// with the word for what changes them.
func RefusedOptions(section Section) []OptionSpec {
	return slices.DeleteFunc(Options(), func(o OptionSpec) bool { return o.Section != section || notAtRuntime[o.Name] == "" })
}

// WithNet returns r with single net options changed, as drbdsetup net-options
// does; with defaults all others have their default first. r stays as it is.
// The error is an *OverrideError, or what Resolve says of such a combination.
func (r *Resource) WithNet(changes map[string]string, defaults bool) (*Resource, error) {
	values, err := override(SectionNet, r.values[SectionNet], changes, defaults)
	if err != nil {
		return nil, err
	}
	c := *r
	c.values = maps.Clone(r.values)
	values["protocol"] = strings.ToUpper(values["protocol"])
	c.values[SectionNet] = values
	c.Net = NetOptions{}
	fill(&c.Net, SectionNet, values)
	if option, msg := c.conflict(); msg != "" {
		return nil, &OverrideError{Section: SectionNet, Option: option, Msg: msg}
	}
	return &c, nil
}

// WithDisk is WithNet for the disk options of one volume.
func (r *Resource) WithDisk(volume int, changes map[string]string, defaults bool) (*Resource, error) {
	i := slices.IndexFunc(r.Volumes, func(v Volume) bool { return v.Number == volume })
	if i < 0 {
		return nil, fmt.Errorf("resource %s has no volume %d", r.Name, volume)
	}
	c := *r
	c.Volumes = slices.Clone(r.Volumes)
	v := &c.Volumes[i]
	values, err := override(SectionDisk, v.values, changes, defaults)
	if err != nil {
		return nil, err
	}
	v.values, v.Options = values, DiskOptions{}
	fill(&v.Options, SectionDisk, values)
	if v.Options.Fencing == "resource-and-stonith" && c.Net.Protocol == "A" {
		return nil, &OverrideError{Section: SectionDisk, Option: "fencing", Msg: "resource-and-stonith needs protocol B or C"}
	}
	return &c, nil
}

// TakeNet returns r with the net options of another resource, the configured
// ones perhaps.
func (r *Resource) TakeNet(from *Resource) *Resource {
	c := *r
	c.values = maps.Clone(r.values)
	c.values[SectionNet], c.Net = from.values[SectionNet], from.Net
	return &c
}

// TakeDisk is TakeNet for the disk options of one volume, which both have.
func (r *Resource) TakeDisk(volume int, from *Resource) *Resource {
	c := *r
	c.Volumes = slices.Clone(r.Volumes)
	for i := range c.Volumes {
		for _, v := range from.Volumes {
			if v.Number == volume && c.Volumes[i].Number == volume {
				c.Volumes[i].values, c.Volumes[i].Options = v.values, v.Options
			}
		}
	}
	return &c
}

func override(section Section, old, changes map[string]string, defaults bool) (map[string]string, error) {
	values := maps.Clone(old)
	if defaults {
		for _, o := range RuntimeOptions(section) {
			values[o.Name] = o.Default
		}
	}
	for name, value := range changes {
		spec := optionIndex[optionKey{section, name}]
		switch {
		case spec == nil || spec.Alias != "":
			return nil, &OverrideError{Section: section, Option: name, Msg: "there is no such option"}
		case notAtRuntime[name] != "":
			return nil, &OverrideError{Section: section, Option: name, Msg: notAtRuntime[name]}
		}
		if msg := spec.checkValue(value); msg != "" {
			return nil, &OverrideError{Section: section, Option: name, Msg: msg}
		}
		if strings.HasPrefix(value, discardNode) {
			return nil, &OverrideError{Section: section, Option: name, Msg: "name discard-local or discard-remote here"}
		}
		values[name] = value
	}
	return values, nil
}

// conflict names an option that the kernel's check_net_options refuses
// together with another one, and why; msg is "" if there is none.
func (r *Resource) conflict() (option, msg string) {
	n := &r.Net
	switch {
	case n.AllowTwoPrimaries && n.Protocol != "C":
		return "allow-two-primaries", "it needs protocol C, found protocol " + n.Protocol
	case n.OnCongestion != "block" && n.Protocol != "A":
		return "on-congestion", fmt.Sprintf("%s needs protocol A, found protocol %s", n.OnCongestion, n.Protocol)
	case n.Fencing == "resource-and-stonith" && n.Protocol == "A":
		return "fencing", "resource-and-stonith needs protocol B or C, found protocol A"
	case n.CramHMACAlg != "" && n.SharedSecret == "":
		return "cram-hmac-alg", "it needs a shared-secret"
	}
	return "", ""
}

// A Change is an option whose value in force differs from the configured one.
type Change struct {
	Volume              int // -1: of the connection
	Section             Section
	Option              string
	InForce, Configured string
}

// Changes lists the net and disk options in which inForce differs from
// configured, in the order of the table; a secret is not shown.
func Changes(inForce, configured *Resource) []Change {
	var changes []Change
	add := func(volume int, o *OptionSpec, have, want string) {
		if have == want {
			return
		}
		if o.Name == "shared-secret" {
			have, want = "(another)", "(not shown)"
		}
		changes = append(changes, Change{Volume: volume, Section: o.Section, Option: o.Name, InForce: have, Configured: want})
	}
	for i := range options {
		o := &options[i]
		if o.Alias != "" {
			continue
		}
		switch o.Section {
		case SectionNet:
			add(-1, o, inForce.values[SectionNet][o.Name], configured.values[SectionNet][o.Name])
		case SectionDisk:
			for j := range min(len(inForce.Volumes), len(configured.Volumes)) {
				v, w := &inForce.Volumes[j], &configured.Volumes[j]
				add(v.Number, o, v.values[o.Name], w.values[o.Name])
			}
		case SectionOptions, SectionStartup, SectionProxy, SectionHandlers:
		}
	}
	return changes
}
