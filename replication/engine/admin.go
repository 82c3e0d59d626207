package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// Request error numbers of DRBD (drbd-cli, section 2).
const (
	codeOpenDisk        = 104
	codeOpenMeta        = 105
	codeTooSmall        = 111
	codeClaimed         = 114
	codeMetaIO          = 118
	codeNoMeta          = 119
	codeAttached        = 124
	codeMinorUnknown    = 127
	codeUnknownResource = 158
)

// commandTime bounds a command that the peer or the disk holds up.
const commandTime = 40 * time.Second

// An AdminError is a refusal with a DRBD request error number.
type AdminError struct {
	Code int
	Text string
}

func (e *AdminError) Error() string { return e.Text }

func (e *Engine) refuse(code int, format string, args ...any) error {
	return &AdminError{Code: code, Text: fmt.Sprintf(format, args...)}
}

// do runs a command with a time limit.
func (e *Engine) do(c replication.Command) error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	return e.command(ctx, c)
}

// Connect starts to look for the peer. A refused one leaves the options of the
// next connection as they were.
func (e *Engine) Connect(opts ConnectOptions) error {
	return e.do(replication.Command{
		Kind: replication.CmdConnect, Force: opts.DiscardMyData,
		Tag: &grantedTag{granted: func() { e.connOpts, e.violation = opts, violation{} }},
	})
}

// Disconnect ends the connection, gracefully unless force.
func (e *Engine) Disconnect(force bool) error {
	return e.do(replication.Command{Kind: replication.CmdDisconnect, Force: force})
}

// Primary promotes this node; force does so without UpToDate data. The role is
// on disk when it returns.
func (e *Engine) Primary(force bool) error {
	if err := e.do(replication.Command{Kind: replication.CmdPrimary, Force: force}); err != nil {
		return err
	}
	return e.resume.setPrimary(e, true)
}

// Secondary demotes this node; it is refused while a client has a volume open.
func (e *Engine) Secondary() error {
	if err := e.do(replication.Command{Kind: replication.CmdSecondary}); err != nil {
		return err
	}
	return e.resume.setPrimary(e, false)
}

// Invalidate throws this node's copy of a volume away: it is synced from the peer.
func (e *Engine) Invalidate(vol int) error {
	return e.do(replication.Command{Kind: replication.CmdInvalidate, Volume: uint16(vol)})
}

// InvalidateRemote throws the peer's copy away.
func (e *Engine) InvalidateRemote(vol int) error {
	return e.do(replication.Command{Kind: replication.CmdInvalidateRemote, Volume: uint16(vol)})
}

// Outdate marks this node's data as stale.
func (e *Engine) Outdate() error {
	return e.do(replication.Command{Kind: replication.CmdOutdate})
}

// ResumeIO lets I/O go on that is frozen because the peer was lost. The
// operator vouches that the peer is down or fenced.
func (e *Engine) ResumeIO() error {
	return e.do(replication.Command{Kind: replication.CmdResumeIO})
}

// SuspendIO has all I/O of clients wait until ResumeIO; what is under way ends,
// but is not answered.
func (e *Engine) SuspendIO() error {
	return e.do(replication.Command{Kind: replication.CmdSuspendIO})
}

// Verify compares both copies of a volume from start up to stop, in sectors; a
// stop of 0 is the end. It returns when the comparison has begun.
func (e *Engine) Verify(vol int, start, stop uint64) error {
	return e.do(replication.Command{
		Kind: replication.CmdVerify, Volume: uint16(vol), StartSector: drbd.Sector(start), StopSector: drbd.Sector(stop),
	})
}

// PauseSync stops a volume's resync, running or future, until ResumeSync.
func (e *Engine) PauseSync(vol int) error {
	return e.do(replication.Command{Kind: replication.CmdPauseSync, Volume: uint16(vol)})
}

// SyncAfter pauses a volume's resync because another volume's is to go first
// (resync-after), or lets it go on.
func (e *Engine) SyncAfter(vol int, waits bool) error {
	return e.do(replication.Command{Kind: replication.CmdSyncAfter, Volume: uint16(vol), Waits: waits})
}

// ResumeSync ends this node's pause of a volume's resync.
func (e *Engine) ResumeSync(vol int) error {
	return e.do(replication.Command{Kind: replication.CmdResumeSync, Volume: uint16(vol)})
}

// Resize has a volume use what its backing device has grown by; size, in
// sectors, is the most that it shall have, 0 is all. It returns when the new
// size is in force here.
func (e *Engine) Resize(vol int, size uint64, assumeClean, assumePeerHasSpace bool) error {
	return e.do(replication.Command{
		Kind: replication.CmdResize, Volume: uint16(vol), SizeSectors: size, AssumeClean: assumeClean, Force: assumePeerHasSpace,
	})
}

// NewCurrentUUID begins a new data generation on a volume. With clearBitmap
// both copies count as equal from now on.
func (e *Engine) NewCurrentUUID(vol int, clearBitmap bool) error {
	return e.do(replication.Command{Kind: replication.CmdNewCurrentUUID, Volume: uint16(vol), AssumeClean: clearBitmap})
}

// Open counts a client of volume v in; it is refused on a Secondary, with a
// text for the client's user. release counts it out.
func (v *Volume) Open(client string) (release func(), err error) {
	e := v.e
	if text := e.resume.frozen(e); text != "" {
		return nil, fmt.Errorf("%s: %s", e.cfg.Resource, text)
	}
	if err := e.do(replication.Command{Kind: replication.CmdOpen, Volume: uint16(v.cfg.Number)}); err != nil {
		return nil, err
	}
	e.log.Debug().Int("vol", v.cfg.Number).Str("client", client).Msg("opened")
	return func() {
		e.do(replication.Command{Kind: replication.CmdClose, Volume: uint16(v.cfg.Number)}) //nolint:errcheck // counting out is not refused
	}, nil
}

// Reconfigure takes over options that can change on the fly: on the live
// connection, which hears of them. Other addresses, and TLS where there was none
// or none where there was, cost the connection. What
// cannot change (disks, the set of volumes) is refused: it needs down and up.
func (e *Engine) Reconfigure(cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if len(cfg.Volumes) != len(e.cfg.Volumes) {
		return fmt.Errorf("%s: volumes cannot be added or removed while it is up: run `polluxadm down %s`, then `up`", e.cfg.Resource, e.cfg.Resource)
	}
	for i, v := range cfg.Volumes {
		have := e.cfg.Volumes[i]
		if v.Number != have.Number || v.Disk != have.Disk || v.MetaDisk != have.MetaDisk || v.MetaIndex != have.MetaIndex || v.Direct != have.Direct {
			return fmt.Errorf("%s/%d: disk and meta-disk cannot change while it is up: run `polluxadm down %s`, then `up`", cfg.Resource, v.Number, cfg.Resource)
		}
	}
	if cfg.Local != e.cfg.Local || cfg.Peer != e.cfg.Peer || (cfg.TLS != nil) != (e.tls.Load() != nil) {
		if err := e.readdress(cfg); err != nil {
			return err
		}
	}
	e.mu.Lock() // before the core asks for one that is new
	e.cfg.Handlers, e.cfg.HandlerEnv = cfg.Handlers, cfg.HandlerEnv
	e.mu.Unlock()
	if err := e.do(replication.Command{Kind: replication.CmdSetHandlers, Handlers: cfg.awaited()}); err != nil {
		return err
	}
	for _, v := range cfg.Volumes {
		c := replication.Command{Kind: replication.CmdSetOptions, Volume: uint16(v.Number), Net: cfg.Net, Disk: v.Options}
		if err := e.do(c); err != nil {
			return err
		}
	}
	for i, v := range cfg.Volumes {
		e.vols[i].mayHang.Store(v.Options.DiskTimeoutMS > 0)
		e.vols[i].mdFlushes.Store(v.Options.MDFlushes)
	}
	e.mu.Lock()
	e.net.Store(&cfg.Net)
	e.tls.Store(cfg.TLS) // other files, for the next connection
	e.cfg.Net, e.cfg.Volumes = cfg.Net, cfg.Volumes
	e.mu.Unlock()
	return nil
}

// awaited are the handlers that the core waits for.
func (c *Config) awaited() replication.Handlers {
	return replication.Handlers{
		HasFenceHandler:       c.Handlers["fence-peer"] != "",
		HasBeforeResyncSource: c.Handlers["before-resync-source"] != "",
		HasBeforeResyncTarget: c.Handlers["before-resync-target"] != "",
	}
}

// readdress disconnects and takes over the addresses and the TLS of cfg; the
// caller of Reconfigure connects again, as drbdadm adjust does.
func (e *Engine) readdress(cfg Config) error {
	if err := e.Disconnect(false); err != nil {
		return err
	}
	e.connWG.Wait() // nobody uses the old ones any more
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cfg.Local, e.cfg.Peer = cfg.Local, cfg.Peer; (cfg.TLS != nil) != (e.tls.Load() != nil) {
		e.log.Warn().Bool("tls", cfg.TLS != nil).Msg("net option tls has changed: the connection is made anew, and not before the peer's configuration says the same")
	}
	e.tls.Store(cfg.TLS)
	return nil
}

// Down gives everything up, refused while a client has a volume open: demote,
// disconnect, detach, close.
func (e *Engine) Down() error {
	if err := e.Secondary(); err != nil {
		return err
	}
	return e.stop()
}

// Close is the clean stop of the daemon: like Down, but a Primary that is in
// use, or whose peer does not answer, is stopped too. What it was is kept, so
// that a daemon that starts again in the same boot can take its role up.
func (e *Engine) Close() error {
	e.mu.Lock()
	wasPrimary := e.core.Role() == drbd.Primary
	e.mu.Unlock()
	err := e.do(replication.Command{Kind: replication.CmdSecondary})
	if err == nil && wasPrimary {
		err = e.resume.store(e, true)
	}
	if stopErr := e.stop(); err == nil {
		err = stopErr
	}
	return err
}

// stop disconnects, detaches and ends all goroutines.
func (e *Engine) stop() error {
	err := e.Disconnect(true)
	for _, v := range e.vols {
		if d := e.do(replication.Command{Kind: replication.CmdDetach, Volume: uint16(v.cfg.Number), Force: true}); err == nil {
			err = d
		}
	}
	e.halt()
	return err
}

// halt ends all goroutines and closes what is open, as it is; nothing more is
// written. It may be called twice.
func (e *Engine) halt() {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return
	}
	e.closed = true
	e.stopConnecting()
	l := e.link
	e.link = nil
	e.timer.Stop()
	e.room.Broadcast()
	b := e.newBatch()
	if l != nil {
		l.retire(b)
	}
	e.mu.Unlock()
	e.finish(b)
	e.freeBatch(b)
	close(e.quit)
	for _, v := range e.vols {
		v.ioq.close()
	}
	e.connWG.Wait()
	for _, v := range e.vols {
		v.closeDisk()
	}
	e.background.Wait()
}
