package attach

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"

	"github.com/pollux-project/pollux/protocol/nbd"
)

// The kernel's generic netlink family for nbd, its commands and attributes.
// Source: Linux include/uapi/linux/nbd-netlink.h.
const (
	familyName    = "nbd"
	familyVersion = 1

	cmdConnect     = 1
	cmdDisconnect  = 2
	cmdReconfigure = 3
	cmdStatus      = 5

	attrIndex       = 1
	attrSizeBytes   = 2
	attrBlockSize   = 3
	attrTimeout     = 4 // seconds
	attrServerFlags = 5
	attrSockets     = 7
	attrDeadConn    = 8 // seconds
	attrDeviceList  = 9
	attrBackendID   = 10

	attrSockItem        = 1
	attrSockFD          = 1
	attrDeviceItem      = 1
	attrDeviceIndex     = 1
	attrDeviceConnected = 2
)

// errNoDriver says that the kernel has no nbd driver loaded.
var errNoDriver = errors.New("the kernel has no nbd driver")

// A netlinkConn is what we need of a *genetlink.Conn.
type netlinkConn interface {
	GetFamily(name string) (genetlink.Family, error)
	Execute(m genetlink.Message, family uint16, flags netlink.HeaderFlags) ([]genetlink.Message, error)
	Close() error
}

// A kernel attaches by the kernel's nbd driver.
type kernel struct {
	cfg    Config
	dial   func() (netlinkConn, error)
	sysDir string // /sys/block
	devDir string // /dev
}

func newKernel(c Config) (*kernel, error) {
	k := &kernel{
		cfg: c, sysDir: "/sys/block", devDir: "/dev",
		dial: func() (netlinkConn, error) { return genetlink.Dial(nil) },
	}
	return k, k.with(func(netlinkConn, genetlink.Family) error { return nil })
}

// with runs f with a netlink socket and the family.
func (k *kernel) with(f func(netlinkConn, genetlink.Family) error) error {
	c, err := k.dial()
	if err != nil {
		return fmt.Errorf("generic netlink: %w", err)
	}
	defer c.Close()
	fam, err := c.GetFamily(familyName)
	if errors.Is(err, fs.ErrNotExist) {
		return errNoDriver
	}
	if err != nil {
		return fmt.Errorf("generic netlink: family %s: %w", familyName, err)
	}
	return f(c, fam)
}

// requestTime is after how long the kernel takes a request for lost, drops its
// connection, and lets it wait for the next one: without it, requests that were
// under way when the daemon died never end if none comes. Longer than an engine
// takes to give up a peer by the default timeout and ko-count (6 s, 7 times).
const requestTime = 45 * time.Second

// execute sends one command and returns the answers. Commands that are answered
// must not be acknowledged too: the second message would be taken for the answer
// to the next command. Errors come either way.
func execute(c netlinkConn, fam genetlink.Family, cmd uint8, attrs []byte) ([]genetlink.Message, error) {
	flags := netlink.Request
	if cmd != cmdConnect && cmd != cmdStatus {
		flags |= netlink.Acknowledge
	}
	return c.Execute(genetlink.Message{
		Header: genetlink.Header{Command: cmd, Version: familyVersion},
		Data:   attrs,
	}, fam.ID, flags)
}

// newEncoder writes attributes as the kernel reads them: in its byte order.
func newEncoder() *netlink.AttributeEncoder {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.NativeEndian
	return ae
}

// A connectRequest is what CONNECT and RECONFIGURE say.
type connectRequest struct {
	index     int // -1: the kernel chooses
	info      nbd.ExportInfo
	socket    uint32 // descriptor
	deadTime  time.Duration
	backendID string
}

// encode makes the attributes. RECONFIGURE takes a new size, for a volume that
// has grown meanwhile, but no flags.
func (r connectRequest) encode(isNew bool) ([]byte, error) {
	ae := newEncoder()
	if r.index >= 0 {
		ae.Uint32(attrIndex, uint32(r.index))
	}
	ae.Uint64(attrSizeBytes, r.info.Size)
	// The logical block size: what the kernel may send at the least.
	ae.Uint64(attrBlockSize, uint64(max(512, r.info.Blocks.Minimum)))
	if isNew {
		ae.Uint64(attrServerFlags, uint64(r.info.Flags))
	}
	// SetPatient takes the limit away while a frozen resource does not answer.
	ae.Uint64(attrTimeout, uint64(requestTime/time.Second))
	ae.Uint64(attrDeadConn, uint64(r.deadTime/time.Second))
	ae.Nested(attrSockets, func(list *netlink.AttributeEncoder) error {
		list.Nested(attrSockItem, func(item *netlink.AttributeEncoder) error {
			item.Uint32(attrSockFD, r.socket)
			return nil
		})
		return nil
	})
	ae.String(attrBackendID, r.backendID)
	return ae.Encode()
}

// decodeIndex finds the device's number in CONNECT's answer.
func decodeIndex(msgs []genetlink.Message) (int, error) {
	for _, m := range msgs {
		ad, err := netlink.NewAttributeDecoder(m.Data)
		if err != nil {
			return 0, err
		}
		ad.ByteOrder = binary.NativeEndian
		for ad.Next() {
			if ad.Type() == attrIndex {
				n := ad.Uint32()
				return int(n), ad.Err()
			}
		}
		if err := ad.Err(); err != nil {
			return 0, err
		}
	}
	return 0, errors.New("the kernel did not say which device it chose")
}

// decodeConnected reports whether STATUS's answer says that a device is in use
// by nbd.
func decodeConnected(msgs []genetlink.Message, index int) (bool, error) {
	isConnected := false
	for _, m := range msgs {
		ad, err := netlink.NewAttributeDecoder(m.Data)
		if err != nil {
			return false, err
		}
		ad.ByteOrder = binary.NativeEndian
		for ad.Next() {
			if ad.Type() != attrDeviceList {
				continue
			}
			ad.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					if list.Type() != attrDeviceItem {
						continue
					}
					list.Nested(func(item *netlink.AttributeDecoder) error {
						n, up := -1, false
						for item.Next() {
							switch item.Type() {
							case attrDeviceIndex:
								n = int(item.Uint32())
							case attrDeviceConnected:
								up = item.Uint8() != 0
							}
						}
						isConnected = isConnected || n == index && up
						return item.Err()
					})
				}
				return list.Err()
			})
		}
		if err := ad.Err(); err != nil {
			return false, err
		}
	}
	return isConnected, nil
}

// Attach implements Attacher. A device that an earlier process has connected
// for the same volume gets the new socket, and its waiting requests go on.
func (k *kernel) Attach(ctx context.Context, v Volume) (Device, error) {
	if err := v.validate(); err != nil {
		return nil, err
	}
	d, err := k.attach(ctx, v)
	if err != nil {
		return nil, fmt.Errorf("attach %s by nbd: %w", v.Export, err)
	}
	return d, nil
}

func (k *kernel) attach(ctx context.Context, v Volume) (*nbdDevice, error) {
	var dialer net.Dialer
	nc, err := dialer.DialContext(ctx, "unix", v.Socket)
	if err != nil {
		return nil, err
	}
	defer nc.Close() // the kernel holds the socket by then
	if deadline, ok := ctx.Deadline(); ok {
		if err := nc.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	info, err := nbd.Negotiate(nc, v.Export)
	if err != nil {
		return nil, err
	}
	raw, err := nc.(*net.UnixConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	req := connectRequest{index: -1, info: info, deadTime: k.cfg.DeadTime, backendID: v.backendID()}
	index, err := 0, error(nil)
	cerr := raw.Control(func(fd uintptr) {
		req.socket = uint32(fd)
		err = k.with(func(c netlinkConn, fam genetlink.Family) error {
			var err error
			index, err = k.connect(c, fam, v, req)
			return err
		})
	})
	if err = errors.Join(cerr, err); err != nil {
		return nil, err
	}
	d := &nbdDevice{k: k, vol: v, index: index, path: filepath.Join(k.devDir, fmt.Sprintf("nbd%d", index))}
	if err := k.cfg.writeNote(v, note{Device: d.path, Index: index, Volume: v.id()}); err != nil {
		return nil, errors.Join(err, d.disconnect())
	}
	if err := k.cfg.link(v, d.path); err != nil {
		return nil, errors.Join(err, d.disconnect())
	}
	return d, nil
}

// connect gives the socket to the volume's old device if that is still
// connected, else to a new one.
func (k *kernel) connect(c netlinkConn, fam genetlink.Family, v Volume, req connectRequest) (int, error) {
	old, err := k.survivor(c, fam, v, req.backendID)
	if err != nil {
		return 0, err
	}
	if old >= 0 {
		req.index = old
		attrs, err := req.encode(false)
		if err != nil {
			return 0, err
		}
		if _, err := execute(c, fam, cmdReconfigure, attrs); err != nil {
			return 0, fmt.Errorf("give nbd%d its new socket: %w", old, err)
		}
		return old, nil
	}
	attrs, err := req.encode(true)
	if err != nil {
		return 0, err
	}
	msgs, err := execute(c, fam, cmdConnect, attrs)
	if err != nil {
		return 0, fmt.Errorf("connect: %w", err)
	}
	return decodeIndex(msgs)
}

// survivor is the number of the device that an earlier process connected for
// the volume, or -1.
func (k *kernel) survivor(c netlinkConn, fam genetlink.Family, v Volume, backendID string) (int, error) {
	n, ok, err := k.cfg.readNote(v)
	if err != nil || !ok || n.Volume != v.id() {
		return -1, err
	}
	// Others may have taken the number since. Kernels before 5.14 do not keep
	// the identifier: no file, and the note is believed.
	if b, err := os.ReadFile(filepath.Join(k.sysDir, fmt.Sprintf("nbd%d", n.Index), "backend")); err == nil &&
		strings.TrimSpace(string(b)) != backendID {
		return -1, nil
	}
	ae := newEncoder()
	ae.Uint32(attrIndex, uint32(n.Index))
	attrs, err := ae.Encode()
	if err != nil {
		return -1, err
	}
	msgs, err := execute(c, fam, cmdStatus, attrs)
	if err != nil {
		return -1, nil //nolint:nilerr // there is no such device any more
	}
	up, err := decodeConnected(msgs, n.Index)
	if err != nil || !up {
		return -1, err
	}
	return n.Index, nil
}

// backendID is how the kernel remembers whose a device is.
func (v Volume) backendID() string { return "pollux:" + v.id() }

// An nbdDevice is a volume on a kernel nbd device.
type nbdDevice struct {
	k     *kernel
	vol   Volume
	index int
	path  string
}

// Path implements Device.
func (d *nbdDevice) Path() string { return d.path }

// SetReadOnly implements Device.
func (d *nbdDevice) SetReadOnly(ctx context.Context, isReadOnly bool) error {
	return setReadOnly(ctx, d.path, isReadOnly)
}

// SetPatient implements Device.
func (d *nbdDevice) SetPatient(isPatient bool) error {
	limit := requestTime
	if isPatient {
		limit = 0
	}
	ae := newEncoder()
	ae.Uint32(attrIndex, uint32(d.index))
	ae.Uint64(attrTimeout, uint64(limit/time.Second))
	ae.String(attrBackendID, d.vol.backendID())
	attrs, err := ae.Encode()
	if err == nil {
		err = d.k.with(func(c netlinkConn, fam genetlink.Family) error {
			_, err := execute(c, fam, cmdReconfigure, attrs)
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("%s: limit the time of requests: %w", d.path, err)
	}
	return nil
}

// Detach implements Device.
func (d *nbdDevice) Detach(ctx context.Context) error {
	if err := checkIdle(ctx, d.path); err != nil {
		return err
	}
	if err := d.k.cfg.unlink(d.vol, d.path); err != nil {
		return err
	}
	if err := d.disconnect(); err != nil {
		return fmt.Errorf("detach %s: %w", d.path, err)
	}
	return d.k.cfg.removeNote(d.vol)
}

func (d *nbdDevice) disconnect() error {
	ae := newEncoder()
	ae.Uint32(attrIndex, uint32(d.index))
	attrs, err := ae.Encode()
	if err != nil {
		return err
	}
	return d.k.with(func(c netlinkConn, fam genetlink.Family) error {
		_, err := execute(c, fam, cmdDisconnect, attrs)
		return err
	})
}
