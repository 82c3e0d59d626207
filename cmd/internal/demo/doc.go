// Package demo plays the story that Pollux exists for, on one machine and as
// an ordinary user: two nodes hold one disk, a third one has a vote, a virtual
// machine writes to the disk, the first node is killed, the second one notices,
// asks the arbiter and boots the machine, and every record that was acknowledged
// is still there.
//
// It only uses what a user has: the programs polluxd, polluxha (each with a
// member of etcd inside) and polluxadm, polluxha's socket, and the console of the
// virtual machine. Its verdict trusts none of them: package records compares the
// numbers that the guest acknowledged on its console with what debugfs(8) reads
// from the second node's own disk.
//
//	err := demo.Run(ctx, demo.Config{Bin: "bin", Guest: "build/guest", Out: os.Stdout})
//
// demo.go has the story, one function a chapter; node.go a node; config.go its
// files; cluster.go what polluxha is asked; guestos.go the virtual machine's
// console; package storage the filesystem, the reader and the saboteur; report.go
// what is printed.
package demo
