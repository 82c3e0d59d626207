package storage

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/pollux-project/pollux/cmd/internal/demo/records"
)

func TestReadRecordsWithoutFile(t *testing.T) {
	for _, name := range []string{"mkfs.ext4", "debugfs"} {
		if _, err := Tool(name); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	image := filepath.Join(t.TempDir(), "ext4.img")
	if err := MakeImage(image, 8<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), "mkfs.ext4", "-q", "-F", image); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ReadRecords(t.Context(), image, "/records", filepath.Join(t.TempDir(), "r")); err == nil {
		t.Error("readRecords finds records on an empty filesystem")
	}
}

func TestDropRecord(t *testing.T) {
	image := filepath.Join(t.TempDir(), "disk")
	one, ackOne := records.Encode(1, 7)
	two, ackTwo := records.Encode(2, 7)
	old, _ := records.Encode(2, 6) // the same number of another run must stay
	before := bytes.Join([][]byte{make([]byte, 3<<20), old, one, two}, nil)
	if err := os.WriteFile(image, before, 0o600); err != nil {
		t.Fatal(err)
	}
	offset, err := DropRecord(image, records.Ack{Number: 2, Sum: ackTwo.Sum})
	if want := int64(3<<20 + 2*records.Size); err != nil || offset != want {
		t.Fatalf("dropRecord = %d, %v, want %d", offset, err, want)
	}
	after, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	clear(before[offset:])
	if !bytes.Equal(before, after) {
		t.Error("dropRecord changes something else")
	}
	if _, err := DropRecord(image, records.Ack{Number: 1, Sum: ackOne.Sum + 1}); err == nil {
		t.Error("dropRecord finds a record that isn't there")
	}
}

func TestSameContent(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	data := make([]byte, 3<<20)
	if err := os.WriteFile(a, append(bytes.Clone(data), 'x'), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b, append(bytes.Clone(data), 'y'), 0o600); err != nil {
		t.Fatal(err)
	}
	size := int64(len(data))
	for _, tt := range []struct{ size, want int64 }{{size, -1}, {size + 1, size}, {0, -1}} {
		if at, err := SameContent(a, b, tt.size); at != tt.want || err != nil {
			t.Errorf("sameContent of %d bytes = %d, %v, want %d", tt.size, at, err, tt.want)
		}
	}
	if _, err := SameContent(a, b, size+2); err == nil {
		t.Error("sameContent reads beyond the end without an error")
	}
}
