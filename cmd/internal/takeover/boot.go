package takeover

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// StockConfig is the file that drbdadm, and so every service that calls it, reads.
const StockConfig = "/etc/drbd.conf"

// Boot says whether anything that Debian's drbd-utils or Pacemaker start would
// bring the resource up in the kernel again. others are the resources of drbd.conf
// that stay with the kernel.
func (m Machine) Boot(name string, others []string) []Finding {
	var fs []Finding
	if m.isEnabled("drbd.service") {
		do := []string{"systemctl disable drbd.service"}
		for _, o := range others {
			do = append(do, fmt.Sprintf("systemctl enable drbd@%s.target     # %s stays with DRBD", o, o))
		}
		fs = append(fs, Finding{Verdict: Wrong, About: "boot", Text: "drbd.service is enabled: it brings up all that is in " + StockConfig, Do: do})
	}
	for _, unit := range []string{"drbd@" + name + ".service", "drbd@" + name + ".target"} {
		if m.isEnabled(unit) {
			fs = append(fs, Finding{Verdict: Wrong, About: "boot", Text: unit + " is enabled: it brings the resource up in the kernel", Do: []string{"systemctl disable " + unit}})
		}
	}
	if m.hasSystemVInit() {
		fs = append(fs, Finding{Verdict: Wrong, About: "boot", Text: "/etc/init.d/drbd runs at boot: it brings up all that is in " + StockConfig, Do: []string{"update-rc.d drbd disable"}})
	}
	if m.inPacemaker(name) {
		fs = append(fs, Finding{
			Verdict: Wrong, About: "boot", Text: "Pacemaker manages it (drbd_resource=" + name + ")",
			Do: []string{"take the resource out of the cluster's configuration"},
		})
	}
	if len(fs) == 0 {
		fs = append(fs, Finding{About: "boot", Text: "no service brings it up in the kernel"})
	}
	if m.hasSystemd() && !m.isEnabled("polluxd.service") {
		fs = append(fs, Finding{Verdict: Note, About: "boot", Text: "polluxd does not start at boot", Do: []string{"systemctl enable polluxd"}})
	}
	return fs
}

// DRBDAtBoot reports whether stock services would bring a resource up.
func (m Machine) DRBDAtBoot(name string) bool {
	return m.isEnabled("drbd.service") || m.isEnabled("drbd@"+name+".service") || m.isEnabled("drbd@"+name+".target") ||
		m.hasSystemVInit() || m.inPacemaker(name)
}

// isEnabled reports whether a unit is wanted by another: what systemctl enable
// makes is a symbolic link in a directory of the wanting unit.
func (m Machine) isEnabled(unit string) bool {
	escaped := unit
	if prefix, instance, ok := strings.Cut(unit, "@"); ok {
		escaped = prefix + "@" + strings.ReplaceAll(instance, "-", `\x2d`) // systemd-escape
	}
	for _, dir := range []string{"wants", "requires"} {
		for _, at := range []string{"/etc/systemd/system/", "/run/systemd/system/"} {
			links, _ := filepath.Glob(m.path(at + "*." + dir)) // the pattern is right
			for _, d := range links {
				for _, name := range []string{unit, escaped} {
					if _, err := os.Lstat(filepath.Join(d, name)); err == nil {
						return true
					}
				}
			}
		}
	}
	return false
}

func (m Machine) hasSystemd() bool {
	_, err := os.Stat(m.path("/run/systemd/system"))
	return err == nil
}

// hasSystemVInit reports whether a boot without systemd starts DRBD.
func (m Machine) hasSystemVInit() bool {
	links, _ := filepath.Glob(m.path("/etc/rc[2-5].d/S[0-9][0-9]drbd")) // the pattern is right
	return len(links) > 0 && !m.hasSystemd()
}

// inPacemaker looks for the resource in the local copy of the cluster's
// configuration, which is there whether the cluster runs or not.
func (m Machine) inPacemaker(name string) bool {
	b, err := os.ReadFile(m.path("/var/lib/pacemaker/cib/cib.xml"))
	if err != nil {
		return false
	}
	return regexp.MustCompile(`name="drbd_resource"[^>]*value="` + regexp.QuoteMeta(name) + `"|value="` + regexp.QuoteMeta(name) + `"[^>]*name="drbd_resource"`).Match(b)
}
