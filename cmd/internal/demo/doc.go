// Package demo plays the story that Pollux exists for, on one machine and as
// an ordinary user: two nodes hold one disk, a virtual machine writes to it,
// the first node is killed, the machine comes up on the second one, and every
// record that was acknowledged is still there.
//
// It only uses what a user has: the programs polluxd and polluxadm, the NBD
// export, and the console of the virtual machine. Its verdict trusts neither
// of them: package records compares the numbers that the guest acknowledged on
// its console with what debugfs(8) reads from the second node's own disk.
//
//	err := demo.Run(ctx, demo.Config{Bin: "bin", Guest: "build/guest", Out: os.Stdout})
//
// demo.go has the story, one function a chapter; node.go a node; guestos.go the
// virtual machine's console; storage.go the filesystem, the reader and the
// saboteur; report.go what is printed.
package demo
