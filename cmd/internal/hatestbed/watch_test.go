package hatestbed

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/pollux-project/pollux/cmd/internal/demo/guest"
	"github.com/pollux-project/pollux/cmd/internal/demo/records"
)

// at makes moments.
func at(ms int) time.Time { return time.Unix(1000, 0).Add(time.Duration(ms) * time.Millisecond) }

func TestLateAcks(t *testing.T) {
	boot := func(host string, kernel int, acks ...int) Boot {
		b := Boot{Host: host, Kernel: at(kernel)}
		for _, ms := range acks {
			b.Acks = append(b.Acks, ConsoleAck{At: at(ms), Ack: records.Ack{Number: uint64(ms)}})
		}
		return b
	}
	for _, tt := range []struct {
		name  string
		boots []Boot
		want  []uint64
	}{
		{"one after the other", []Boot{boot("a", 0, 10, 20), boot("b", 30, 40, 50), boot("a", 60, 70)}, nil},
		{"the old one goes on", []Boot{boot("b", 30, 40, 50), boot("a", 0, 10, 45, 60)}, []uint64{60, 45}},
		{"the new one has not begun", []Boot{boot("a", 0, 10, 35), boot("b", 30)}, nil},
		{"a restart on the same host", []Boot{boot("a", 0, 10, 45), boot("a", 30, 40)}, nil},
	} {
		var got []uint64
		for _, l := range lateAcks(tt.boots, at(0)) {
			got = append(got, l.Ack.Number)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: late %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestConsoleReadsBoots(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console")
	text := "SeaBIOS\r\n[    0.000000] Linux version 6.1\r\nBOOT\r\nJOURNAL clean\r\nFSCK clean\r\nFOUND 0 damaged 0\r\nACK 1 00000001\r\n" +
		"[    0.000000] Linux version 6.1\r\nJOURNAL failed\r\nFSCK damaged 4\r\nFOUND 7 damaged 2\r\nACK 8 00000008\r\nACK 9 0000"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := NewConsole("alpha", path)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { c.Run(ctx); close(done) }()
	for deadline := time.Now().Add(settle); len(c.Boots()) < 2 && time.Now().Before(deadline); {
		time.Sleep(consolePoll) // it polls as well
	}
	cancel()
	<-done
	boots := c.Boots()
	if len(boots) != 2 || len(boots[0].Acks) != 1 || len(boots[1].Acks) != 1 || boots[1].Acks[0].Number != 8 {
		t.Fatalf("boots: %+v", boots)
	}
	if f := boots[0].faults(); len(f) != 0 {
		t.Errorf("a good boot: %v", f)
	}
	want := []string{
		`the journal on alpha is "failed"`, `e2fsck on alpha finds the filesystem "damaged 4"`,
		"the guest on alpha finds 2 of its records damaged",
	}
	if f := boots[1].faults(); !slices.Equal(f, want) {
		t.Errorf("a bad boot: %q, want %q", f, want)
	}
}

// The client and the ledger, without a machine: what was acknowledged is read
// back, and a guest that lacks it is found out.
func TestClientAndLedger(t *testing.T) {
	serve := func(path string, run uint64) (address string, stop func()) {
		l, err := guest.OpenLedger(path, run)
		if err != nil {
			t.Fatal(err)
		}
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- l.Serve(listener) }()
		return listener.Addr().String(), func() {
			_ = listener.Close()
			if err := <-served; err != nil {
				t.Error(err)
			}
			_ = l.Close()
		}
	}
	if err := loopbackUp(); err != nil { // the sandbox's own
		t.Fatal(err)
	}
	dir := t.TempDir()
	address, stop := serve(filepath.Join(dir, "one"), 1)
	client := NewClient(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", address)
	})
	ctx, cancel := context.WithTimeout(t.Context(), settle)
	defer cancel()
	working, rest := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { client.Run(working); close(done) }()
	if _, err := client.Wait(ctx, time.Time{}, func(a Acked) bool { return a.Number == 5 && a.Run == "0000000000000001" }); err != nil {
		t.Fatal(err)
	}
	rest()
	<-done
	s := &Site{Customer: client}
	if lost, err := s.ReadBack(ctx, time.Time{}); err != nil || len(lost) != 0 {
		t.Errorf("read back: %v, %v", lost, err)
	}
	stop()
	address, stop = serve(filepath.Join(dir, "two"), 2)
	defer stop()
	if lost, err := s.ReadBack(ctx, time.Time{}); err != nil || len(lost) != len(client.Acked(time.Time{})) {
		t.Errorf("read back from an empty ledger: %v, %v", lost, err)
	}
}
