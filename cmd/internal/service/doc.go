// Package service is what the programs that run for long have in common: their
// log, private sockets, the state directory's lock, the boot's identity.
package service
