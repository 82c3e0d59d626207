package adm

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pollux-project/pollux/protocol/adm"
)

// A target is a resource, or one volume of it, that a command is about.
type target struct {
	Resource string
	Volume   *int // nil: all volumes
}

func (t target) String() string {
	if t.Volume == nil {
		return t.Resource
	}
	return fmt.Sprintf("%s/%d", t.Resource, *t.Volume)
}

// A volumeID is what target resolution needs of a configured volume.
type volumeID struct {
	Resource      string
	Number, Minor int
}

// findTargets turns command line words into targets: "all", a resource, a
// volume as RES/VOL or minor-N. volumes are those of this host's resources.
func findTargets(words []string, volumes []volumeID) ([]target, error) {
	var ts []target
	for _, w := range words {
		if w == "all" {
			for _, v := range volumes {
				if !slices.ContainsFunc(ts, func(t target) bool { return t.Resource == v.Resource && t.Volume == nil }) {
					ts = append(ts, target{Resource: v.Resource})
				}
			}
			continue
		}
		t, err := findTarget(w, volumes)
		if err != nil {
			return nil, err
		}
		ts = append(ts, t)
	}
	return ts, nil
}

func findTarget(word string, volumes []volumeID) (target, error) {
	if word == "" {
		return target{}, usageError("an empty resource name")
	}
	if n, ok := strings.CutPrefix(word, "minor-"); ok {
		if minor, err := strconv.Atoi(n); err == nil {
			for _, v := range volumes {
				if v.Minor == minor {
					return target{Resource: v.Resource, Volume: &v.Number}, nil
				}
			}
			return target{}, usageError("minor %d: not defined in your config (for this host).", minor)
		}
	}
	name, vol, hasVol := strings.Cut(word, "/")
	if !slices.ContainsFunc(volumes, func(v volumeID) bool { return v.Resource == name }) {
		return target{}, usageError("'%s' not defined in your config (for this host).", name)
	}
	if !hasVol {
		return target{Resource: name}, nil
	}
	n, err := strconv.Atoi(vol)
	if err != nil || !slices.ContainsFunc(volumes, func(v volumeID) bool { return v.Resource == name && v.Number == n }) {
		return target{}, usageError("Resource '%s' has no volume %s", name, vol)
	}
	return target{Resource: name, Volume: &n}, nil
}

// usageError is a command line that can't be acted on.
func usageError(format string, args ...any) error {
	return &adm.Error{Exit: adm.ExitUsage, Text: fmt.Sprintf(format, args...)}
}
