// Package conf reads everything a person writes for Pollux: resource files in
// DRBD's configuration language, pollux.toml and the description of a VM.
//
// Resource files are read by one hand-written lexer and parser that take both
// dialects of the language, 8.4 (8.3's spellings included) and 9; what an
// option is called, which unit it has and which values it takes stands in one
// table, schema.go. Reading has three steps, each with its own kind of error:
//
//	Load     files -> syntax tree; a syntax error stops, wrong values and
//	         contradictions are collected and come back together (ErrorList)
//	Resolve  one resource as this host sees it: which host section is ours,
//	         who the peer is, every option with the nearest value or DRBD's
//	         default, in its natural unit
//	Dump     the canonical form, dialect 9, that drbdadm dump prints
//
// For example:
//
//	cfg, err := conf.Load([]string{"/etc/pollux.d/web.res"}, conf.SystemEnv())
//	if err != nil {
//		return err // every line of it begins with file:line:col
//	}
//	r, err := cfg.Resolve("web")
//	if err != nil {
//		return err
//	}
//	fmt.Println(r.Local.Addr, r.Peer.Addr, r.Net.PingInterval, r.Volumes[0].Disk)
//
// Where Pollux is stricter than drbdadm, because following it would be a
// guess about data:
//
//   - the end of the file inside a section is an error;
//   - ports, minors, volume numbers, indexes and node ids take no suffix;
//   - the same option twice in one section with two values is an error that
//     names both lines, so is the same volume number twice;
//   - an option that needs a value has to have one, no-NAME is for booleans;
//   - a resource name is part of paths and export names, so "/", "." and ".."
//     are refused;
//   - a peer-device option set at several levels is not ambiguous: the nearest
//     one counts, as in 8.4.
//
// Nothing here writes, logs or keeps state; a loaded Config is not changed
// afterwards and is safe for concurrent use. Files are bounded (1 MiB each,
// 16 MiB and 1,000 files in all).
package conf
