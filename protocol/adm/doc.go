// Package adm is the language that polluxadm and polluxd speak over the
// daemon's unix socket: one JSON object a line, a request from the client,
// then its response from the daemon. Nothing here opens a socket.
//
//	-> {"v":1,"id":7,"cmd":"primary","resource":"r0","args":{"force":true}}
//	<- {"v":1,"id":7,"ok":false,"code":17,"number":-2,
//	    "error":"r0: State change failed: (-2) Need access to UpToDate data",
//	    "advice":"..."}
//
// Requests of one connection are answered in order. After a successful
// "events" request the daemon sends Event lines until either side closes:
// first one "status" event per resource, then an event of kind "ready", then
// one whenever a resource has changed. A client that reads slowly misses
// states in between, never the last one.
//
// Both directions are bounded, MaxRequest and MaxResponse bytes a line. A
// line that is longer, is no JSON, or has a field that this version doesn't
// know is a ProtocolError; the receiver closes the connection. Unknown fields
// are refused so that an option of a newer client (say, "force") is never
// dropped in silence. In responses they are ignored: newer daemons may add some.
//
// polluxha answers on a socket of its own with the same lines: an [HARequest] from
// the client; then, from a command that takes its time, [HAMessage] lines with
// progress, and one with the answer. Its event stream is made of [HAEvent] lines.
//
// Version is raised when an old client would misread a new daemon or the
// other way round. Additions to responses and events don't raise it.
package adm
