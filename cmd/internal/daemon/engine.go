package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/blockdev/export"
	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/internal/perf"
	"github.com/pollux-project/pollux/protocol/adm"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/engine"
)

// detachTimeout bounds a detach that waits for the disk's last requests; a
// forced one doesn't wait.
const detachTimeout = 40 * time.Second

// realEngine makes the engine of a resource.
func (d *Daemon) realEngine(spec resourceSpec, log zerolog.Logger) (engineAPI, error) {
	cfg, err := engineConfig(spec)
	if err != nil {
		return nil, err
	}
	s := d.currentSettings()
	cfg.StateDir, cfg.BootID, cfg.Log, cfg.PerfEvery = s.StateDir, d.bootID, log, s.Perf.Sample
	e, err := engine.New(cfg)
	if err != nil {
		return nil, err
	}
	return &runningEngine{e: e, d: d, name: spec.Name}, nil
}

// engineConfig translates a resource's configuration.
func engineConfig(spec resourceSpec) (engine.Config, error) {
	net, err := netOptions(spec.Net)
	if err != nil {
		return engine.Config{}, err
	}
	cfg := engine.Config{
		Resource: spec.Name, Node: spec.Node, PeerName: spec.Peer.Name, Local: spec.Local.Addr, Peer: spec.Peer.Addr,
		Net: net, NoDataSuspend: spec.Options.OnNoDataAccessible == "suspend-io",
		Handlers: spec.Handlers, HandlerEnv: spec.HandlerEnv(),
	}
	if spec.Net.TLS {
		cfg.TLS = &engine.TLS{
			Certificate: spec.TLS.Certificate, Key: spec.TLS.Key, CA: spec.TLS.CA,
			Names: spec.Local.CertNames, PeerNames: spec.Peer.CertNames,
		}
	}
	cfg.Net.NeedTerms = spec.Manager != ""
	cfg.Net.MaxLossBytes, cfg.Net.MaxLossMS = spec.MaxLossBytes, int64(spec.MaxLossSeconds)*1000
	for _, v := range spec.Volumes {
		disk, err := diskOptions(v.Options)
		if err != nil {
			return engine.Config{}, err
		}
		cfg.Volumes = append(cfg.Volumes, engine.VolumeConfig{
			Number: v.Number, Minor: v.Minor, Device: v.Device, Disk: v.Disk, MetaDisk: v.MetaDisk, MetaIndex: v.MetaIndex,
			Direct: isDirect(spec.IO, v.Disk), Options: disk,
		})
	}
	return cfg, nil
}

// isDirect decides about O_DIRECT: as configured, else by the kind of disk.
func isDirect(io, disk string) bool {
	if io != "" {
		return io == "direct"
	}
	fi, err := os.Stat(disk)
	return err == nil && fi.Mode()&os.ModeDevice != 0 // a disk that isn't there fails at attach, with a better text
}

// Numbers of the policies that the configuration names.
var (
	splitBrainPolicies = map[string]uint32{
		"disconnect": replication.SBDisconnect, "discard-younger-primary": replication.SBDiscardYoungerPrimary,
		"discard-older-primary": replication.SBDiscardOlderPrimary, "discard-zero-changes": replication.SBDiscardZeroChanges,
		"discard-least-changes": replication.SBDiscardLeastChanges, "discard-local": replication.SBDiscardLocal,
		"discard-remote": replication.SBDiscardRemote, "consensus": replication.SBConsensus,
		"discard-secondary": replication.SBDiscardSecondary, "call-pri-lost-after-sb": replication.SBCallPriLost,
		"violently-as0p": replication.SBViolently,
	}
	roleConflictPolicies = map[string]uint32{
		"disconnect": replication.SBDisconnect, "call-pri-lost": replication.SBCallPriLost, "violently": replication.SBViolently,
	}
	fencingPolicies = map[string]replication.Fencing{
		"dont-care": replication.FencingDontCare, "resource-only": replication.FencingResourceOnly,
		"resource-and-stonith": replication.FencingResourceAndStonith,
	}
	congestionPolicies = map[string]replication.OnCongestion{
		"block": replication.CongestionBlock, "pull-ahead": replication.CongestionPullAhead, "disconnect": replication.CongestionDisconnect,
	}
	readBalancings = map[string]replication.ReadBalancing{
		"prefer-local": replication.PreferLocal, "prefer-remote": replication.PreferRemote, "round-robin": replication.RoundRobin,
		"least-pending": replication.LeastPending, "when-congested-remote": replication.WhenCongestedRemote,
		"32K-striping": replication.Striping32K, "64K-striping": replication.Striping64K, "128K-striping": replication.Striping128K,
		"256K-striping": replication.Striping256K, "512K-striping": replication.Striping512K, "1M-striping": replication.Striping1M,
	}
	ioErrorPolicies = map[string]replication.OnIOError{
		"detach": replication.DetachOnError, "pass_on": replication.PassOnError, "call-local-io-error": replication.CallLocalIOError,
	}
)

// choose looks a configured word up; one that Pollux doesn't have is refused
// rather than taken for something else.
func choose[T any](option, word string, from map[string]T) (T, error) {
	v, ok := from[word]
	if !ok {
		return v, fmt.Errorf("option %s: %q is not supported", option, word)
	}
	return v, nil
}

func netOptions(n conf.NetOptions) (o replication.NetOptions, err error) {
	o = replication.NetOptions{
		Protocol: n.Protocol[0], TimeoutMS: n.Timeout.Milliseconds(), PingIntMS: n.PingInterval.Milliseconds(),
		PingTimeoutMS: n.PingTimeout.Milliseconds(), ConnectIntMS: n.ConnectInterval.Milliseconds(),
		SockCheckMS: n.SocketCheckTimeout.Milliseconds(), KoCount: n.KoCount, MaxEpochSize: n.MaxEpochSize, MaxBuffers: n.MaxBuffers,
		SndbufBytes: n.SndbufBytes, RcvbufBytes: n.RcvbufBytes, AllowTwoPrimaries: n.AllowTwoPrimaries, AlwaysASBP: n.AlwaysASBP,
		CramHMACAlg: n.CramHMACAlg, SharedSecret: n.SharedSecret, DataIntegrityAlg: n.DataIntegrityAlg, VerifyAlg: n.VerifyAlg,
		CsumsAlg: n.CsumsAlg, UseRLE: n.UseRLE, CsumsAfterCrashOnly: n.CsumsAfterCrashOnly,
		CongestionFill: n.CongestionFill, CongestionExtents: n.CongestionExtents,
	}
	if o.OnCongestion, err = choose("on-congestion", n.OnCongestion, congestionPolicies); err != nil {
		return o, err
	}
	for _, p := range []struct {
		option, word string
		from         map[string]uint32
		to           *uint32
	}{
		{"after-sb-0pri", n.AfterSB0Pri, splitBrainPolicies, &o.AfterSB0P},
		{"after-sb-1pri", n.AfterSB1Pri, splitBrainPolicies, &o.AfterSB1P},
		{"after-sb-2pri", n.AfterSB2Pri, splitBrainPolicies, &o.AfterSB2P},
		{"rr-conflict", n.RRConflict, roleConflictPolicies, &o.RRConflict},
	} {
		if *p.to, err = choose(p.option, p.word, p.from); err != nil {
			return o, err
		}
	}
	return o, nil
}

func diskOptions(d conf.DiskOptions) (o replication.DiskOptions, err error) {
	const decisecond = 100 * time.Millisecond
	o = replication.DiskOptions{
		SizeSectors: d.Size, DiskFlushes: d.DiskFlushes, MDFlushes: d.MDFlushes, ResyncRateKiB: uint32(d.ResyncRate),
		CPlanAhead: uint32(d.CPlanAhead / decisecond), CDelayTarget: uint32(d.CDelayTarget / decisecond), CFillTarget: uint32(d.CFillTarget),
		CMaxRateKiB: uint32(d.CMaxRate), CMinRateKiB: uint32(d.CMinRate), ALExtents: d.ALExtents, ALUpdates: d.ALUpdates,
		DiskTimeoutMS: d.DiskTimeout.Milliseconds(), RSDiscardGranularity: uint32(d.RSDiscardGranularity),
	}
	if o.ReadBalancing, err = choose("read-balancing", d.ReadBalancing, readBalancings); err != nil {
		return o, err
	}
	if o.Fencing, err = choose("fencing", d.Fencing, fencingPolicies); err != nil {
		return o, err
	}
	o.OnIOError, err = choose("on-io-error", d.OnIOError, ioErrorPolicies)
	return o, err
}

// A runningEngine is an engine.Engine as the daemon uses it.
type runningEngine struct {
	e    *engine.Engine
	d    *Daemon
	name string
}

func (r *runningEngine) Attach(vol int) error { return r.refusal(r.e.Attach(vol)) }

func (r *runningEngine) Detach(vol int, force bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), detachTimeout)
	defer cancel()
	return r.refusal(r.e.Detach(ctx, vol, force))
}

func (r *runningEngine) Connect(discardMyData, tentative bool) error {
	return r.refusal(r.e.Connect(engine.ConnectOptions{DiscardMyData: discardMyData, Tentative: tentative}))
}

func (r *runningEngine) Disconnect(force bool) error { return r.refusal(r.e.Disconnect(force)) }
func (r *runningEngine) Primary(force bool) error    { return r.refusal(r.e.Primary(force)) }
func (r *runningEngine) PromiseTerm(term uint64) error {
	return r.refusal(r.e.PromiseTerm(term))
}

func (r *runningEngine) PrimaryWithTerm(term uint64, sole bool) error {
	return r.refusal(r.e.PrimaryWithTerm(term, sole))
}

func (r *runningEngine) PrimaryByVote(force bool) error {
	return r.refusal(r.e.PrimaryByVote(force))
}

func (r *runningEngine) ForceTerm(term uint64, sole bool) error {
	return r.refusal(r.e.ForceTerm(term, sole))
}

func (r *runningEngine) Freeze() error          { return r.refusal(r.e.Freeze()) }
func (r *runningEngine) Thaw() error            { return r.refusal(r.e.Thaw()) }
func (r *runningEngine) Failsafe(on bool) error { return r.refusal(r.e.Failsafe(on)) }
func (r *runningEngine) Lease(ms uint64) error  { return r.refusal(r.e.Lease(ms)) }

func (r *runningEngine) Orphan() bool                   { return r.e.Orphan() }
func (r *runningEngine) Secondary() error               { return r.refusal(r.e.Secondary()) }
func (r *runningEngine) Invalidate(vol int) error       { return r.refusal(r.e.Invalidate(vol)) }
func (r *runningEngine) InvalidateRemote(vol int) error { return r.refusal(r.e.InvalidateRemote(vol)) }
func (r *runningEngine) Outdate() error                 { return r.refusal(r.e.Outdate()) }
func (r *runningEngine) ResumeIO() error                { return r.refusal(r.e.ResumeIO()) }
func (r *runningEngine) SuspendIO() error               { return r.refusal(r.e.SuspendIO()) }
func (r *runningEngine) PauseSync(vol int) error        { return r.refusal(r.e.PauseSync(vol)) }
func (r *runningEngine) SyncAfter(vol int, waits bool) error {
	return r.refusal(r.e.SyncAfter(vol, waits))
}
func (r *runningEngine) ResumeSync(vol int) error { return r.refusal(r.e.ResumeSync(vol)) }
func (r *runningEngine) Started()                 { r.e.Started() }
func (r *runningEngine) Down() error              { return r.refusal(r.e.Down()) }
func (r *runningEngine) Close() error             { return r.e.Close() }

func (r *runningEngine) Verify(vol int, start, stop uint64) error {
	return r.refusal(r.e.Verify(vol, start, stop))
}

func (r *runningEngine) Resize(vol int, size uint64, assumeClean, assumePeerHasSpace bool) error {
	return r.refusal(r.e.Resize(vol, size, assumeClean, assumePeerHasSpace))
}

func (r *runningEngine) NewCurrentUUID(vol int, clearBitmap bool) error {
	return r.refusal(r.e.NewCurrentUUID(vol, clearBitmap))
}

func (r *runningEngine) Reconfigure(spec resourceSpec) error {
	cfg, err := engineConfig(spec)
	if err != nil {
		return fmt.Errorf("%s: %w", r.name, err)
	}
	cfg.StateDir, cfg.BootID, cfg.Log = r.d.currentSettings().StateDir, r.d.bootID, r.d.log
	return r.refusal(r.e.Reconfigure(cfg))
}

func (r *runningEngine) Subscribe(changed func()) (cancel func()) {
	return r.e.Subscribe(func(engine.Event) { changed() })
}

func (r *runningEngine) Perf(vol int) *perf.Volume { return r.e.Volume(vol).Perf() }

func (r *runningEngine) Backend(vol int) export.Backend {
	return &volumeBackend{v: r.e.Volume(vol), name: fmt.Sprintf("%s/%d", r.name, vol)}
}

// A volumeBackend is an engine's volume as the NBD server wants it.
type volumeBackend struct {
	v    *engine.Volume
	name string
}

func (b *volumeBackend) Info() export.Info {
	return export.Info{Size: b.v.Size(), BlockSize: b.v.BlockSize(), Description: "Pollux volume " + b.name}
}

func (b *volumeBackend) Open(c export.ClientInfo) (release func(), err error) {
	return b.v.Open(c.Remote)
}

// Perf implements export.Measured.
func (b *volumeBackend) Perf() *perf.Volume { return b.v.Perf() }

func (b *volumeBackend) Submit(batch []*blockdev.Request) { b.v.Submit(batch) }

// refusal gives the engine's errors the form and exit status of drbdsetup.
func (r *runningEngine) refusal(err error) error {
	var state *replication.StateError
	var refused *engine.AdminError
	var request *replication.RequestError
	if errors.As(err, &request) {
		err = &engine.AdminError{Code: request.Code, Text: request.Text}
	}
	switch {
	case err == nil:
		return nil
	case errors.As(err, &state):
		n := int(state.Code)
		return &adm.Error{Exit: adm.StateExit(n), Number: n, Text: err.Error(), Advice: stateAdvice(n, r.name)}
	case errors.As(err, &refused):
		text := refused.Text
		if !strings.Contains(text, "Failure: (") {
			text = fmt.Sprintf("%s: Failure: (%d) %s", r.name, refused.Code, strings.TrimPrefix(text, r.name+": "))
		}
		return &adm.Error{Exit: adm.ExitRefused, Number: refused.Code, Text: text, Advice: requestAdvice(refused.Code, r.name)}
	case errors.Is(err, context.DeadlineExceeded):
		return &adm.Error{
			Exit: adm.ExitEnvironment, Text: fmt.Sprintf("%s: the command did not end in time: the disk or the peer does not answer", r.name),
			Advice: fmt.Sprintf("it may still take effect: polluxadm status %s", r.name),
		}
	}
	if !strings.HasPrefix(err.Error(), r.name) {
		err = fmt.Errorf("%s: %w", r.name, err)
	}
	return &adm.Error{Exit: adm.ExitRefused, Text: err.Error()}
}

// stateAdvice is what to do about a refused state change.
func stateAdvice(number int, res string) string {
	switch number {
	case -1:
		return fmt.Sprintf("the peer is Primary: first, there: polluxadm secondary %s", res)
	case -2:
		return fmt.Sprintf("connect a peer with good data; if the data here is the one to keep: polluxadm primary --force %s", res)
	case -4, -11:
		return fmt.Sprintf("polluxadm attach %s", res)
	case -5:
		return fmt.Sprintf("on the peer: polluxadm attach %s", res)
	case -6:
		return fmt.Sprintf("first: polluxadm disconnect %s", res)
	case -7:
		return "the fence-peer handler could not make sure that the peer is out of the way; its result is in polluxd's log"
	case -8:
		return fmt.Sprintf("polluxadm wait-sync %s", res)
	case -10:
		return "the reason is in the log of the peer's polluxd"
	case -12:
		return fmt.Sprintf("end what uses it (polluxadm vm stop, umount, nbd-client -d); polluxadm status %s shows how many have it open", res)
	case -13, -15:
		return fmt.Sprintf("polluxadm connect %s", res)
	case -18, -19:
		return "repeat the command"
	}
	return ""
}

// requestAdvice is what to do about a refused request.
func requestAdvice(number int, res string) string {
	switch number {
	case 104, 105:
		return fmt.Sprintf("check disk and meta-disk of %s in its configuration file, then: polluxadm up %s", res, res)
	case 119:
		return fmt.Sprintf("if the disk is new: polluxadm create-md %s, then: polluxadm up %s", res, res)
	case 158:
		return fmt.Sprintf("polluxadm up %s", res)
	}
	return ""
}
