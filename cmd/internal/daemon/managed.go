package daemon

import (
	"errors"
	"fmt"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	"github.com/pollux-project/pollux/protocol/adm"
)

// primary promotes: under an arbiter's term, by the vote of the copies, or as the
// operator wants. Where a manager decides, an operator has to force it, by name.
func (r *resource) primary(eng engineAPI, args adm.Args) error {
	manager := r.runningSpec().Manager
	switch {
	case args.Term != 0 && args.Force && args.Confirm == r.name:
		r.log.Warn().Bool("audit", true).Uint64("term", args.Term).Bool("sole", args.Sole).Msg("promotion of a copy that may lack writes, by an operator's word")
		return eng.ForceTerm(args.Term, args.Sole)
	case args.Term != 0:
		return eng.PrimaryWithTerm(args.Term, args.Sole)
	case manager == "":
		return eng.Primary(args.Force)
	case args.Force && args.Confirm != r.name:
		return &adm.Error{
			Exit: adm.ExitRefused, Number: 162,
			Text:   fmt.Sprintf("%s: Failure: (162) Invalid configuration request: %s decides who is Primary; %s", r.name, managerName(manager), r.unknown(eng)),
			Advice: fmt.Sprintf("whoever answers for that repeats the name: polluxadm primary --force --confirm=%s %s", r.name, r.name),
		}
	case args.Force:
		return r.override(eng)
	case manager == conf.ManagerPacemaker:
		return eng.PrimaryByVote(false)
	}
	return &adm.Error{
		Exit: adm.ExitRefused, Number: 162,
		Text:   fmt.Sprintf("%s: Failure: (162) Invalid configuration request: polluxha decides who is Primary (manager = %q)", r.name, manager),
		Advice: "polluxadm vm start or vm move for what uses it; polluxadm cluster status says why nobody is Primary",
	}
}

func managerName(manager string) string {
	if manager == conf.ManagerInternal {
		return "polluxha"
	}
	return "Pacemaker"
}

// unknown is what nobody can know here who forces a promotion, and what it may cost.
func (r *resource) unknown(eng engineAPI) string {
	if isUp(eng.Status()) {
		return fmt.Sprintf("%s is connected: what is on this node's disk becomes the valid data", r.runningSpec().Peer.Name)
	}
	return "the peer is not connected: it may be running and writing, and this copy may be old; what only the peer has is kept there, but nobody uses it"
}

func isUp(st adm.Resource) bool {
	switch st.Connection {
	case "StandAlone", "Disconnecting", "Unconnected", "Timeout", "BrokenPipe", "NetworkFailure", "ProtocolError", "TearDown", "WFConnection", "WFReportParams", "":
		return false
	}
	return true
}

// override makes this node the owner of a term that no arbiter gave. The other
// copy is left as it is.
func (r *resource) override(eng engineAPI) error {
	st := eng.Status()
	if st.PeerRole == "Primary" {
		return &adm.Error{
			Exit: adm.StateExit(-1), Number: -1, Text: r.name + ": State change failed: (-1) Multiple primaries not allowed by config",
			Advice: stateAdvice(-1, r.name),
		}
	}
	promised, alone := uint64(0), !isUp(st)
	if st.Term != nil {
		promised = st.Term.Promised
	}
	spec := r.runningSpec()
	term := arbiter.OverrideTerm(promised, spec.Local.Name, []string{spec.Local.Name, spec.Peer.Name})
	err := eng.ForceTerm(term, alone)
	ev := r.log.Warn().Bool("audit", true).Uint64("term", term).Bool("sole", alone).Str("connection", st.Connection)
	for _, v := range st.Volumes {
		ev = ev.Str(fmt.Sprintf("disk-%d", v.Volume), v.Disk)
	}
	ev.AnErr("refused", err).Msg("primary --force of a managed resource, confirmed by name: " + r.unknown(eng))
	return err
}

// resumeIO is resume-io. Where polluxha decides, and I/O is frozen for a term, the
// operator does away with that decision and has to name the resource.
func (r *resource) resumeIO(eng engineAPI, args adm.Args) error {
	st := eng.Status()
	if r.runningSpec().Manager != conf.ManagerInternal || st.Term == nil || st.Term.Frozen == "" {
		return eng.ResumeIO()
	}
	if args.Confirm != r.name {
		return &adm.Error{
			Exit: adm.ExitRefused, Number: 162,
			Text: fmt.Sprintf("%s: Failure: (162) Invalid configuration request: polluxha decides when I/O goes on, and it is frozen: %s; "+
				"if the other node writes as well, what one of the two has written since is lost", r.name, st.Term.Frozen),
			Advice: fmt.Sprintf("make sure that the other machine is off; then: polluxadm resume-io --confirm=%s %s", r.name, r.name),
		}
	}
	err := eng.ResumeIO()
	r.log.Warn().Bool("audit", true).Uint64("term", st.Term.Term).Str("frozen", st.Term.Frozen).AnErr("refused", err).
		Msg("resume-io of a managed resource, confirmed by name")
	return err
}

// freeze is freeze and thaw. It does not take r.admin: the manager must not wait
// for another's command.
func (r *resource) freeze(cmd adm.Command) error {
	eng := r.engine()
	if eng == nil {
		return r.notUp()
	}
	do := eng.Thaw
	if cmd == adm.CmdFreeze {
		do = eng.Freeze
	}
	err := do()
	r.log.Info().Str("cmd", string(cmd)).AnErr("refused", err).Msg("command")
	r.d.hub.changed(r.name)
	return err
}

// failsafe is failsafe and failsafe-over; as freeze it waits for no other command.
func (r *resource) failsafe(on bool) error {
	eng := r.engine()
	if eng == nil {
		return r.notUp()
	}
	err := eng.Failsafe(on)
	r.log.Info().Bool("failsafe", on).AnErr("refused", err).Msg("command")
	r.d.hub.changed(r.name)
	return err
}

// lease tells one resource, or all that polluxha manages, how long its lease lasts.
// It comes every few seconds: nobody is told of it, and nothing is logged.
func (d *Daemon) lease(req adm.Request) error {
	if req.Resource != "" {
		r := d.resource(req.Resource)
		if r == nil {
			return d.unknownResource(req.Resource)
		}
		eng := r.engine()
		if eng == nil {
			return r.notUp()
		}
		return eng.Lease(req.Args.LeaseMS)
	}
	var errs []error
	for _, r := range d.sorted() {
		if eng := r.engine(); eng != nil && r.runningSpec().Manager == conf.ManagerInternal {
			errs = append(errs, eng.Lease(req.Args.LeaseMS))
		}
	}
	return errors.Join(errs...)
}
