package adm

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// How often a running step's clock is drawn.
const progressTick = 100 * time.Millisecond

// A progressView shows the steps of a long command. On a terminal the step that
// runs is a line with a clock; elsewhere each step is a line when it begins.
type progressView struct {
	a    *app
	live bool
	json bool

	mu    sync.Mutex
	began time.Time
	now   *adm.HAProgress // the step that runs; nil: none yet
	stop  chan struct{}
}

func (a *app) newProgressView(asJSON bool) *progressView {
	p := &progressView{a: a, json: asJSON, live: !asJSON && isTerminal(a.Out), began: a.now()}
	if p.live {
		p.stop = make(chan struct{})
		go p.draw(p.stop)
	}
	return p
}

// step is the callback of manager.call.
func (p *progressView) step(s adm.HAProgress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.json {
		b, err := json.Marshal(struct {
			Progress adm.HAProgress `json:"progress"`
		}{s})
		if err == nil {
			fmt.Fprintf(p.a.Out, "%s\n", b)
		}
		return
	}
	if p.live {
		p.finishLine()
		p.now = &s
		p.line()
		return
	}
	fmt.Fprintln(p.a.Out, stepLine(s, time.Duration(s.ElapsedMS)*time.Millisecond))
}

// end clears the clock away; to be called once.
func (p *progressView) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live {
		close(p.stop)
		p.finishLine()
	}
}

func (p *progressView) finishLine() {
	if p.now != nil {
		p.line()
		fmt.Fprintln(p.a.Out)
		p.now = nil
	}
}

func (p *progressView) line() {
	fmt.Fprintf(p.a.Out, "\r\x1b[K%s", stepLine(*p.now, p.a.now().Sub(p.began)))
}

func (p *progressView) draw(stop <-chan struct{}) {
	tick := time.NewTicker(progressTick)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			p.mu.Lock()
			if p.now != nil {
				p.line()
			}
			p.mu.Unlock()
		}
	}
}

func stepLine(s adm.HAProgress, elapsed time.Duration) string {
	count := ""
	if s.Total > 0 {
		count = fmt.Sprintf("  [%d of %d]", s.Done, s.Total)
	}
	return fmt.Sprintf("%7.2f s  %s%s", elapsed.Seconds(), s.Text, count)
}
