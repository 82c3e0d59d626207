package hatestbed

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestTable(t *testing.T) {
	const name = "primary host loses power"
	s := time.Second
	rep := &Report{}
	for i, m := range []Measured{
		{Kernel: 8 * s},
		{Kernel: 13 * s, Missed: true},
		{Kernel: 9 * s},
		{Kernel: 14 * s, Led: true},
		{Kernel: 7 * s, Harm: 2, Faults: []string{"lost: record 7: the block is empty"}, Both: 30 * time.Millisecond},
	} {
		m.Number, m.Arbiter, m.Fault = i+1, ArbiterEtcd, name
		rep.add(m)
	}
	var out bytes.Buffer
	rep.Table(&out)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 {
		t.Fatalf("the table has %d lines, want its head and two rows:\n%s", len(lines), out.String())
	}
	for i, want := range []string{"7.00 9.00 13.00", "14.00 14.00 14.00"} {
		if !strings.Contains(lines[i+1], want) {
			t.Errorf("row %q lacks %q", lines[i+1], want)
		}
	}
	if !strings.Contains(lines[1], "kernel 12.00, missed 1 times") || !strings.HasSuffix(lines[2], "kernel 15.00") {
		t.Errorf("what is promised:\n%s", out.String())
	}
	out.Reset()
	if rep.Verdict(&out) || !rep.SawHarm() || !strings.Contains(out.String(), "round 5, "+name+": lost: record 7") {
		t.Errorf("verdict on a loss:\n%s", out.String())
	}
	if !(&Report{}).Verdict(&out) || (&Report{}).SawHarm() {
		t.Error("verdict without a fault")
	}
}

// Each kind comes once before any comes twice, and the seed repeats the order.
func TestDraw(t *testing.T) {
	names := func(seed uint64, arbiter Arbiter, n int) (list []string) {
		for _, f := range draw(newRandom(seed), "", arbiter, n) {
			list = append(list, f.name)
		}
		return list
	}
	for _, arbiter := range []Arbiter{ArbiterEtcd, ArbiterWitness} {
		kinds := map[string]bool{}
		for _, f := range faults() {
			if f.only == "" || f.only == arbiter {
				kinds[f.name] = true
			}
		}
		list := names(1, arbiter, 40)
		if len(list) != 40 || strings.Join(list, ",") != strings.Join(names(1, arbiter, 40), ",") || strings.Join(list, ",") == strings.Join(names(2, arbiter, 40), ",") {
			t.Errorf("%s: %v", arbiter, list)
		}
		for _, name := range list[:len(kinds)] {
			if !kinds[name] {
				t.Errorf("%s: %q twice, or of the other half", arbiter, name)
			}
			delete(kinds, name)
		}
	}
	if n := len(short(newRandom(1), ArbiterEtcd)) + len(short(newRandom(1), ArbiterWitness)); n != 6 {
		t.Errorf("the short form has %d rounds, want 6", n)
	}
}
