package daemon

import (
	"fmt"
	"strings"
	"time"

	"github.com/pollux-project/pollux/conf"
)

// ignoredOptions names the configured options that are understood and have no
// effect yet, each with what happens instead: nobody is to rely on them. Options
// that only tune the kernel's DRBD (unplug-watermark, cpu-mask and the like)
// promise nothing and are not among them.
func ignoredOptions(s resourceSpec) []string {
	var out []string
	add := func(isSet bool, option, value, instead string) {
		if isSet {
			out = append(out, fmt.Sprintf("%s %s has no effect yet: %s", option, value, instead))
		}
	}
	add(s.Options.Quorum != "off", "quorum", s.Options.Quorum, "two nodes have none; the peer's state and fencing decide")
	for _, o := range []struct{ option, value string }{
		{"tls-keyring", s.Net.TLSKeyring}, {"tls-privkey", s.Net.TLSPrivkey}, {"tls-certificate", s.Net.TLSCertificate},
	} {
		add(o.value != "", o.option, o.value, "the files are those of [tls] in pollux.toml")
	}
	start := s.Startup
	add(len(start.BecomePrimaryOn) > 0, "become-primary-on", strings.Join(start.BecomePrimaryOn, " "),
		"no node becomes Primary by itself: run `polluxadm primary`, or enable the unit pollux-vm@NAME")
	for _, o := range []struct {
		option      string
		value, base time.Duration
	}{
		{"degr-wfc-timeout", start.DegrWFCTimeout, start.WFCTimeout},
		{"outdated-wfc-timeout", start.OutdatedWFCTimeout, start.DegrWFCTimeout},
	} {
		add(o.value != o.base, o.option, fmt.Sprint(o.value.Seconds()), "wait-connect waits for wfc-timeout")
	}
	for _, v := range s.Volumes {
		o := v.Options
		at := fmt.Sprintf(" (volume %d)", v.Number)
		add(o.DiskBarrier, "disk-barrier", "yes"+at, "with disk-flushes the disk is flushed at the end of each epoch")
		add(!o.DiskDrain, "disk-drain", "no"+at, "an epoch is acknowledged when its writes have ended")
	}
	return out
}

// Runnable reports whether polluxd could run a resource as it is configured, and
// which of its options would have no effect, each with what happens instead.
func Runnable(r *conf.Resource) (withoutEffect []string, err error) {
	spec := resourceSpec{Resource: r}
	if _, err := engineConfig(spec); err != nil {
		return nil, err
	}
	return ignoredOptions(spec), nil
}
