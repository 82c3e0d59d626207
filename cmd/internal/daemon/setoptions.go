package daemon

import (
	"errors"
	"fmt"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/protocol/adm"
)

// setOptions changes single disk or net options of a running resource, until
// adjust. Without any it returns to those of the configuration.
func (r *resource) setOptions(req adm.Request, eng engineAPI) error {
	spec, configured, args := r.runningSpec(), r.currentSpec(), req.Args
	vols, err := r.volumesOf(req)
	if err != nil {
		return err
	}
	toFile := len(args.Options) == 0 && !args.SetDefaults
	switch {
	case req.Cmd == adm.CmdNetOptions && toFile && spec.Net.TLS != configured.Net.TLS:
		return r.optionRefused(&conf.OverrideError{Section: conf.SectionNet, Option: "tls", Msg: "it is taken over by adjust: the connection is made anew"})
	case req.Cmd == adm.CmdNetOptions && toFile:
		spec.Resource = spec.TakeNet(configured.Resource)
	case req.Cmd == adm.CmdNetOptions:
		if spec.Resource, err = spec.WithNet(args.Options, args.SetDefaults); err != nil {
			return r.optionRefused(err)
		}
	default:
		for _, n := range vols {
			if toFile {
				spec.Resource = spec.TakeDisk(n, configured.Resource)
			} else if spec.Resource, err = spec.WithDisk(n, args.Options, args.SetDefaults); err != nil {
				return r.optionRefused(err)
			}
		}
	}
	if err := againstManager(spec, args.Options); err != nil {
		return r.optionRefused(err)
	}
	if err := eng.Reconfigure(spec); err != nil {
		return err
	}
	r.mu.Lock()
	r.running = spec
	r.mu.Unlock()
	r.d.syncOrder.check(r.d)
	return nil
}

// againstManager is what contradicts a resource's manager (conf, checkManaged has
// the same for files).
func againstManager(spec resourceSpec, given map[string]string) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%s; manager = %q is in pollux.toml", fmt.Sprintf(format, args...), spec.Manager)
	}
	fencing, hasFencing := given["fencing"]
	switch {
	case spec.Manager == "":
		return nil
	case spec.Net.AllowTwoPrimaries:
		return refuse("allow-two-primaries: a manager has one node write")
	case spec.Net.Protocol != "C" && spec.MaxLossBytes == 0:
		return refuse("protocol %s needs max-loss-bytes and max-loss-seconds in pollux.toml", spec.Net.Protocol)
	case spec.Net.OnCongestion != "block":
		return refuse("on-congestion %s: a Primary that does without its peer's copy has to ask first", spec.Net.OnCongestion)
	case hasFencing && fencing != "resource-and-stonith":
		return refuse("fencing %s lets a node go on alone without asking", fencing)
	}
	return nil
}

// optionRefused gives a refused option DRBD's number and sentence.
func (r *resource) optionRefused(err error) error {
	number, text := 162, "Invalid configuration request"
	var o *conf.OverrideError
	if errors.As(err, &o) {
		switch o.Option {
		case "allow-two-primaries":
			number, text = 139, "Protocol C required"
		case "fencing":
			number, text = 154, "Fencing policy resource-and-stonith only with prot B or C allowed."
		case "on-congestion":
			number, text = 155, "on-congestion policy pull-ahead only with prot A allowed."
		}
	}
	return &adm.Error{
		Exit: adm.ExitRefused, Number: number, Text: fmt.Sprintf("%s: Failure: (%d) %s: %v", r.name, number, text, err),
		Advice: "nothing was changed",
	}
}
