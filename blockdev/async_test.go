package blockdev_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/pollux-project/pollux/blockdev"
)

// openAsync returns a direct file of 1 MiB and an Async of it.
func openAsync(t *testing.T) (blockdev.Device, *blockdev.Async) {
	t.Helper()
	dev, err := blockdev.Open(makeFile(t, 1<<20), blockdev.Options{Direct: true})
	if err != nil {
		t.Skipf("no O_DIRECT: %v", err)
	}
	a := blockdev.OpenAsync(dev, 128)
	if a == nil {
		dev.Close()
		t.Skip("the kernel has no aio")
	}
	return dev, a
}

func TestAsync(t *testing.T) {
	dev, a := openAsync(t)
	results, ended := make(chan blockdev.AsyncResult, 256), make(chan struct{})
	go func() {
		a.Run(func(rs []blockdev.AsyncResult) {
			for _, r := range rs {
				results <- r
			}
		})
		close(ended)
	}()
	const n = 100
	run := func(isWrite bool, bufs [][]byte) {
		t.Helper()
		var ops []blockdev.AsyncOp
		for i, b := range bufs {
			if a.Can(b, int64(i)*4096) {
				ops = append(ops, blockdev.AsyncOp{IsWrite: isWrite, Tag: i, Data: b, Offset: int64(i) * 4096})
			}
		}
		begun := a.Start(ops)
		again := map[int]bool{}
		for i := range bufs {
			again[i] = true
		}
		for range begun {
			switch r := <-results; {
			case r.Err == nil:
				delete(again, r.Tag)
			case !errors.Is(r.Err, blockdev.ErrNotNow):
				t.Fatal(r.Err)
			}
		}
		for i := range again {
			do := dev.ReadAt
			if isWrite {
				do = dev.WriteAt
			}
			if _, err := do(bufs[i], int64(i)*4096); err != nil {
				t.Fatal(err)
			}
		}
	}
	var want, got [][]byte
	for i := range n {
		b := blockdev.AlignedBuffer(4096)
		for j := range b {
			b[j] = byte(i + j%7 + 1)
		}
		want, got = append(want, b), append(got, blockdev.AlignedBuffer(4096))
	}
	run(true, want)
	run(false, got)
	for i := range n {
		if !bytes.Equal(got[i], want[i]) {
			t.Errorf("block %d is not what was written", i)
		}
	}
	if a.Start([]blockdev.AsyncOp{{IsSync: true, Tag: 7}}) != 1 {
		t.Error("no sync is begun")
	} else if r := <-results; r.Tag != 7 || r.Err != nil {
		t.Errorf("a sync ends with %+v", r)
	}
	if a.Can(make([]byte, 4097)[1:], 0) || a.Can(want[0], 100) {
		t.Error("what is not aligned can be done")
	}
	if begun := a.Start([]blockdev.AsyncOp{{IsWrite: true, Data: want[0], Offset: 1 << 20}}); begun != 0 {
		t.Error("a write beyond the end is begun")
	}
	if err := dev.Close(); err != nil { // returns: nothing is under way
		t.Fatal(err)
	}
	if begun := a.Start([]blockdev.AsyncOp{{IsWrite: true, Data: want[0]}}); begun != 0 {
		t.Error("a write to a closed device is begun")
	}
	a.Close()
	<-ended
}
