package hypervisor

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestLocalDisk(t *testing.T) {
	dir := t.TempDir()
	d := LocalDisk{Path: filepath.Join(dir, "swap"), SizeBytes: 8 << 20, Swap: true}
	if err := CheckLocalDisk(d); err != nil {
		t.Fatalf("a file that can be made: %v", err)
	}
	if _, err := os.Stat(d.Path); err == nil {
		t.Error("the check has made the file")
	}
	if err := PrepareLocalDisk(d); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(d.Path)
	if err != nil || len(first) != 8<<20 {
		t.Fatalf("%d bytes, %v", len(first), err)
	}
	if blkid, err := exec.LookPath("blkid"); err == nil {
		out, err := exec.Command(blkid, "-p", "-o", "value", "-s", "TYPE", d.Path).CombinedOutput()
		if strings.TrimSpace(string(out)) != "swap" {
			t.Errorf("blkid sees %q, %v; want swap", out, err)
		}
	}
	if err := PrepareLocalDisk(d); err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(d.Path); err != nil || !bytes.Equal(first, again) {
		t.Errorf("a second preparation changed it (%v)", err)
	}
	d.SizeBytes = 16 << 20
	if err := PrepareLocalDisk(d); err != nil {
		t.Fatal(err)
	}
	if grown, err := os.ReadFile(d.Path); err != nil || len(grown) != 16<<20 || bytes.Equal(first[:swapPage], grown[:swapPage]) {
		t.Errorf("a larger size: %d bytes, %v, or the old signature", len(grown), err)
	}
}

func TestLocalDiskRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		name string
		d    LocalDisk
		want string
	}{
		{"no directory", LocalDisk{Path: dir + "/none/x", SizeBytes: 1 << 20}, "does not exist; make it with 1 MiB"},
		{"no device", LocalDisk{Path: "/dev/vg0/none", SizeBytes: 1 << 20}, "does not exist"},
		{"no device at the top", LocalDisk{Path: "/dev/pollux-none", SizeBytes: 1 << 20}, "does not exist"},
		{"a directory", LocalDisk{Path: dir, SizeBytes: 1 << 20}, "neither a file nor a block device"},
		{"no room", LocalDisk{Path: dir + "/x", SizeBytes: 1 << 60}, "MiB left"},
	} {
		if err := PrepareLocalDisk(tt.d); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("something was made: %v", entries)
	}
}
