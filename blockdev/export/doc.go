// Package export serves volumes to NBD clients: QEMU, the kernel's nbd driver,
// libnbd's tools.
//
// One goroutine per connection reads. It takes the first request and all that
// are already whole in its buffer, hands them to the Backend in one Submit,
// and goes back to reading. Completions come from any goroutine and in any
// order; they are filed and written to the socket by whoever finds no write
// in progress, so a reply costs no hand-over between goroutines.
//
//	srv := export.New(export.Config{Log: log})
//	if err := srv.Add("web-root", volume); err != nil { … }
//	if _, err := srv.Listen(export.Listener{Network: "unix", Address: "/run/pollux/nbd.sock"}); err != nil { … }
//	…
//	srv.Shutdown(ctx) // in-flight requests are finished
//
// Everything a client can make grow is bounded: options, their length and the
// time of the handshake, requests and bytes in flight per connection, the
// number of connections.
//
// Simple and structured replies, base:allocation (for a Backend that is a
// Mapper), FLUSH, FUA, TRIM, WRITE_ZEROES and several connections to one
// export are there. TLS is not: beyond the machine a listener needs
// Plaintext and an Allow list.
package export
