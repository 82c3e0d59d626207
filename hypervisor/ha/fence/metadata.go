package fence

import (
	"encoding/xml"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Metadata is what an agent says about itself.
type Metadata struct {
	Name       string
	Short      string // one line
	Parameters []Parameter
	Actions    []string
}

// Parameter is one option of an agent.
type Parameter struct {
	Name     string
	Required bool
	Type     string // "string", "integer", "boolean", "second", "select"; "" is not told
	Default  string
	Values   []string // of a "select"
}

// ParseMetadata reads what the action metadata prints.
func ParseMetadata(data []byte) (Metadata, error) {
	var x struct {
		XMLName    xml.Name `xml:"resource-agent"`
		Name       string   `xml:"name,attr"`
		Short      string   `xml:"shortdesc,attr"`
		Parameters []struct {
			Name     string `xml:"name,attr"`
			Required string `xml:"required,attr"`
			Content  struct {
				Type    string `xml:"type,attr"`
				Default string `xml:"default,attr"`
				Options []struct {
					Value string `xml:"value,attr"`
				} `xml:"option"`
			} `xml:"content"`
		} `xml:"parameters>parameter"`
		Actions []struct {
			Name string `xml:"name,attr"`
		} `xml:"actions>action"`
	}
	if err := xml.Unmarshal(data, &x); err != nil {
		return Metadata{}, fmt.Errorf("its metadata: %w", err)
	}
	m := Metadata{Name: x.Name, Short: x.Short}
	for _, p := range x.Parameters {
		param := Parameter{Name: p.Name, Required: p.Required == "1", Type: p.Content.Type, Default: p.Content.Default}
		for _, o := range p.Content.Options {
			param.Values = append(param.Values, o.Value)
		}
		m.Parameters = append(m.Parameters, param)
	}
	for _, a := range x.Actions {
		m.Actions = append(m.Actions, a.Name)
	}
	if len(m.Actions) == 0 {
		return Metadata{}, fmt.Errorf("its metadata name no action")
	}
	return m, nil
}

// Parameter looks an option up; agents take "-" for "_".
func (m *Metadata) Parameter(name string) *Parameter {
	name = strings.ReplaceAll(name, "-", "_")
	for i := range m.Parameters {
		if p := &m.Parameters[i]; strings.ReplaceAll(p.Name, "-", "_") == name {
			return p
		}
	}
	return nil
}

// Check says which options the agent does not know, lacks, or can't read.
func (m *Metadata) Check(options map[string]string) error {
	for _, action := range []string{actionOff, actionStatus} {
		if !slices.Contains(m.Actions, action) {
			return fmt.Errorf("it has no action %q, only %s: no fence can be confirmed with it", action, strings.Join(m.Actions, ", "))
		}
	}
	for name, value := range options {
		p := m.Parameter(name)
		if p == nil {
			return fmt.Errorf("it has no option %q: see its man page", name)
		}
		if err := p.check(value); err != nil {
			return fmt.Errorf("option %s: %w", name, err)
		}
	}
	for _, p := range m.Parameters {
		if !p.Required || p.Default != "" || reserved[p.Name] {
			continue
		}
		if !slices.ContainsFunc(aliases(p.Name), func(a string) bool { _, ok := options[a]; return ok }) {
			return fmt.Errorf("it needs the option %q", p.Name)
		}
	}
	return nil
}

// aliases are the names under which old and new agents take one option.
// Source: fence-agents, lib/fencing.py.py, all_opt (entries with "obsoletes").
func aliases(name string) []string {
	for _, same := range [][]string{
		{"plug", "port"},
		{"ip", "ipaddr"},
		{"username", "login"},
		{"password", "passwd", "password_script", "passwd_script"},
	} {
		if slices.Contains(same, name) {
			return same
		}
	}
	return []string{name, strings.ReplaceAll(name, "_", "-")}
}

func (p *Parameter) check(value string) error {
	switch p.Type {
	case "integer", "second":
		if _, err := strconv.ParseFloat(value, 64); err != nil {
			return fmt.Errorf("a number is expected")
		}
	case "boolean":
		if !slices.Contains([]string{"", "0", "1", "true", "false", "yes", "no", "on", "off"}, strings.ToLower(value)) {
			return fmt.Errorf("1 or 0 is expected")
		}
	case "select":
		if len(p.Values) > 0 && !slices.Contains(p.Values, value) {
			return fmt.Errorf("one of %s is expected", strings.Join(p.Values, ", "))
		}
	}
	return nil
}
