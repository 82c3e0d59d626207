package daemon

import "fmt"

// ignoredOptions names the configured options that are understood and have no
// effect yet, each with what happens instead: nobody is to rely on them.
func ignoredOptions(s resourceSpec) []string {
	var out []string
	add := func(isSet bool, option, value, instead string) {
		if isSet {
			out = append(out, fmt.Sprintf("%s %s has no effect yet: %s", option, value, instead))
		}
	}
	add(s.Options.Quorum != "off", "quorum", s.Options.Quorum, "two nodes have none; the peer's state and fencing decide")
	for _, v := range s.Volumes {
		o := v.Options
		at := fmt.Sprintf(" (volume %d)", v.Number)
		add(o.DiskBarrier, "disk-barrier", "yes"+at, "with disk-flushes the disk is flushed at the end of each epoch")
		add(!o.DiskDrain, "disk-drain", "no"+at, "an epoch is acknowledged when its writes have ended")
	}
	return out
}
