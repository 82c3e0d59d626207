// Package service is what the programs that run for long have in common: their
// log, private sockets, the state directory's lock, the boot's identity.
package service

// Version is the release, set by the linker (-X).
var Version = "0.1.0-dev"
