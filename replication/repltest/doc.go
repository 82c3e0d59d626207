// Package repltest runs two replication.Resource values against each other on
// a fake clock, fake disks and a fake network, and checks what a pair of nodes
// promises. Only tests import it.
//
// Everything that the engine would do is done here from the same Actions:
// packets travel as bytes on two ordered sockets per direction that may
// overtake one another, metadata is real bytes in the layout of package meta,
// disks have a volatile and a durable image. One seed gives one history.
//
//	w := repltest.NewWorld(repltest.Config{Seed: 1})
//	w.Nodes[0].Start()
//	w.Nodes[1].Start()
//	w.Run(1000) // milliseconds
//
// RunScript drives a World by the commands of a golden file, Simulate by a
// random operator with random faults.
package repltest
