package engine

import (
	"encoding/hex"
	"testing"

	"github.com/pollux-project/pollux/replication"
)

// A digest is hashed without allocating, in the kernel's form, whatever the
// state was used for before.
func TestLook(t *testing.T) {
	e := &Engine{}
	data := []byte("123456789")
	for _, tt := range []struct {
		alg, want string
		wantZero  bool
	}{
		{"crc32c", "839206e3", false},
		{"md5", "25f9e794323b453885f5181f1b624d0b", true},
		{"sha1", "f7c3bc1d808e04732adf679965ccc34ca7ae3441", false},
		{"", "", true},
		{"crc32c", "839206e3", false},
	} {
		a := &replication.Action{DigestAlg: tt.alg, WantZero: tt.wantZero}
		l := e.lookFor(a)
		l.at(data)
		if got := hex.EncodeToString(l.sum[:l.size]); got != tt.want || l.allZero {
			t.Errorf("%q: digest %s, all zero %v, want %s, false", tt.alg, got, l.allZero, tt.want)
		}
		e.looks.put(l)
	}
	if e.lookFor(&replication.Action{}) != nil {
		t.Error("a read that wants nothing pays for a look")
	}
	a := &replication.Action{DigestAlg: "sha256", WantZero: true}
	block := make([]byte, 9000)
	allocs := testing.AllocsPerRun(100, func() {
		l := e.lookFor(a)
		l.at(block)
		e.looks.put(l)
	})
	if allocs != 0 {
		t.Errorf("%v allocations per digest", allocs)
	}
	l := e.lookFor(a)
	if l.at(block); !l.allZero {
		t.Error("zeroes are not seen")
	}
	block[8999] = 1
	if l.at(block); l.allZero {
		t.Error("the last byte is not looked at")
	}
}
