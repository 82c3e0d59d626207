package engine

import (
	"bufio"
	"fmt"
	"io"
	"testing"
)

// BenchmarkSend is what the sockets cost alone: batches of one size, filed, sent
// and read as a link does it, in plaintext and with TLS.
func BenchmarkSend(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10, 1 << 20} {
		for _, secret := range []bool{false, true} {
			b.Run(fmt.Sprintf("%dKiB/tls=%v", size>>10, secret), func(b *testing.B) {
				x, y := socketPair(b)
				from, to := &sock{TCPConn: x}, &sock{TCPConn: y}
				if secret {
					from, to = secure(b, x, y)
				}
				o, err := newOut(from, func() patience { return patience{} })
				if err != nil {
					b.Fatal(err)
				}
				o.onError, o.onSent = func(err error) { b.Error(err) }, func(uint64, bool) {}
				go o.run()
				defer close(o.done)
				head, data, got := make([]byte, 32), make([]byte, size), make([]byte, size)
				br := bufio.NewReaderSize(to.reader(), dataBuffer)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				b.ResetTimer()
				for range b.N {
					o.file(head, data, "")
					o.flush()
					if _, err := io.ReadFull(br, got[:32]); err != nil {
						b.Fatal(err)
					}
					if _, err := io.ReadFull(br, got); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
