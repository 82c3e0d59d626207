// Package bench measures a Pollux pair beside the userspace network RAID-1
// that Debian ships, on one machine and in the same minutes.
//
// The rival is qemu-storage-daemon's quorum: a local raw file and a remote NBD
// export, vote-threshold=1 and read-pattern=fifo, so that a write waits for
// both copies and a read takes one, as with Pollux. The remote export is
// another qemu-storage-daemon, or nbdkit for the page cache class. What makes
// the comparison fair:
//
//   - The same work: fio's NBD engine over a unix socket, 4 KiB random writes,
//     one image size, every block of every image written before, so that
//     nobody pays for allocation. Before each run everything dirty is written
//     out and the images are dropped from the page cache: its state, and the
//     size of the folios in it, would otherwise decide more than the servers.
//   - The same durability: "buffered" replies from the page caches of both
//     nodes, "direct" from both devices by O_DIRECT, "flush" has an
//     NBD_CMD_FLUSH after every write. Pollux runs with disk-flushes yes.
//   - qemu's NBD server sets no TCP_NODELAY; at depth its replies then wait
//     for delayed acknowledgements (p99 of 45 ms and more). Everything runs in
//     a network namespace whose loopback acknowledges at once (Isolate).
//     Without one only the nbdkit peer is a fair rival, and only it is used.
//   - Rounds are interleaved, their order rotates, medians count; the best
//     line of a class is the one to beat.
//
// What is measured is a list of experiments, each in a file of its own; all
// append to one result.Run.
//
// Example:
//
//	run, err := bench.Run(ctx, bench.Config{Bin: "bin", Rounds: 5, Seconds: 3, Progress: os.Stderr})
//	if err == nil {
//		err = run.Write("run.json")
//	}
//
// Numbers of different runs, or machines, don't compare; their ratios do,
// roughly.
package bench
