package export_test

import (
	"io"
	"testing"

	"github.com/pollux-project/pollux/blockdev/export"
	"github.com/pollux-project/pollux/protocol/nbd"
)

// TestRequestAllocs holds the request path at no allocation per request: 32
// writes and 32 reads in flight, again and again.
func TestRequestAllocs(t *testing.T) {
	dev, _ := fileDevice(t, 8<<20, false)
	r := newRig(t, dev, export.Config{})
	c := r.raw(t).enter("web-root")
	const depth, size = 32, 4096
	var out []byte
	for i := range uint64(depth) {
		out = nbd.Request{Command: nbd.CmdWrite, Cookie: i, Offset: i * size, Length: size}.Append(out)
		out = append(out, make([]byte, size)...)
		out = nbd.Request{Command: nbd.CmdRead, Cookie: i, Offset: 4<<20 + i*size, Length: size}.Append(out)
	}
	in := make([]byte, depth*(2*nbd.SimpleReplySize+size))
	round := func() {
		if _, err := c.Write(out); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, in); err != nil {
			t.Fatal(err)
		}
	}
	for range 50 { // fill the pools
		round()
	}
	perRequest := testing.AllocsPerRun(200, round) / (2 * depth)
	t.Logf("%.4f allocations per request", perRequest)
	if perRequest > 0.05 { // a writer goroutine now and then
		t.Errorf("%.3f allocations per request", perRequest)
	}
}
