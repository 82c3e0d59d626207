package conf

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"
)

// Window is a time of the week: "Sat 02:00-04:00", "Mon-Fri 22:00-05:00 UTC" or,
// for every day, "02:00-04:00". One that ends before it begins lasts until the
// next day. The time is UTC unless a zone such as Europe/Rome or "local"
// follows: both nodes have to mean the same. The zero value never holds.
type Window struct {
	days     [7]bool // by time.Weekday, on which it begins
	from, to int     // minutes since midnight; to > from, beyond 1440 on the next day
	zone     *time.Location
	text     string
}

var windowPattern = regexp.MustCompile(`^(?:([A-Z][a-z]{2})(?:-([A-Z][a-z]{2}))? +)?(\d\d):(\d\d)-(\d\d):(\d\d)(?: +(\S+))?$`)

// UnmarshalText reads the TOML form.
func (w *Window) UnmarshalText(text []byte) error {
	wrong := fmt.Errorf("found %q, expected a time of the week such as \"Sat 02:00-04:00 UTC\" or \"02:00-04:00\"", text)
	m := windowPattern.FindStringSubmatch(string(text))
	if m == nil {
		return wrong
	}
	out := Window{zone: time.UTC, text: string(text)}
	if !out.setDays(m[1], m[2]) {
		return wrong
	}
	number := func(s string) int { n, _ := strconv.Atoi(s); return n } // two digits
	out.from, out.to = 60*number(m[3])+number(m[4]), 60*number(m[5])+number(m[6])
	if number(m[3]) > 23 || number(m[5]) > 24 || number(m[4]) > 59 || number(m[6]) > 59 || out.to > minutesOfDay || out.from == out.to {
		return wrong
	}
	if out.to < out.from {
		out.to += minutesOfDay
	}
	if m[7] == "local" {
		out.zone = time.Local
	} else if m[7] != "" {
		zone, err := time.LoadLocation(m[7])
		if err != nil {
			return fmt.Errorf("found the zone %q, expected UTC, local or a zone that this machine knows such as Europe/Rome", m[7])
		}
		out.zone = zone
	}
	*w = out
	return nil
}

const minutesOfDay = 24 * 60

func (w *Window) setDays(first, last string) bool {
	names := []string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}
	if first == "" {
		for i := range w.days {
			w.days[i] = true
		}
		return true
	}
	from, to := slices.Index(names, first), slices.Index(names, first)
	if last != "" {
		to = slices.Index(names, last)
	}
	if from < 0 || to < 0 {
		return false
	}
	for d := from; ; d = (d + 1) % 7 {
		w.days[d] = true
		if d == to {
			return true
		}
	}
}

// String gives the form that was read; "" for the zero value.
func (w Window) String() string { return w.text }

// IsSet reports whether there is a window at all.
func (w Window) IsSet() bool { return w.text != "" }

// Holds reports whether t lies within the window.
func (w Window) Holds(t time.Time) bool {
	if !w.IsSet() {
		return false
	}
	t = t.In(w.zone)
	now := 60*t.Hour() + t.Minute()
	today, yesterday := w.days[t.Weekday()], w.days[(t.Weekday()+6)%7]
	return today && now >= w.from && now < w.to || yesterday && now+minutesOfDay >= w.from && now+minutesOfDay < w.to
}
