// Package selftest proves that the tests of the replication core would notice a
// bug: it plants one at a time and runs the simulation, the crash points and
// the golden scripts until one of them fails.
//
// A bug is a file below replication/testdata/selftest, or
// hypervisor/ha/hatest/testdata for one that the simulation of failover has to find
// (hasim). It replaces text of the
// sources through the go command's -overlay, so production code has no switch
// for it and nothing in the checkout changes:
//
//	# What the bug is, in a line.
//	# Why it is one, and who notices.
//	found by sim                     (or hasim, crash, script; what TestSelfTest runs)
//	file replication/epoch.go
//	<<<<
//		if w.v.sync.done < w.seq {
//	====
//		if false {
//	>>>>
//
// The old text must stand in the file exactly once, or TestOverlaysApply fails:
// a refactoring cannot disable a bug without saying so. The folder ten has the
// bugs that the simulation alone must find within a minute; more has the rest,
// each with the method that finds it.
package selftest
