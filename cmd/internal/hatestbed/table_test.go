package hatestbed

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var keep = flag.String("keep", "", "leave the synthetic results in this `directory`")

func TestTable(t *testing.T) {
	const name, away = "primary host loses power", "secondary host loses power"
	s := time.Second
	var said bytes.Buffer
	rep := &Report{Config: Config{Out: &said}}
	kept := 0
	for _, m := range []Measured{
		{Arbiter: ArbiterEtcd, Fault: name, Kernel: 8 * s, First: 9 * s},
		{Arbiter: ArbiterEtcd, Fault: name, Kernel: 13 * s, First: 14 * s},
		{Arbiter: ArbiterEtcd, Fault: name, Kernel: 10 * s, First: 11 * s},
		{Arbiter: ArbiterEtcd, Fault: name, Kernel: 14 * s, First: 15 * s, Led: true},
		{Arbiter: ArbiterEtcd, Fault: name, Kernel: 7 * s, First: 8 * s, Harm: 2, Faults: []string{"lost: record 7: the block is empty"}, Both: 30 * time.Millisecond},
		{Arbiter: ArbiterEtcd, Fault: away, Resumed: 700 * time.Millisecond, Led: true},
		{Arbiter: ArbiterEtcd, Fault: away, Resumed: 300 * time.Millisecond},
		{Arbiter: ArbiterFence, Fault: killPrimary, Confirmed: 18 * s, Kernel: 19 * s, First: 23 * s},
		{Arbiter: ArbiterWitness, Fault: "planned move", Stopped: 2 * s, Resumed: 600 * time.Millisecond, Kernel: 3 * s, First: 6 * s},
	} {
		rep.add(m, func(number int) string { kept++; return fmt.Sprint("kept-", number) })
	}
	if kept != 3 || strings.Count(said.String(), "SLOWER than promised; logs: kept-") != 2 || strings.Count(said.String(), "\n") != 9 {
		t.Errorf("the logs of %d rounds were kept, want 3:\n%s", kept, said.String())
	}
	var out bytes.Buffer
	rep.Table(&out)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 7 {
		t.Fatalf("the table has %d lines, want its head and six rows:\n%s", len(lines), out.String())
	}
	for i, want := range [][]string{
		{"7.00 9.00 13.00", "kernel 12.00 (MISSED 1 times)"},
		{"14.00 14.00 14.00", "kernel 15.00"},
		{"0.30 0.30 0.30", "I/O alone 0.50"},
		{"0.70 0.70 0.70", "none: etcd elects"},
		{"0.60 0.60 0.60", "hand-over 0.50 (MISSED 1 times), kernel after the stop 4.00"},
		{"19.00 19.00 19.00", "kernel after the fence 4.00"},
	} {
		for _, w := range want {
			if !strings.Contains(lines[i+1], w) {
				t.Errorf("row %q lacks %q", lines[i+1], w)
			}
		}
	}
	out.Reset()
	if rep.Verdict(&out) || rep.Harm != 2 || !strings.Contains(out.String(), "round 5, etcd, "+name+": lost: record 7") {
		t.Errorf("verdict on a loss:\n%s", out.String())
	}
	for _, want := range []string{"2 of the 8 rounds with a promised speed were slower", "kernel 13.00 s, promised are 12.00 s; its logs are in kept-2"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the verdict lacks %q:\n%s", want, out.String())
		}
	}
	if empty := (&Report{}); !empty.Verdict(&out) || empty.Harm > 0 {
		t.Error("verdict without a fault")
	}
}

func random(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

// Each kind comes once before any comes twice, and the seed repeats the order.
func TestDraw(t *testing.T) {
	names := func(seed uint64, arbiter Arbiter, n int) (list []string) {
		for _, f := range draw(random(seed), "", arbiter, n) {
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
	if n := len(short(random(1), ArbiterEtcd)) + len(short(random(1), ArbiterWitness)); n != 6 {
		t.Errorf("the short form has %d rounds, want 6", n)
	}
}

// What each kind of run does: the arbiters, the kinds, how many.
func TestJobs(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"mixed", Config{Rounds: 40}, "etcd 40, witness 40"},
		{"one arbiter", Config{Rounds: 3, Arbiter: ArbiterWitness}, "witness 3"},
		{"one kind", Config{Rounds: 3, Only: "etcd's leader, dies"}, "etcd 3"},
		{"the promises", Config{Kind: Speed, Rounds: 50}, "etcd 50, fence 50, witness 100"},
		{"moves", Config{Kind: Speed, Rounds: 5, Only: "planned move"}, "witness 5"},
		{"the control", Config{Kind: Control, Rounds: 1}, "etcd 2, witness 2, etcd 2"},
	} {
		var got []string
		for _, j := range tt.cfg.jobs() {
			got = append(got, fmt.Sprintf("%s %d", j.arbiter, len(j.list)))
		}
		if text := strings.Join(got, ", "); text != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, text, tt.want)
		}
	}
	for name, cfg := range map[string]Config{
		"no such fault": {Rounds: 1, Beside: 1, Only: "meteor"}, "no such arbiter": {Rounds: 1, Beside: 1, Arbiter: "raft"},
		"no round": {Beside: 1}, "no rack": {Rounds: 1},
	} {
		if err := cfg.Validate(); err == nil {
			t.Errorf("%s: it is accepted", name)
		}
	}
}

// The results of a run: figures that a program reads, and a page that people look at.
func TestWrite(t *testing.T) {
	s := time.Second
	rep := &Report{Config: Config{Out: io.Discard, Beside: 2, Seed: 7}, Started: time.Unix(0, 0), Ended: time.Unix(600, 0)}
	for i := range time.Duration(8) {
		ms := i * 130 * time.Millisecond
		for _, m := range []Measured{
			{Arbiter: ArbiterEtcd, Fault: killPrimary, Detected: 40*time.Millisecond + ms/20, Promoted: 6*s + ms, Kernel: 7*s + ms, First: 10*s + 2*ms, Gap: 10*s + 2*ms},
			{Arbiter: ArbiterEtcd, Fault: killPrimary, Led: true, Detected: 40 * time.Millisecond, Promoted: 9*s + 6*ms, Kernel: 10*s + 6*ms, First: 13*s + 6*ms},
			{Arbiter: ArbiterFence, Fault: killPrimary, Detected: 40 * time.Millisecond, Confirmed: 17 * s, Promoted: 17*s + ms, Kernel: 18*s + ms, First: 22*s + ms},
			{Arbiter: ArbiterWitness, Fault: "secondary host loses power", Detected: 3 * s, Resumed: 10*time.Millisecond + ms/20, Gap: 3 * s},
			{Arbiter: ArbiterWitness, Fault: "planned move", Stopped: s, Resumed: 20 * time.Millisecond, Promoted: s + ms/10, Kernel: 2 * s, First: 5*s + ms},
		} {
			rep.add(m, func(int) string { return "kept" })
		}
	}
	dir := t.TempDir()
	if *keep != "" {
		dir = *keep
	}
	page, err := rep.Write(dir)
	if err != nil {
		t.Fatal(err)
	}
	html, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"7 of 8 bars met", "etcd: " + killPrimary + " (it led etcd): kernel", "min 10.00, median 12.73, max 15.46 s in 8 rounds", "round 2: kernel after 10.00 s",
	} {
		if !strings.Contains(string(html), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Contains(strings.ReplaceAll(string(html), "http://www.w3.org/2000/svg", ""), "http://") {
		t.Error("the page takes something from elsewhere")
	}
	b, err := os.ReadFile(filepath.Join(dir, "results.json"))
	if err != nil {
		t.Fatal(err)
	}
	var file resultFile
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Rounds) != 40 || file.Missed != 1 || file.Rounds[1].Times["kernel"] != 10 || file.Rounds[1].Bars[0].Limit != 15 || file.Format != resultFormat {
		t.Errorf("results.json: %+v", file)
	}
}
