// Package witness is the program pollux-witness: it runs the server of package
// hypervisor/ha/arbiter/witness, and tells a running one which clusters it has.
package witness
