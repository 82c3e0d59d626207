// Package takeover looks whether a resource of drbd.conf may change its owner on
// this node: from the kernel's DRBD to Pollux (polluxadm adopt), and back
// (polluxadm release). It only looks; nothing is ever written, loaded or locked
// beyond the look itself.
//
//	m := takeover.Machine{}
//	findings := m.Kernel(r)       // does drbd.ko hold it?
//	facts, more := m.Disk(v, ...) // can its metadata be used as it is?
//
// Each check gives Findings: what is right, what an admin should know, and what is
// wrong together with the commands that put it right.
package takeover

// Verdict is what a Finding means for the take-over.
type Verdict int

// Verdicts.
const (
	OK    Verdict = iota // as it has to be
	Note                 // allowed, and worth knowing
	Wrong                // nothing is done until it is put right
)

func (v Verdict) String() string { return [...]string{"ok", "note", "WRONG"}[v] }

// A Finding is one line of the check list.
type Finding struct {
	Verdict Verdict
	About   string   // the check: "kernel", "disk", ...
	Text    string   // what was found
	Do      []string // commands or sentences, in the order in which they are to be done
}

// AnyWrong reports whether one of the findings forbids the take-over.
func AnyWrong(fs []Finding) bool {
	for _, f := range fs {
		if f.Verdict == Wrong {
			return true
		}
	}
	return false
}

// A Machine is this machine as the files below Root show it: /proc, /sys, /etc
// and /var. The zero value is the real one; tests make their own. Devices are not
// looked for below Root.
type Machine struct{ Root string }

func (m Machine) path(p string) string { return m.Root + p }
