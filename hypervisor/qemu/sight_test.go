package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pollux-project/pollux/hypervisor"
)

// A node that runs none of its many VMs does not look at all processes of the machine
// for each of them; and a start makes whoever asks look again.
func TestStoppedVMsShareALook(t *testing.T) {
	dir := t.TempDir()
	fails := filepath.Join(dir, "qemu-fails")
	if err := os.WriteFile(fails, []byte("#!/bin/sh\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	q, err := New(Config{RunDir: filepath.Join(dir, "vm"), Binary: fails})
	if err != nil {
		t.Fatal(err)
	}
	looks := 0
	q.seen.each = func(f func(int, string)) error {
		looks++
		return eachQEMU(f)
	}
	askAll := func() {
		t.Helper()
		for i := range 50 {
			s, err := q.State(t.Context(), fmt.Sprint("vm", i))
			if err != nil || s.Phase != hypervisor.Stopped {
				t.Fatalf("vm%d: %v, %v, want it stopped", i, s.Phase, err)
			}
		}
	}
	began := time.Now()
	askAll()
	if most := 1 + int(time.Since(began)/sightAge); looks > most {
		t.Errorf("50 VMs that do not run: %d looks at all processes, want %d", looks, most)
	}
	q.seen.taken = time.Now().Add(time.Hour) // as if it were fresh for good
	guest := hypervisor.Guest{Name: "vm1", MemoryBytes: 64 << 20, VCPUs: 1, Accel: hypervisor.AccelTCG, Boot: hypervisor.Boot{Kernel: "/vmlinuz"}}
	if err := q.Start(t.Context(), guest); err == nil || !strings.Contains(err.Error(), "exit status 1") {
		t.Fatalf("start of a QEMU that fails: %v", err)
	}
	looks = 0
	if askAll(); looks == 0 {
		t.Error("after a start nobody looks again")
	}
	q.seen.taken = time.Now().Add(time.Hour)
	ended := q.seen.starting()
	looks = 0
	if askAll(); looks != 50 {
		t.Errorf("during a start: %d looks, want one for each question", looks)
	}
	ended()
}
