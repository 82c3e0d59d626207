// Package adm is polluxadm, the command that people and scripts use. It
// understands drbdadm's command line: names, options before or after the
// command, exit statuses and messages.
//
// A command does one of three things: it asks polluxd over the control socket
// (protocol/adm), it reads the configuration (conf), or it works on metadata
// of a disk that nobody uses (metacli). What needs the daemon says so when it
// isn't there; all else works without.
//
//	os.Exit(adm.Main(ctx, os.Args[1:], adm.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
//
// Exit statuses: 0 done or nothing to do, 1 usage, 5 state lower than
// Outdated or a wait that ran out, 10 refused or configuration wrong, 11 state
// change refused, 16 no local disk, 17 no up to date data, 20 polluxd absent,
// 40 create-md would destroy data. Over several resources: the highest.
package adm
