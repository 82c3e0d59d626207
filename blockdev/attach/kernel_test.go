package attach

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/genetlink/genltest"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/protocol/nbd"
)

// A fakeKernel answers for the nbd driver. It checks that each socket it is
// given is one that is in the transmission phase.
type fakeKernel struct {
	t         *testing.T
	sockets   map[int]int // by device: a descriptor of our own
	calls     []string
	chooses   int // the device for the next CONNECT
	connected map[int]bool
}

const fakeFamily = 0x21

func (f *fakeKernel) dial() (netlinkConn, error) {
	fam := genetlink.Family{ID: fakeFamily, Version: 1, Name: familyName}
	return genltest.Dial(genltest.ServeFamily(fam, f.serve)), nil
}

// attrs decodes a message into "name=value" strings and its socket.
func (f *fakeKernel) attrs(b []byte) (m map[string]uint64, id string) {
	f.t.Helper()
	m = make(map[string]uint64)
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		f.t.Fatal(err)
	}
	ad.ByteOrder = binary.NativeEndian
	for ad.Next() {
		switch ad.Type() {
		case attrIndex:
			m["index"] = uint64(ad.Uint32())
		case attrSizeBytes:
			m["size"] = ad.Uint64()
		case attrBlockSize:
			m["block"] = ad.Uint64()
		case attrServerFlags:
			m["flags"] = ad.Uint64()
		case attrTimeout:
			m["timeout"] = ad.Uint64()
		case attrDeadConn:
			m["dead"] = ad.Uint64()
		case attrBackendID:
			id = ad.String()
		case attrSockets:
			ad.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					list.Nested(func(item *netlink.AttributeDecoder) error {
						for item.Next() {
							m["socket"] = uint64(item.Uint32())
						}
						return nil
					})
				}
				return nil
			})
		default:
			f.t.Errorf("unexpected attribute %d", ad.Type())
		}
	}
	if err := ad.Err(); err != nil {
		f.t.Fatal(err)
	}
	return m, id
}

func encode(t *testing.T, put func(*netlink.AttributeEncoder)) []byte {
	t.Helper()
	ae := newEncoder()
	put(ae)
	b, err := ae.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (f *fakeKernel) serve(greq genetlink.Message, nreq netlink.Message) ([]genetlink.Message, error) {
	// Exactly one message must come back: an answer or an acknowledgement.
	answered := greq.Header.Command == cmdConnect || greq.Header.Command == cmdStatus
	if nreq.Header.Type != fakeFamily || answered != (nreq.Header.Flags&netlink.Acknowledge == 0) {
		f.t.Errorf("command %d: header %+v", greq.Header.Command, nreq.Header)
	}
	m, id := f.attrs(greq.Data)
	answer := []genetlink.Message{{}}
	switch greq.Header.Command {
	case cmdConnect:
		f.calls = append(f.calls, fmt.Sprintf("connect size=%d block=%d timeout=%d dead=%d id=%s", m["size"], m["block"], m["timeout"], m["dead"], id))
		if _, ok := m["index"]; ok {
			f.t.Error("a device was asked for by number")
		}
		if fl := nbd.TransmissionFlags(m["flags"]); fl&nbd.HasFlags == 0 || fl&nbd.SendFlush == 0 {
			f.t.Errorf("flags %#x", fl)
		}
		f.take(f.chooses, int(m["socket"]))
		answer[0].Data = encode(f.t, func(ae *netlink.AttributeEncoder) { ae.Uint32(attrIndex, uint32(f.chooses)) })
	case cmdReconfigure:
		f.calls = append(f.calls, fmt.Sprintf("reconfigure %d timeout=%d id=%s", m["index"], m["timeout"], id))
		if _, ok := m["socket"]; !ok {
			break
		}
		f.take(int(m["index"]), int(m["socket"]))
	case cmdDisconnect:
		f.calls = append(f.calls, fmt.Sprintf("disconnect %d", m["index"]))
		f.drop(int(m["index"]))
		f.connected[int(m["index"])] = false
	case cmdStatus:
		f.calls = append(f.calls, fmt.Sprintf("status %d", m["index"]))
		answer[0].Data = encode(f.t, func(ae *netlink.AttributeEncoder) {
			ae.Nested(attrDeviceList, func(list *netlink.AttributeEncoder) error {
				list.Nested(attrDeviceItem, func(item *netlink.AttributeEncoder) error {
					item.Uint32(attrDeviceIndex, uint32(m["index"]))
					up := uint8(0)
					if f.connected[int(m["index"])] {
						up = 1
					}
					item.Uint8(attrDeviceConnected, up)
					return nil
				})
				return nil
			})
		})
	}
	return answer, nil
}

// take holds the socket as the kernel does, and uses it.
func (f *fakeKernel) take(index, fd int) {
	f.t.Helper()
	f.drop(index)
	own, err := unix.Dup(fd)
	if err != nil {
		f.t.Fatal(err)
	}
	f.sockets[index] = own
	f.connected[index] = true
	file := os.NewFile(uintptr(own), "socket")
	f.t.Cleanup(func() { file.Close() })
	if err := unix.SetNonblock(own, false); err != nil {
		f.t.Fatal(err)
	}
	if _, err := file.Write(nbd.Request{Command: nbd.CmdRead, Cookie: 9, Length: 512}.Append(nil)); err != nil {
		f.t.Fatal(err)
	}
	b := make([]byte, nbd.SimpleReplySize)
	for n := 0; n < len(b); {
		k, err := file.Read(b[n:])
		if err != nil {
			f.t.Fatal(err)
		}
		n += k
	}
	if rep, err := nbd.DecodeSimpleReply(b); err != nil || rep.Error != nbd.OK || rep.Cookie != 9 {
		f.t.Errorf("the socket is not in the transmission phase: %x", b)
	}
}

func (f *fakeKernel) drop(index int) { delete(f.sockets, index) }

func newFake(t *testing.T, r *rig) (*fakeKernel, *kernel) {
	f := &fakeKernel{t: t, sockets: make(map[int]int), connected: make(map[int]bool), chooses: 5}
	r.cfg.DeadTime = 45e9
	return f, &kernel{cfg: r.cfg, dial: f.dial, sysDir: filepath.Join(r.cfg.RunDir, "sys"), devDir: filepath.Join(r.cfg.RunDir, "node")}
}

func TestKernelAttach(t *testing.T) {
	r := newRig(t)
	f, k := newFake(t, r)
	dev, err := k.Attach(t.Context(), r.vol)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(k.devDir, "nbd5"); dev.Path() != want {
		t.Errorf("path %q", dev.Path())
	}
	if to, err := os.Readlink(filepath.Join(r.cfg.Dir, "drbd7")); err != nil || to != dev.Path() {
		t.Errorf("link %q %v", to, err)
	}
	// The daemon starts again: the device is still there and gets a new socket.
	if _, err := k.Attach(t.Context(), r.vol); err != nil {
		t.Fatal(err)
	}
	// It was disconnected behind our back: a new one.
	f.connected[5] = false
	f.chooses = 6
	dev, err = k.Attach(t.Context(), r.vol)
	if err != nil || !strings.HasSuffix(dev.Path(), "nbd6") {
		t.Fatal(dev, err)
	}
	// Somebody else has taken the number.
	sys := filepath.Join(k.sysDir, "nbd6")
	if err := os.MkdirAll(sys, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(sys, "backend"), []byte("somebody else\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.chooses = 8
	dev, err = k.Attach(t.Context(), r.vol)
	if err != nil || !strings.HasSuffix(dev.Path(), "nbd8") {
		t.Fatal(dev, err)
	}
	// Frozen, and not any more.
	for _, isPatient := range []bool{true, false} {
		if err := dev.SetPatient(isPatient); err != nil {
			t.Fatal(err)
		}
	}
	if err := dev.(*nbdDevice).disconnect(); err != nil {
		t.Fatal(err)
	}
	connect := "connect size=33554432 block=512 timeout=45 dead=45 id=pollux:web/0"
	want := []string{
		connect, "status 5", "reconfigure 5 timeout=45 id=pollux:web/0", "status 5", connect, connect,
		"reconfigure 8 timeout=0 id=pollux:web/0", "reconfigure 8 timeout=45 id=pollux:web/0", "disconnect 8",
	}
	if d := cmp.Diff(want, f.calls); d != "" {
		t.Error(d)
	}
}

// What a process that is gone has left does not stand in another owner's way.
func TestKernelTakeDown(t *testing.T) {
	r := newRig(t)
	f, k := newFake(t, r)
	if err := k.takeDown(t.Context(), r.vol); err != nil || len(f.calls) != 0 {
		t.Errorf("nothing is there: %v, %v", err, f.calls)
	}
	if _, err := k.Attach(t.Context(), r.vol); err != nil {
		t.Fatal(err)
	}
	other := r.vol
	other.Resource = "other"
	if err := k.takeDown(t.Context(), other); err != nil {
		t.Error(err)
	}
	link := filepath.Join(r.cfg.Dir, "drbd7")
	if _, err := os.Lstat(link); err != nil {
		t.Errorf("another resource's volume took it away: %v", err)
	}
	f.connected[5] = false
	if err := k.takeDown(t.Context(), r.vol); err != nil {
		t.Error(err)
	}
	for _, p := range []string{link, k.cfg.notePath(r.vol)} {
		if _, err := os.Lstat(p); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", p, err)
		}
	}
}

func TestKernelRefused(t *testing.T) {
	r := newRig(t)
	f, k := newFake(t, r)
	r.backend.Refuse(errors.New("this node is Secondary"))
	if _, err := k.Attach(t.Context(), r.vol); err == nil || !strings.Contains(err.Error(), "this node is Secondary") {
		t.Error(err)
	}
	if len(f.calls) != 0 {
		t.Errorf("the kernel was told: %v", f.calls)
	}
}

func TestNoDriver(t *testing.T) {
	k := &kernel{dial: func() (netlinkConn, error) {
		return genltest.Dial(func(genetlink.Message, netlink.Message) ([]genetlink.Message, error) {
			return nil, genltest.Error(int(unix.ENOENT))
		}), nil
	}}
	err := k.with(func(netlinkConn, genetlink.Family) error { return nil })
	if !errors.Is(err, errNoDriver) {
		t.Error(err)
	}
}

// The bytes of CONNECT, written out: what the kernel's policy expects.
func TestConnectBytes(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("written out for little-endian machines")
	}
	got, err := connectRequest{
		index: -1, info: nbd.ExportInfo{Size: 1 << 20, Flags: 0x16d, Blocks: nbd.BlockSizes{Minimum: 4096}},
		socket: 7, deadTime: 30e9, backendID: "p",
	}.encode(true)
	if err != nil {
		t.Fatal(err)
	}
	const nested = 0x80
	want := slices.Concat(
		[]byte{12, 0, attrSizeBytes, 0, 0, 0, 0x10, 0, 0, 0, 0, 0},
		[]byte{12, 0, attrBlockSize, 0, 0, 0x10, 0, 0, 0, 0, 0, 0},
		[]byte{12, 0, attrServerFlags, 0, 0x6d, 0x01, 0, 0, 0, 0, 0, 0},
		[]byte{12, 0, attrTimeout, 0, 45, 0, 0, 0, 0, 0, 0, 0},
		[]byte{12, 0, attrDeadConn, 0, 30, 0, 0, 0, 0, 0, 0, 0},
		[]byte{16, 0, attrSockets, nested, 12, 0, attrSockItem, nested, 8, 0, attrSockFD, 0, 7, 0, 0, 0},
		[]byte{6, 0, attrBackendID, 0, 'p', 0, 0, 0},
	)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
