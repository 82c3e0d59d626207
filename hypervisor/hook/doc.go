// Package hook runs the programs that an operator wants run when something has
// happened. They get one JSON object, an [Input], on their standard input and a
// fixed environment (PATH, LC_ALL=C, POLLUX_EVENT). A hook never holds anything
// up: it runs beside what caused it, those of one key one after the other so
// that on-demote can't overtake on-promote. When its time is over it is killed
// with its process group; what it wrote is kept up to a limit, for the log.
//
//	r := hook.New(func(res hook.Result) { log … })
//	r.Start("web", hook.Hook{Command: []string{"/usr/local/bin/tell"}, Timeout: 30 * time.Second},
//		hook.Input{Event: "on-promote", Node: "alpha", VM: "web", Term: 17, Time: time.Now()})
//	…
//	r.Close(ctx)
//
// What the program reads:
//
//	{"event":"on-promote","node":"alpha","vm":"web","resources":["web-root"],
//	 "peer":"bravo","term":17,"reason":"bravo was declared dead","time":"2026-11-21T23:50:20Z"}
package hook
