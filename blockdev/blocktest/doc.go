// Package blocktest is for tests of everything that stands on a
// blockdev.Device: a disk in memory that can lose power and fail, a suite that
// every Device must pass, and a Backend that serves one Device.
//
//	disk := blocktest.NewMem(8 << 20)
//	… write through the code under test, some of it synced …
//	after := disk.CrashClone(rng) // what a power failure may have left
package blocktest
