package daemon

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pollux-project/pollux/cmd/internal/service"
	"github.com/pollux-project/pollux/protocol/adm"
)

// execute runs one request of the control socket and returns what goes into
// Response.Data. Events is not among them: it is a conversation.
func (d *Daemon) execute(req adm.Request) (any, error) {
	switch req.Cmd {
	case adm.CmdHello:
		return d.hello(), nil
	case adm.CmdStatus:
		return d.status(req.Resource)
	case adm.CmdReload:
		return nil, d.reload()
	case adm.CmdForget:
		return nil, d.forget(req.Resource)
	case adm.CmdLease:
		return nil, d.lease(req)
	case adm.CmdAdjust, adm.CmdUp:
		// The files may have changed: the resource is read anew, alone.
		if err := d.reloadResource(req.Resource); err != nil {
			return nil, err
		}
	}
	r := d.resource(req.Resource)
	if r == nil {
		if req.Cmd == adm.CmdDown { // not configured is as down as it gets
			return nil, nil
		}
		return nil, d.unknownResource(req.Resource)
	}
	switch req.Cmd { // these wait for no other command
	case adm.CmdPerf:
		return r.perf(req)
	case adm.CmdFreeze, adm.CmdThaw:
		return nil, r.freeze(req.Cmd)
	case adm.CmdFailsafe, adm.CmdFailsafeOver:
		return nil, r.failsafe(req.Cmd == adm.CmdFailsafe)
	}
	r.admin.Lock()
	defer r.admin.Unlock()
	data, err := r.answer(req)
	d.hub.changed(r.name)
	ev := d.log.Info()
	if err != nil {
		ev = d.log.Warn().Err(err)
	}
	ev.Str("res", r.name).Str("cmd", string(req.Cmd)).Bool("force", req.Args.Force).Msg("command")
	return data, err
}

// answer is execute for those commands, too, that have more to say than no.
func (r *resource) answer(req adm.Request) (any, error) {
	if req.Cmd != adm.CmdExport {
		return nil, r.execute(req)
	}
	eng := r.engine()
	if eng == nil {
		return nil, r.notUp()
	}
	ex, err := r.exportTo(eng, req.Args.Incarnation)
	if err != nil {
		return nil, err
	}
	return ex, nil
}

// execute runs a command with r.admin held.
func (r *resource) execute(req adm.Request) error {
	switch req.Cmd {
	case adm.CmdUp:
		return r.up()
	case adm.CmdDown:
		return r.down()
	case adm.CmdAdjust:
		return r.adjustParts(req.Args.SkipDisk, req.Args.SkipNet)
	}
	eng := r.engine()
	if eng == nil {
		return r.notUp()
	}
	switch req.Cmd {
	case adm.CmdAttach, adm.CmdDetach, adm.CmdInvalidate, adm.CmdInvalidateRemote, adm.CmdVerify, adm.CmdPauseSync,
		adm.CmdResumeSync, adm.CmdResize, adm.CmdNewCurrentUUID:
		return r.eachVolume(req, eng)
	case adm.CmdConnect:
		return eng.Connect(req.Args.DiscardMyData, req.Args.Tentative)
	case adm.CmdDisconnect:
		return eng.Disconnect(req.Args.Force)
	case adm.CmdPrimary:
		if err := r.primary(eng, req.Args); err != nil {
			return err
		}
		r.syncDevices()
		return nil
	case adm.CmdUnexport:
		return r.unexport(req.Args.Incarnation)
	case adm.CmdPromiseTerm:
		return eng.PromiseTerm(req.Args.Term)
	case adm.CmdSecondary:
		return r.secondary(eng)
	case adm.CmdOutdate:
		return eng.Outdate()
	case adm.CmdResumeIO:
		return r.resumeIO(eng, req.Args)
	case adm.CmdDiskOptions, adm.CmdNetOptions:
		return r.setOptions(req, eng)
	case adm.CmdSuspendIO:
		return eng.SuspendIO()
	}
	return &adm.Error{Exit: adm.ExitEnvironment, Text: fmt.Sprintf("%s: polluxd has no command %q", r.name, req.Cmd)}
}

// secondary demotes. The block devices are made read-only first, which is
// refused while one is in use; if the demotion is refused they come back.
func (r *resource) secondary(eng engineAPI) error {
	some, err := r.releaseDevices()
	if err != nil {
		return err
	}
	if err = afterGoodbye(some, eng.Secondary); err == nil {
		err = r.unexport("") // nobody has it open
	}
	r.syncDevices()
	return err
}

// adjust makes the running resource agree with its configuration, and brings
// it up if it isn't.
func (r *resource) adjust() error { return r.adjustParts(false, false) }

// adjustParts is adjust that leaves the disks, or the connection, as they are.
func (r *resource) adjustParts(skipDisk, skipNet bool) error {
	eng := r.engine()
	if eng == nil {
		return r.up()
	}
	old, spec := r.runningSpec(), r.currentSpec()
	if why := needsRestart(old, spec); why != "" {
		return &adm.Error{
			Exit: adm.ExitRefused, Text: fmt.Sprintf("%s: %s can't be changed while the resource is up", r.name, why),
			Advice: fmt.Sprintf("polluxadm down %s, then polluxadm up %s", r.name, r.name),
		}
	}
	if skipNet {
		spec.Resource = spec.TakeNet(old.Resource)
		spec.Resource.Local, spec.Resource.Peer, spec.TLS = old.Local, old.Peer, old.TLS
	}
	if skipDisk {
		for _, v := range spec.Volumes {
			spec.Resource = spec.TakeDisk(v.Number, old.Resource)
		}
	}
	if err := eng.Reconfigure(spec); err != nil {
		return err
	}
	r.mu.Lock()
	r.running = spec
	r.mu.Unlock()
	r.d.syncOrder.check(r.d)
	return r.completeParts(skipDisk, skipNet)
}

// needsRestart names the first difference that a running engine can't take
// over: what identifies the ends of the connection and the disks.
func needsRestart(old, spec resourceSpec) string {
	switch {
	case old.Peer.Name != spec.Peer.Name:
		return "the peer"
	case len(old.Volumes) != len(spec.Volumes):
		return "the number of volumes"
	case old.IO != spec.IO:
		return "io"
	case old.Manager != spec.Manager:
		return "manager"
	}
	for i, v := range old.Volumes {
		w := spec.Volumes[i]
		if v.Number != w.Number || v.Minor != w.Minor || v.Device != w.Device || v.Disk != w.Disk || v.MetaDisk != w.MetaDisk || v.MetaIndex != w.MetaIndex {
			return fmt.Sprintf("volume %d (device, disk or meta-disk)", w.Number)
		}
	}
	return ""
}

func (r *resource) eachVolume(req adm.Request, eng engineAPI) error {
	vols, err := r.volumesOf(req)
	if err != nil {
		return err
	}
	for _, n := range vols {
		if err := r.volumeCommand(req, eng, n); err != nil {
			return err
		}
	}
	return nil
}

// volumesOf are the volumes that a request means.
func (r *resource) volumesOf(req adm.Request) ([]int, error) {
	vols := []int{}
	for _, v := range r.runningSpec().Volumes {
		if req.Volume == nil || *req.Volume == v.Number {
			vols = append(vols, v.Number)
		}
	}
	if len(vols) == 0 {
		return nil, &adm.Error{
			Exit: adm.ExitRefused, Number: 127, Text: fmt.Sprintf("%s/%d: Failure: (127) Minor not known", r.name, *req.Volume),
			Advice: fmt.Sprintf("polluxadm status %s shows its volumes", r.name),
		}
	}
	return vols, nil
}

func (r *resource) volumeCommand(req adm.Request, eng engineAPI, vol int) error {
	switch req.Cmd {
	case adm.CmdAttach:
		return eng.Attach(vol)
	case adm.CmdDetach:
		return eng.Detach(vol, req.Args.Force)
	case adm.CmdInvalidate:
		return eng.Invalidate(vol)
	case adm.CmdInvalidateRemote:
		return eng.InvalidateRemote(vol)
	case adm.CmdVerify:
		return eng.Verify(vol, req.Args.StartSector, req.Args.StopSector)
	case adm.CmdPauseSync:
		return eng.PauseSync(vol)
	case adm.CmdResumeSync:
		return eng.ResumeSync(vol)
	case adm.CmdResize:
		size := req.Args.SizeSectors
		for _, v := range r.currentSpec().Volumes {
			if size == 0 && v.Number == vol {
				size = v.Options.Size
			}
		}
		return eng.Resize(vol, size, req.Args.AssumeClean, req.Args.AssumePeerHasSpace)
	case adm.CmdNewCurrentUUID:
		return eng.NewCurrentUUID(vol, req.Args.ClearBitmap)
	}
	panic(fmt.Sprintf("daemon: no case for the volume command %q", req.Cmd))
}

func (r *resource) notUp() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := &adm.Error{
		Exit: adm.ExitRefused, Number: 158, Text: r.name + ": Failure: (158) Unknown resource",
		Advice: fmt.Sprintf("it is not up on this node: polluxadm up %s", r.name),
	}
	if r.reason != nil {
		e.Advice = fmt.Sprintf("it could not be brought up: %s; then: polluxadm up %s", oneLine(r.reason), r.name)
	}
	return e
}

func (d *Daemon) hello() adm.Hello {
	d.mu.Lock()
	defer d.mu.Unlock()
	return adm.Hello{
		Version: service.Version, Protocol: adm.Version, PID: d.pid, Node: d.settings.NodeName, BootID: d.bootID,
		ConfigFiles: slices.Clone(d.files), NBDListen: slices.Clone(d.listening),
	}
}

func (d *Daemon) status(name string) (adm.Status, error) {
	st := adm.Status{Node: d.currentSettings().NodeName, BootID: d.bootID, Resources: []adm.Resource{}}
	for _, r := range d.sorted() {
		if name == "" || r.name == name {
			st.Resources = append(st.Resources, r.status())
		}
	}
	if name != "" && len(st.Resources) == 0 {
		return st, d.unknownResource(name)
	}
	return st, nil
}

func (d *Daemon) unknownResource(name string) error {
	d.mu.Lock()
	files := strings.Join(d.files, " ")
	d.mu.Unlock()
	if files == "" {
		files = "no files at all: " + strings.Join(d.currentSettings().ResourceFiles, " ") + " match nothing"
	}
	return &adm.Error{
		Exit: adm.ExitRefused, Number: 158, Text: name + ": Failure: (158) Unknown resource",
		Advice: fmt.Sprintf("polluxd knows the resources of %s; after a change: polluxadm adjust %s", files, name),
	}
}

// asError turns any error into what the client is told.
func asError(err error) *adm.Error {
	var e *adm.Error
	if errors.As(err, &e) {
		return e
	}
	return &adm.Error{Exit: adm.ExitRefused, Text: err.Error()}
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
