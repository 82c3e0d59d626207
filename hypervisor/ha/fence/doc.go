// Package fence runs the standard fence agents (Debian: fence-agents), which switch
// a host off through its management board, its socket or its hypervisor.
//
// An agent is a program: one option per line, NAME=VALUE, on its standard input;
// its exit code is the answer. The action metadata prints, as XML, the options that
// it knows. Only two facts count as "off": the action status ended with exit code 2
// and its output says "Status: OFF". The exit code alone won't do, as the agents
// end with 2 for bad options, too.
//
//	devices, err := fence.New([]fence.Device{{Node: "nodo2", Agent: "fence_ipmilan", Options: map[string]string{…}}})
//	…
//	go devices.SelfTest(ctx, time.Hour)
//	err = devices.Off(ctx, "nodo2") // nil: confirmed to be off
//
// Options are never on a command line or in an error text where they may be secret.
// Whether and when a shot may be fired is not decided here: package arbiter/fence.
package fence
