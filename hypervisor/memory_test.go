package hypervisor

import (
	"os"
	"path/filepath"
	"testing"
)

func TestHostMemory(t *testing.T) {
	total, available, err := HostMemory()
	if err != nil || available <= 0 || available > total {
		t.Errorf("HostMemory = %d, %d, %v", total, available, err)
	}
	path := filepath.Join(t.TempDir(), "meminfo")
	if err := os.WriteFile(path, []byte("MemTotal:  4096 kB\nMemFree: 1 kB\nMemAvailable:    2048 kB\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if total, available, err := hostMemory(path); total != 4<<20 || available != 2<<20 || err != nil {
		t.Errorf("hostMemory = %d, %d, %v", total, available, err)
	}
	if err := os.WriteFile(path, []byte("MemTotal:  4096 kB\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := hostMemory(path); err == nil {
		t.Error("no MemAvailable, and no error")
	}
}
