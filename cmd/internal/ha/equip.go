package ha

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor"
	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/hypervisor/hook"
	"github.com/pollux-project/pollux/hypervisor/monitor"
	"github.com/pollux-project/pollux/hypervisor/qemu"
	"github.com/pollux-project/pollux/hypervisor/units"
	"github.com/pollux-project/pollux/hypervisor/vip"
	"github.com/pollux-project/pollux/protocol/adm"
)

// equipment is what this machine runs services with.
type equipment struct {
	settings    *conf.Daemon
	storage     storage
	hypervisors map[string]hypervisor.Hypervisor
	vips        *vip.Manager
	runner      *hook.Runner
}

// newEquipment makes the adapters. ran hears of hooks that have ended, complain of
// what goes wrong in the background.
func newEquipment(settings *conf.Daemon, s storage, ran func(hook.Result), complain func(string)) (*equipment, error) {
	run := filepath.Dir(settings.ControlSocket) // a reboot clears it, as it ends all VMs
	e := &equipment{settings: settings, storage: s, runner: hook.New(ran)}
	q, err := qemu.New(qemu.Config{RunDir: filepath.Join(run, "vm"), Closed: e.closed})
	if err != nil {
		return nil, err
	}
	u, err := units.New(units.Config{RunDir: filepath.Join(run, "units"), Closed: e.closed})
	if err != nil {
		return nil, err
	}
	e.hypervisors = map[string]hypervisor.Hypervisor{"qemu": q, conf.HypervisorSystemd: u}
	e.vips, err = vip.New(vip.Config{Dir: filepath.Join(run, "vip"), Log: complain})
	return e, err
}

// hookEnd is how long hooks may go on when polluxha stops. Our own.
const hookEnd = 2 * time.Second

func (e *equipment) close() {
	ctx, cancel := context.WithTimeout(context.Background(), hookEnd)
	defer cancel()
	e.runner.Close(ctx)
	e.vips.Close()
}

// work is the workload of a VM; nil if this machine has no adapter for it.
func (e *equipment) work(v *conf.VM) workload {
	hv := e.hypervisors[v.Hypervisor]
	if hv == nil {
		return nil
	}
	if u, ok := hv.(*units.Units); ok {
		hv = u.For(unitsOf(v))
	}
	w := &guestWork{vm: v, hv: hv, ips: vips{e.vips}, nbd: e.settings.NBD.Socket, device: e.device}
	if v.Monitor.Kind != string(monitor.Process) {
		p, err := monitor.NewProbe(monitorSpec(v), func(ctx context.Context) error { return hv.AskAgent(ctx, v.Name) })
		if err != nil {
			return nil // conf has checked it
		}
		w.asks = p.Ask
	}
	return w
}

// unitsOf is what of a VM's units is known without polluxd.
func unitsOf(v *conf.VM) hypervisor.Guest {
	g := hypervisor.Guest{Name: v.Name, Units: v.Units}
	for _, m := range v.Mounts {
		g.Mounts = append(g.Mounts, hypervisor.Mount{Dir: m.Path, Type: m.Type, Options: m.Options})
	}
	return g
}

func monitorSpec(v *conf.VM) monitor.Spec {
	m := v.Monitor
	return monitor.Spec{
		Kind: monitor.Kind(m.Kind), Interval: m.Interval.Duration, Timeout: m.Timeout.Duration, Failures: m.Failures,
		Address: m.Address, Request: m.Request, Receive: m.Receive,
	}
}

// device is the block device that polluxd has made of a volume, named as in the
// VM's file.
func (e *equipment) device(ctx context.Context, volume string) (string, error) {
	name, number, _ := strings.Cut(volume, "/")
	n, err := strconv.Atoi(orElse(number, "0"))
	if err != nil {
		return "", fmt.Errorf("volume %q: expected RESOURCE or RESOURCE/VOLUME", volume)
	}
	r, err := e.status(ctx, name)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(r.Volumes, func(v adm.Volume) bool { return v.Volume == n })
	switch {
	case i < 0:
		return "", fmt.Errorf("resource %s has no volume %d", name, n)
	case r.Volumes[i].BlockDevice == "":
		return "", fmt.Errorf("volume %s has no block device to mount: %s", volume, orElse(r.Volumes[i].AttachProblem, "set attach-device in pollux.toml"))
	}
	return r.Volumes[i].BlockDevice, nil
}

func (e *equipment) status(ctx context.Context, resource string) (adm.Resource, error) {
	var st adm.Status
	if err := e.storage.do(ctx, adm.Request{Cmd: adm.CmdStatus, Resource: resource}, &st); err != nil {
		return adm.Resource{}, err
	}
	for _, r := range st.Resources {
		if r.Name == resource {
			return r, nil
		}
	}
	return adm.Resource{}, fmt.Errorf("polluxd does not know resource %s", resource)
}

// closeLimit bounds the wait for polluxd to end the exports of a VM that is gone.
// It waits 2 s itself for requests that are frozen. Our own.
const closeLimit = 3 * time.Second

// closed ends the exports of a VM whose process is gone, so that nothing of it is
// on its way to the disk any more. Requests that are frozen stay with polluxd: their
// incarnation is over all the same. A polluxd that does not run has no client.
func (e *equipment) closed(ctx context.Context, disks []hypervisor.Disk) error {
	ctx, cancel := context.WithTimeout(ctx, closeLimit)
	defer cancel()
	seen := map[string]bool{}
	var errs []error
	for _, d := range disks {
		volume, incarnation, ok := strings.Cut(d.Export, "@")
		name, _, _ := strings.Cut(volume, "/")
		if !ok || seen[name] {
			continue // a local disk, or nobody's incarnation
		}
		seen[name] = true
		err := e.storage.do(ctx, adm.Request{Cmd: adm.CmdUnexport, Resource: name, Args: adm.Args{Incarnation: incarnation}}, nil)
		var refused *adm.Error
		if err != nil && !errors.As(err, &refused) && !notThere(err) {
			errs = append(errs, fmt.Errorf("polluxd has not ended the exports of %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// hooks runs the programs of these tables for what has happened.
func (e *equipment) hooks(key string, name ha.HookName, tables []conf.Hooks, in hook.Input) {
	for _, t := range tables {
		cmd := map[ha.HookName]conf.HookCommand{
			ha.OnPromote: t.OnPromote, ha.OnDemote: t.OnDemote, ha.OnLeader: t.OnLeader,
			ha.OnFollower: t.OnFollower, ha.OnNodeLost: t.OnNodeLost, ha.OnUnavailable: t.OnUnavailable,
		}[name]
		e.runner.Start(key, hook.Hook{Command: cmd, Timeout: t.Timeout.Duration}, in)
	}
}

// kill ends all VMs of this machine, for a drill.
func (e *equipment) kill(ctx context.Context, vms []*conf.VM) error {
	var wg sync.WaitGroup
	errs := make([]error, len(vms))
	for i, v := range vms {
		w := e.work(v)
		if w == nil {
			continue
		}
		wg.Go(func() { errs[i] = errors.Join(w.kill(ctx), w.removeIPs(ctx)) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// vips is package vip as addresses.
type vips struct{ *vip.Manager }

func (v vips) take(ctx context.Context, a floating) error {
	return v.TakeOver(ctx, vip.Address{Prefix: a.prefix, Interface: a.iface})
}

func (v vips) free(ctx context.Context, a floating) error {
	return v.Free(ctx, vip.Address{Prefix: a.prefix, Interface: a.iface})
}

func (v vips) remove(ctx context.Context, a netip.Addr) error { return v.Remove(ctx, a) }

func (v vips) held(ctx context.Context) ([]netip.Addr, error) {
	list, err := v.Held(ctx)
	var out []netip.Addr
	for _, a := range list {
		out = append(out, a.Prefix.Addr())
	}
	return out, err
}
