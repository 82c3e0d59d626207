// Package load puts a block device under load and records the latency of every
// request: an NBD export through a client of its own, or a file by pread and
// pwrite. It is a closed loop: the depth is kept constant, each answer lets the
// next request go.
//
// The client is made to be cheaper than what it measures. A connection is one
// goroutine on a blocking socket: all requests that may go leave by one sendmsg
// that takes the payload from where it lies, all answers that are there come by
// one read. Two system calls, two clock readings and no allocation a request at
// depth 1; both are shared at depth. Payloads are cut from a few MiB of noise,
// at another place each time, so nobody can compress them or find zeros.
//
//	res, err := load.Run(ctx, "nbd+unix:///r0?socket=/run/pollux/nbd.sock", load.Spec{
//		Workload: result.Workload{Op: result.OpWrite, Pattern: result.PatternRandom, BlockBytes: 4096, Depth: 32, Connections: 1, Class: result.ClassBuffered},
//		SizeBytes: 1 << 30, Duration: 3 * time.Second,
//	})
//	fmt.Println(float64(res.Ops)/res.Seconds, res.Latency.P(0.99))
//
// With the flush class an operation is a write and, once that is answered, a
// flush: its latency is that of both. A read has none.
package load
