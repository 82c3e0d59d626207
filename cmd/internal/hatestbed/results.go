package hatestbed

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/bench/report"
	"github.com/pollux-project/pollux/bench/result"
)

// A resultFile is results.json. Times are seconds from the fault on; what was not
// measured is left out.
type resultFile struct {
	Format  string        `json:"format"` // resultFormat
	Started time.Time     `json:"started"`
	Ended   time.Time     `json:"ended"`
	Command []string      `json:"command"`
	Seed    uint64        `json:"seed"`
	Beside  int           `json:"beside"` // racks at the same time
	Acked   int           `json:"acknowledged_records"`
	Harm    int           `json:"harm"` // records lost, or written by two
	Missed  int           `json:"slower_than_promised"`
	Faults  []string      `json:"faults,omitempty"`
	Rounds  []resultRound `json:"rounds"`
}

const resultFormat = "pollux-ha-rounds/1"

type resultRound struct {
	Number  int                `json:"number"`
	Arbiter Arbiter            `json:"arbiter"`
	Fault   string             `json:"fault"`
	Struck  time.Time          `json:"struck"`
	Led     bool               `json:"led_etcd"`
	Times   map[string]float64 `json:"times"` // by the table's column
	Bars    []resultBar        `json:"bars,omitempty"`
	Both    float64            `json:"two_machines"`
	Took    float64            `json:"round_took"`
	Harm    int                `json:"harm"`
	Faults  []string           `json:"faults,omitempty"`
	Logs    string             `json:"logs,omitempty"`
}

type resultBar struct {
	What  string  `json:"what"`
	Limit float64 `json:"limit"`
	Got   float64 `json:"got"`
}

// Write writes results.json and report.html, a page that stands alone, to dir, which
// is made if need be. It returns the page's path.
func (rep *Report) Write(dir string) (page string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	b, err := json.MarshalIndent(rep.file(), "", " ")
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "results.json"), append(b, '\n'), 0o644); err != nil {
		return "", err
	}
	page = filepath.Join(dir, "report.html")
	f, err := os.Create(page)
	if err != nil {
		return "", err
	}
	return page, errors.Join(rep.sheet().Write(f), f.Close())
}

func (rep *Report) file() *resultFile {
	r := &resultFile{
		Format: resultFormat, Started: rep.Started.UTC(), Ended: rep.Ended.UTC(), Command: os.Args, Seed: rep.Config.Seed, Beside: rep.Config.Beside,
		Acked: rep.Acked, Harm: rep.Harm, Missed: rep.Missed(), Faults: rep.Faults,
	}
	for i := range rep.Rounds {
		m := &rep.Rounds[i]
		o := resultRound{
			Number: m.Number, Arbiter: m.Arbiter, Fault: m.Fault, Struck: m.Struck.UTC(), Led: m.Led, Times: map[string]float64{},
			Both: m.Both.Seconds(), Took: m.Took.Seconds(), Harm: m.Harm, Faults: m.Faults, Logs: m.Logs,
		}
		for _, c := range columns {
			if d := c.of(m); d != 0 {
				o.Times[c.name] = d.Seconds()
			}
		}
		for _, b := range m.bars() {
			o.Bars = append(o.Bars, resultBar{b.what, b.limit.Seconds(), b.got.Seconds()})
		}
		r.Rounds = append(r.Rounds, o)
	}
	return r
}

// sheet is the page.
func (rep *Report) sheet() *report.Sheet {
	s := &report.Sheet{Title: "Pollux failover, round by round", Started: rep.Started, Ended: rep.Ended, Command: os.Args}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		s.Lead = append(s.Lead, fmt.Sprintf("%d CPUs, Linux %s; hosts are namespaces, the machine is emulated", runtime.NumCPU(), unix.ByteSliceToString(u.Release[:])))
	}
	s.Lead = append(s.Lead, fmt.Sprintf("%d rounds, %d racks beside one another at most, seed %d", len(rep.Rounds), rep.Config.Beside, rep.Config.Seed))
	safe := result.Bar{
		What: "acknowledged records, on both disks in the end", Want: "none lost, none written by two", Got: fmt.Sprintf("%d, of which %d lost or written twice", rep.Acked, rep.Harm), Met: rep.Harm == 0,
	}
	right := result.Bar{What: "rounds that went as they must", Want: "all", Got: fmt.Sprintf("%d things were wrong", len(rep.Faults)), Met: len(rep.Faults) == 0}
	s.Bars = append([]result.Bar{safe, right}, rep.speedBars()...)
	s.Notes = append(s.Notes, rep.Faults...)
	if f := rep.takeovers(); len(f.Rows) > 0 {
		s.Figures = append(s.Figures, f.Figure())
	}
	if f := rep.pauses(); len(f.Rows) > 0 {
		s.Figures = append(s.Figures, f.Figure())
	}
	s.Tables = []report.SheetTable{rep.sheetTable()}
	return s
}

// speedBars are the promises, each with the slowest round.
func (rep *Report) speedBars() (list []result.Bar) {
	rows := rep.rows()
	for i := range rows {
		r := &rows[i]
		for k, b := range r.of[0].bars() {
			var all []time.Duration
			for n := range r.of {
				if bars := r.of[n].bars(); k < len(bars) {
					all = append(all, bars[k].got)
				}
			}
			slices.Sort(all)
			worst := all[len(all)-1]
			list = append(list, result.Bar{
				What: r.title() + ": " + b.what, Want: fmt.Sprintf("%s s at most", seconds(b.limit)),
				Got: fmt.Sprintf("min %s, median %s, max %s s in %d rounds", seconds(all[0]), seconds(median(all)), seconds(worst), len(all)), Met: worst <= b.limit,
			})
		}
	}
	return list
}

// title is a row's name for a page.
func (r *row) title() string {
	m := &r.of[0]
	text := string(m.Arbiter) + ": " + m.Fault
	if r.led && !strings.Contains(text, "leader") {
		text += " (it led etcd)"
	}
	return text
}

// takeovers draws the phases of all rounds in which a machine moved.
func (rep *Report) takeovers() *report.Strip {
	return rep.strip(&report.Strip{
		Name: "takeovers", Section: "From the fault to the first record", Title: "Seconds from the fault, one point a round",
		Caption: "Each point is one round; rows are kinds of fault and arbiters. A machine that died is promoted on the other host when its lease has ended (or its host was fenced), and boots there. The red line is what is promised of the phase it stands in.",
		Series:  []string{"detected", "fenced", "stopped", "promoted", "kernel", "first record"},
	}, func(f fault) bool { return f.want == takesOver || f.want == moves }, map[string]string{"kernel": "kernel"})
}

// pauses draws what clients saw where the machine ran on.
func (rep *Report) pauses() *report.Strip {
	return rep.strip(&report.Strip{
		Name: "pauses", Section: "While the machine runs on", Title: "Seconds, one point a round",
		Caption: "The peer is missed after 3 s (ping-int and ping-timeout of its connection); from then on it takes the arbiter's answer until writes go on. The client's gap is the longest time without an answer.",
		Series:  []string{"detected", "I/O again", "client's gap"},
	}, func(f fault) bool { return f.want == goesOn || f.want == survives }, map[string]string{"I/O alone": "I/O again"})
}

// strip fills a strip with the rows of some kinds; inLane says in which series' lane a
// bar stands.
func (rep *Report) strip(s *report.Strip, fits func(fault) bool, inLane map[string]string) *report.Strip {
	rows := rep.rows()
	for i := range rows {
		r := &rows[i]
		if !fits(kindOf(r.of[0].Fault)) {
			continue
		}
		out := report.StripRow{Name: r.title()}
		for n, name := range s.Series {
			c := columns[slices.IndexFunc(columns, func(c column) bool { return c.name == name })]
			lane := report.StripLane{Series: n}
			for k := range r.of {
				m := &r.of[k]
				if d := c.of(m); d != 0 {
					lane.Points = append(lane.Points, report.StripPoint{Value: d.Seconds(), Tip: fmt.Sprintf("round %d: %s after %s s", m.Number, name, seconds(d))})
				}
			}
			for _, b := range r.of[0].bars() {
				if inLane[b.what] == name {
					lane.Bar = b.limit.Seconds()
				}
			}
			if len(lane.Points) > 0 {
				out.Lanes = append(out.Lanes, lane)
			}
		}
		if len(out.Lanes) > 0 {
			s.Rows = append(s.Rows, out)
		}
	}
	return s
}

func (rep *Report) sheetTable() report.SheetTable {
	t := report.SheetTable{
		Title: "All kinds", Caption: "Seconds: least, median, largest. “Well again” is from when the last fault was mended until both copies were in sync, all nodes and the arbiter were well and the client was served.",
		Head: []string{"", "rounds"},
	}
	used := rep.usedColumns()
	for _, c := range used {
		t.Head = append(t.Head, c.name)
	}
	rows := rep.rows()
	for i := range rows {
		r := &rows[i]
		cells := []string{r.title(), fmt.Sprint(len(r.of))}
		for _, c := range used {
			cells = append(cells, spread(r.values(c)))
		}
		t.Rows = append(t.Rows, cells)
	}
	return t
}
