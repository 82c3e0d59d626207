package replication_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/pollux-project/pollux/replication/repltest/hostile"
)

var (
	programs = flag.Int("programs", 150, "how many random programs TestHostile runs")
	firstOne = flag.Uint64("first-program", 1, "the number of the first one")
)

// TestHostile runs random programs of a hostile peer, longer ones than a fuzzer
// comes to in a short time. One that finds something is made shorter and kept
// beside the inputs of FuzzPeer, where every run of the tests repeats it.
func TestHostile(t *testing.T) {
	for i := range uint64(*programs) {
		seed := *firstOne + i
		program := randomProgram(seed)
		if runHostile(program) == "" {
			continue
		}
		program = shorter(program)
		name := filepath.Join("testdata", "fuzz", "FuzzPeer", fmt.Sprintf("program-%d", seed))
		text := fmt.Sprintf("go test fuzz v1\n[]byte(%q)\n", program)
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Error(err)
		}
		t.Fatalf("program %d, kept as %s:\n%s", seed, name, runHostile(program))
	}
}

func randomProgram(seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 84))
	b := make([]byte, 20+rng.IntN(600))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	if seed%2 == 0 { // mostly well-formed packets
		for i := range b {
			if rng.IntN(3) == 0 {
				b[i] &= 7
			}
		}
	}
	return b
}

// runHostile is what is wrong with a program, a panic too; empty if nothing.
func runHostile(program []byte) (why string) {
	defer func() {
		if p := recover(); p != nil {
			why = fmt.Sprintf("panic: %v", p)
		}
	}()
	if err := hostile.Run(program, nil); err != nil {
		return err.Error()
	}
	return ""
}

// shorter removes what is not needed to fail.
func shorter(program []byte) []byte {
	for n := len(program) / 2; n > 0; n /= 2 {
		for at := 0; at+n <= len(program); {
			try := append(append([]byte(nil), program[:at]...), program[at+n:]...)
			if runHostile(try) != "" {
				program = try
			} else {
				at += n
			}
		}
	}
	for i, x := range program {
		if x != 0 {
			if program[i] = 0; runHostile(program) == "" {
				program[i] = x
			}
		}
	}
	return program
}
