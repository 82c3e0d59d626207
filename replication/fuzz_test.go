package replication_test

import (
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-project/pollux/replication/repltest/hostile"
)

// FuzzPeer lets a hostile peer loose on a core: see package hostile for what the
// bytes mean and what must hold. POLLUX_TRACE=1 shows what happens, for one
// input: go test ./replication -run FuzzPeer/NAME.
func FuzzPeer(f *testing.F) {
	for scene := range byte(14) {
		f.Add([]byte{0, 0, 2, 0, scene, 9, 2, 0, 0, 0, 0, 4, 6, 40, 0, 0})
		f.Add([]byte{1, 1, 0, 0, scene, 30, 0, 3, 12, 0, 7, 0, 7, 9, 1, 0, 5})
	}
	// Floods while a disk does not answer: writes, reads, verifies, barriers, pings.
	for _, cmd := range []byte{0, 9, 10, 37, 5, 24, 3, 55} {
		f.Add([]byte{0, 0, 2, 0, 3, 20, 20, 4, 23, 1, cmd, 0, 0, 0, 0, 0, 2, 1, 0, 5, 0, 5})
	}
	f.Fuzz(func(t *testing.T, program []byte) {
		if len(program) > 4096 {
			return
		}
		defer watch("a program does not end")()
		var err error
		if os.Getenv("POLLUX_TRACE") != "" {
			err = hostile.Run(program, os.Stderr)
		} else {
			err = hostile.Run(program, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
}

// watch panics once a run has used more processor time than any run can need;
// what it returns ends that. Time on the wall says nothing on a busy machine.
func watch(what string) (stop func()) {
	const limit = 30 * time.Second
	begun, done := processorTime(), make(chan struct{})
	go func() {
		for processorTime()-begun < limit {
			select {
			case <-done:
				return
			case <-time.After(limit):
			}
		}
		panic(what)
	}()
	return func() { close(done) }
}

func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
