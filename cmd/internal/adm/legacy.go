package adm

import "slices"

// rewriteLegacy turns the forms of older how-tos into today's:
//
//	polluxadm -- --overwrite-data-of-peer primary R  ->  primary --force R
//	polluxadm -- --discard-my-data connect R         ->  connect --discard-my-data R
//
// What stood behind "--" for the lower program are options of the command.
// Dropping one in silence, as drbdadm 9 does with the first, would make a
// plain "primary" of it.
func rewriteLegacy(args []string) []string {
	i := slices.Index(args, "--")
	if i < 0 {
		return args
	}
	before, after := args[:i:i], args[i+1:]
	var options, words []string
	for _, a := range after {
		switch {
		case a == "--overwrite-data-of-peer" || a == "-o":
			options = append(options, "--force")
		case len(a) > 1 && a[0] == '-':
			options = append(options, a)
		default:
			words = append(words, a)
		}
	}
	return slices.Concat(before, words, options)
}
