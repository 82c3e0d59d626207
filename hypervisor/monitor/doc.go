// Package monitor finds out whether what a VM is there for works: by the
// hypervisor's word, the guest's agent, a TCP connection, a ping or an HTTP
// request. Kinds and strings are those of ldirectord's checktype, request and
// receive.
//
// A [Monitor] probes at fixed times, an interval apart, without drift and
// without jitter; the times of different names are spread over the interval, so
// that many monitors are a steady trickle. A probe never overlaps the next one,
// as its timeout is at most the interval. Between probes a monitor is a sleeping
// goroutine with one timer.
//
//	p, err := monitor.NewProbe(monitor.Spec{
//		Kind: monitor.HTTP, Interval: 10 * time.Second, Timeout: 3 * time.Second, Failures: 3,
//		Address: "192.0.2.20:80", Request: "/health", Receive: "^ok",
//	}, nil)
//	…
//	go monitor.Run(ctx, "web", p, func(h monitor.Health) { … })
package monitor
