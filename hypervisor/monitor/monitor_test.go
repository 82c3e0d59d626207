package monitor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a TCP server that hands each connection to serve.
func server(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer conn.Close(); serve(conn) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return l.Addr().String()
}

func ask(t *testing.T, s Spec) error {
	t.Helper()
	s.Interval, s.Failures = time.Hour, 1
	if s.Timeout == 0 {
		s.Timeout = 10 * time.Second
	}
	p, err := NewProbe(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p.Ask(t.Context())
}

func want(t *testing.T, name string, err error, text string) {
	t.Helper()
	if (err == nil) != (text == "") || err != nil && !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v, want %q", name, err, text)
	}
}

func TestConnect(t *testing.T) {
	mail := server(t, func(c net.Conn) {
		fmt.Fprint(c, "220 mail ")
		fmt.Fprint(c, "ready\r\n")
		buf := make([]byte, 100)
		if n, err := c.Read(buf); err == nil {
			fmt.Fprintf(c, "250 %s", buf[:n])
		}
	})
	silent := server(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) }) // until the client closes
	closed := server(t, func(net.Conn) {})
	flood := server(t, func(c net.Conn) {
		for {
			if _, err := c.Write(make([]byte, 4096)); err != nil {
				return
			}
		}
	})
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		spec Spec
		want string
	}{
		{"accepts", Spec{Address: silent}, ""},
		{"greets", Spec{Address: mail, Receive: "^220 .*ready"}, ""},
		{"answers", Spec{Address: mail, Request: "HELO x\r\n", Receive: "250 HELO x"}, ""},
		{"greets otherwise", Spec{Address: closed, Receive: "^220"}, `the answer does not match "^220": it begins with ""`},
		{"is silent", Spec{Address: silent, Receive: "^220", Timeout: 100 * time.Millisecond}, "no answer within 100ms"},
		{"talks without end", Spec{Address: flood, Receive: "^220"}, "does not match"},
		{"refuses", Spec{Address: gone.Addr().String()}, "connection refused"},
	} {
		tt.spec.Kind = Connect
		began := time.Now()
		want(t, tt.name, ask(t, tt.spec), tt.want)
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("%s: took %v", tt.name, d)
		}
	}
}

func TestHTTP(t *testing.T) {
	hang := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/health":
			fmt.Fprintf(w, "ok %s", r.URL.RawQuery)
		case "/moved":
			http.Redirect(w, r, "/broken", http.StatusFound)
		case "/hang":
			select {
			case <-hang:
			case <-r.Context().Done():
			}
		case "/":
			fmt.Fprint(w, strings.Repeat("x", 2*maxAnswer))
		default:
			http.Error(w, "no", http.StatusServiceUnavailable)
		}
	}))
	defer s.Close()
	defer close(hang)
	address := strings.TrimPrefix(s.URL, "http://")
	for _, tt := range []struct {
		name string
		spec Spec
		want string
	}{
		{"well", Spec{Request: "/health"}, ""},
		{"root", Spec{}, ""},
		{"receives", Spec{Request: "/health?full", Receive: "^ok full$"}, ""},
		{"receives something else", Spec{Request: "/health", Receive: "^fine"}, `GET /health: the answer does not match "^fine": it begins with "ok "`},
		{"a long body", Spec{Receive: "y"}, "does not match"},
		{"a redirection is an answer", Spec{Request: "/moved"}, ""},
		{"an error", Spec{Request: "/broken"}, "GET /broken: status 503"},
		{"hangs", Spec{Request: "/hang", Timeout: 100 * time.Millisecond}, "no answer within 100ms"},
	} {
		tt.spec.Kind, tt.spec.Address = HTTP, address
		want(t, tt.name, ask(t, tt.spec), tt.want)
	}
	want(t, "nobody listens", ask(t, Spec{Kind: HTTP, Address: "127.0.0.1:1"}), "connection refused")
}

func TestPing(t *testing.T) {
	for _, address := range []string{"127.0.0.1", "::1"} {
		want(t, address, ask(t, Spec{Kind: Ping, Address: address}), "")
	}
	want(t, "no time", ask(t, Spec{Kind: Ping, Address: "127.0.0.1", Timeout: 1}), "ping 127.0.0.1: no answer within 1ns")
}

func TestIsReply(t *testing.T) {
	_, reply := echo(netip.MustParseAddr("127.0.0.1"))
	packet := append([]byte{echoReply4, 0, 1, 2, 3, 4, 5, 6}, reply[1:]...)
	header := append([]byte{0x45}, make([]byte, 19)...)
	other := append([]byte{}, packet...)
	other[echoHeader]++
	for _, tt := range []struct {
		name   string
		packet []byte
		hasIP  bool
		want   bool
	}{
		{"ours", packet, false, true},
		{"ours, raw", append(header, packet...), true, true},
		{"somebody else's", other, false, false},
		{"a request", append([]byte{echoRequest4}, packet[1:]...), false, false},
		{"cut", packet[:20], false, false},
		{"a header that lies", []byte{0x4f}, true, false},
		{"nothing", nil, true, false},
	} {
		if got := isReply(tt.packet, reply, tt.hasIP); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func TestSpecRefuses(t *testing.T) {
	base := Spec{Kind: Connect, Interval: time.Second, Timeout: time.Second, Failures: 1, Address: "127.0.0.1:1"}
	own := func(context.Context) error { return nil }
	for _, tt := range []struct {
		change func(*Spec)
		own    func(context.Context) error
		want   string
	}{
		{func(*Spec) {}, nil, ""},
		{func(s *Spec) { s.Timeout = 2 * time.Second }, nil, "want an interval of at least the timeout"},
		{func(s *Spec) { s.Failures = 0 }, nil, "one failure"},
		{func(s *Spec) { s.Kind = "magic" }, nil, "want process, agent"},
		{func(s *Spec) { s.Address = "host:80" }, nil, "want IP:PORT"},
		{func(s *Spec) { s.Kind = Ping }, nil, "want an IP address"},
		{func(s *Spec) { s.Kind, s.Request = HTTP, "x" }, nil, "want a path"},
		{func(s *Spec) { s.Receive = "(" }, nil, "receive"},
		{func(s *Spec) { s.Kind = Agent }, nil, "nobody to ask"},
		{func(s *Spec) { s.Kind = Agent }, own, ""},
	} {
		s := base
		tt.change(&s)
		_, err := NewProbe(s, tt.own)
		want(t, fmt.Sprintf("%+v", s), err, tt.want)
	}
}

// A life: well after the first answer, ill after three failures in a row, a
// hiccup in between is told but changes nothing.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := []bool{false, true, true, false, true, false, false, false, false, true, true}
		var times []time.Duration
		began := time.Now()
		p, err := NewProbe(Spec{Kind: Process, Interval: 10 * time.Second, Timeout: time.Second, Failures: 3}, func(ctx context.Context) error {
			n := len(times)
			times = append(times, time.Since(began))
			if n >= len(answers) || answers[n] {
				return nil
			}
			time.Sleep(500 * time.Millisecond) // of the bubble: a slow answer must not move the next probe
			return errors.New("no process")
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var got []string
		done := make(chan struct{})
		go func() {
			defer close(done)
			Run(ctx, "web", p, func(h Health) {
				got = append(got, fmt.Sprintf("%d: well=%v known=%v failures=%d why=%s", len(times)-1, h.Well, h.Known, h.Failures, h.Why))
			})
		}()
		time.Sleep(200 * time.Second)
		cancel()
		<-done
		want := []string{
			"0: well=false known=false failures=1 why=no process",
			"1: well=true known=true failures=0 why=",
			"3: well=true known=true failures=1 why=no process",
			"4: well=true known=true failures=0 why=",
			"5: well=true known=true failures=1 why=no process",
			"7: well=false known=true failures=3 why=no process",
			"9: well=true known=true failures=0 why=",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("reports (-want +got):\n%s", diff)
		}
		for i := 2; i < len(times); i++ {
			if d := times[i] - times[i-1]; d != 10*time.Second {
				t.Errorf("probe %d came %v after the one before", i, d)
			}
		}
	})
}

// An answer that hangs is cut off, and counts as a failure.
func TestRunHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := NewProbe(Spec{Kind: Agent, Interval: 2 * time.Second, Timeout: time.Second, Failures: 2}, func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		Run(ctx, "web", p, func(h Health) {
			if h.Failures == 2 {
				if h.Well || !h.Known || !strings.Contains(h.Why, "no answer within 1s") {
					t.Errorf("%+v", h)
				}
				cancel()
			}
		})
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("it took %v to be ill", d)
		}
	})
}

// Many monitors of one interval don't ask at the same moment.
func TestSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		perSecond := map[int]int{}
		began := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 200 {
			p, err := NewProbe(Spec{Kind: Process, Interval: 10 * time.Second, Timeout: time.Second, Failures: 3}, func(context.Context) error {
				mu.Lock()
				defer mu.Unlock()
				perSecond[int(time.Since(began)/time.Second)]++
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() { Run(ctx, fmt.Sprintf("vm-%d", i), p, func(Health) {}) })
		}
		time.Sleep(40 * time.Second)
		cancel()
		wg.Wait()
		for second := 20; second < 30; second++ {
			if n := perSecond[second]; n > 80 {
				t.Errorf("%d of 200 monitors probe within second %d", n, second)
			}
		}
	})
}
