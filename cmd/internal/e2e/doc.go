// Package e2e tests Pollux as its users meet it: the programs polluxd,
// polluxadm and polluxmeta, two nodes on loopback or in network namespaces,
// and the clients that people use (nbdcopy, qemu-io, fio, mount).
//
//	go test ./cmd/internal/e2e                       # everything; parts need root and skip without
//	go test -run TestE2EKill -v ./cmd/internal/e2e   # one subject, with the nodes' logs on failure
//
// The tests build the programs themselves. Whatever a test starts it ends by
// process id.
package e2e
