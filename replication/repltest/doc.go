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
// RunScript drives a World by the commands of a golden file, Simulator by a
// random operator with random faults.
//
// # A simulated history
//
// A plan is drawn from the seed before anything happens: the configuration, and
// rounds of one trouble and the wishes of the clients. Then it runs; then all is
// healed, as an operator would who reads the messages, and both copies must come
// to rest, equal. Each feature of the engine has a file sim_<name>.go with what
// it chooses, its troubles, and what it undoes and checks in the end (type
// feature). Whatever draws has a seed of its own, an event one of its time: to
// take one thing away changes nothing of the others. So a history that fails can
// be shrunk (shrink.go): parts are left out as long as it fails in the same way,
// and what is left is a short script. Traces are composed only then, in a second
// run: histories that succeed format nothing.
//
// Model knows what was promised. A payload has the number of its write in each
// sector, so that a sector's content tells which write it is from; the floor of a
// sector is the youngest write that a copy must hold. What clients read must be
// linearizable (register.go). And at any moment each block that differs between
// the two disks is marked on one of them, also if the power went just then
// (check_marked.go).
package repltest
