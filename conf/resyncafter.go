package conf

import (
	"fmt"
	"strconv"
	"strings"
)

// volumeKey names a volume of all resources.
type volumeKey struct {
	res string
	vol int
}

func (k volumeKey) String() string { return fmt.Sprintf("%s/%d", k.res, k.vol) }

// ParseResyncAfter splits the value of resync-after, RESOURCE or
// RESOURCE/VOLUME; without a volume it is volume 0. ok is false for "-1", none.
func ParseResyncAfter(value string) (res string, vol int, ok bool) {
	if value == "" || value == "-1" {
		return "", 0, false
	}
	res, number, found := strings.Cut(value, "/")
	if !found {
		return res, 0, true
	}
	vol, err := strconv.Atoi(number)
	return res, vol, err == nil
}

// checkResyncCycles refuses volumes that wait for one another: none of them
// would ever be resynced.
func (l *loader) checkResyncCycles() {
	type edge struct {
		to  volumeKey
		pos Pos
	}
	edges := map[volumeKey]edge{}
	var order []volumeKey
	for _, r := range l.cfg.Resources {
		add := func(number int, levels ...*OptionSection) {
			levels = append(levels, &r.Disk)
			if in := r.inherited(); in != nil {
				levels = append(levels, in.get(SectionDisk))
			}
			value, pos := nearestOption(SectionDisk, "resync-after", levels)
			key := volumeKey{r.Name, number}
			if _, twice := edges[key]; twice {
				return
			}
			if res, vol, ok := ParseResyncAfter(value); ok {
				edges[key] = edge{volumeKey{res, vol}, pos}
				order = append(order, key)
			}
		}
		for _, h := range r.Hosts {
			if !h.IsLocal {
				continue
			}
			for _, v := range h.Volumes {
				for _, common := range r.Volumes {
					if common.Number == v.Number {
						add(v.Number, &v.DiskOptions, &common.DiskOptions)
					}
				}
				add(v.Number, &v.DiskOptions)
			}
		}
		for _, v := range r.Volumes {
			add(v.Number, &v.DiskOptions)
		}
	}
	told := map[volumeKey]bool{}
	for _, start := range order {
		path, seen := []string{start.String()}, map[volumeKey]bool{start: true}
		for at := start; ; {
			e, ok := edges[at]
			if !ok || told[e.to] {
				break
			}
			path = append(path, e.to.String())
			if e.to == start {
				l.errorf(edges[start].pos, "in resource %s: resync-after makes volumes wait for one another: %s", start.res, strings.Join(path, " after "))
				for k := range seen {
					told[k] = true
				}
			}
			if seen[e.to] {
				break
			}
			seen[e.to] = true
			at = e.to
		}
	}
}
