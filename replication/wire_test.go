package replication_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/protocol/drbd/wiretest"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
	"github.com/pollux-project/pollux/replication/repltest"
)

// TestWire repeats captures of two kernels with two cores: the operator gives
// the same commands, and each node must send the same packets in the same order
// on each socket, where the protocol leaves no choice. UUIDs are compared by
// which of them are equal; resync blocks, unplug hints, pings and the proofs of
// flushes are left out.
func TestWire(t *testing.T) {
	for _, name := range []string{
		"s01-connect-fresh", "s02-initial-sync",
		"s13-split-brain", "s27-fencing", "s05-bitmap-rle-ab", "s05-bitmap-rle-ba", "s05-bitmap-plain-ab", "s05-bitmap-plain-ba",
	} {
		t.Run(name, func(t *testing.T) {
			events := wiretest.Load(t, name)
			want := newTranscript()
			for _, e := range events {
				if e.Kind == wiretest.Packet && len(e.Header) == drbd.HeaderSize100 {
					want.add(t, int(e.From[0]-'A'), e.Socket, append(append([]byte(nil), e.Header...), e.Payload...))
				}
			}
			got := replay(t, events)
			if diff := cmp.Diff(want.lines, got.lines); diff != "" {
				t.Errorf("the cores send other packets than the kernels (-kernel +core):\n%s", diff)
			}
		})
	}
}

// transcript is what each node sent, by node and socket.
type transcript struct {
	lines [2][2][]string
	uuids map[uint64]string
}

func newTranscript() *transcript { return &transcript{uuids: map[uint64]string{0: "0", 4: "4"}} }

// uuid names a UUID by the order of its first appearance.
func (tr *transcript) uuid(u uint64) string {
	id := u &^ 1
	if tr.uuids[id] == "" {
		tr.uuids[id] = fmt.Sprintf("U%d", len(tr.uuids)-1)
	}
	return fmt.Sprintf("%s.%d", tr.uuids[id], u&1)
}

func (tr *transcript) add(t *testing.T, node int, sock drbd.Socket, b []byte) {
	t.Helper()
	h, err := drbd.DecodeHeader100(b)
	if err != nil {
		t.Fatal(err)
	}
	line := h.Command.String()
	if l := tr.lines[node][sock]; h.Command == drbd.CmdProtocol && len(l) > 0 && strings.HasPrefix(l[len(l)-1], "P_UUIDS") {
		// A Primary that grants a disconnect may still send its new generation.
		tr.lines[node][sock] = l[:len(l)-1]
	}
	switch h.Command {
	case drbd.CmdPing, drbd.CmdPingAck, drbd.CmdUnplugRemote, drbd.CmdRSDataRequest, drbd.CmdRSDataReply, drbd.CmdRSWriteAck,
		drbd.CmdDataRequest, drbd.CmdDataReply: // no client reads: they prove a flush
		return
	case drbd.CmdBitmap, drbd.CmdCompressedBitmap:
		line = "bitmap"
		if l := tr.lines[node][sock]; len(l) > 0 && l[len(l)-1] == line {
			return
		}
	case drbd.CmdState, drbd.CmdStateChgReq, drbd.CmdConnStChgReq, drbd.CmdStateChgReply, drbd.CmdConnStChgReply, drbd.CmdBarrierAck:
		p, _, err := drbd.Decode(h, b[drbd.HeaderSize100:], true)
		if err != nil {
			t.Fatal(err)
		}
		switch p := p.(type) {
		case *drbd.StatePacket:
			line += " " + drbd.StateOf(p.Word).String()
		case *drbd.BarrierAck:
			line += fmt.Sprintf(" set_size=%d", p.SetSize)
		default:
			line += fmt.Sprintf(" %+v", p)
		}
	case drbd.CmdUUIDs:
		var p drbd.UUIDs
		if err := p.Decode(b[drbd.HeaderSize100:]); err != nil {
			t.Fatal(err)
		}
		line += fmt.Sprintf(" %s %s %s %s flags=%d", tr.uuid(p.Current), tr.uuid(p.Bitmap), tr.uuid(p.History[0]), tr.uuid(p.History[1]), p.Flags)
	case drbd.CmdSyncUUID:
		var p drbd.SyncUUID
		if err := p.Decode(b[drbd.HeaderSize100:]); err != nil {
			t.Fatal(err)
		}
		line += " " + tr.uuid(p.UUID)
	case drbd.CmdData:
		var p drbd.Data
		if err := p.Decode(b[drbd.HeaderSize100:]); err != nil {
			t.Fatal(err)
		}
		// Flags that only hint, or that the writing program chose, do not count.
		line += fmt.Sprintf(" sector=%d flags=%d", p.Sector, p.Flags&(drbd.DPMaySetInSync|drbd.DPSendWriteAck|drbd.DPSendReceiveAck))
	}
	tr.lines[node][sock] = append(tr.lines[node][sock], line)
}

// replay gives the commands of a capture to two cores.
func replay(t *testing.T, events []wiretest.Event) *transcript {
	c := repltest.DefaultConfig()
	c.Sectors = 2 * 4086 * 4 // as the kernel's 16 MiB with internal metadata
	c.Features = repltest.KernelFeatures
	c.Synced = true
	c.UUIDs = meta.UUIDs{Current: 0x1111111111111110}
	for _, e := range events {
		if e.Kind == wiretest.Command && strings.HasPrefix(e.Text, "drbdadm up") {
			c.Synced = false // created by this very command
		}
	}
	w := repltest.NewWorld(c)
	got := newTranscript()
	w.OnSend = func(node int, sock drbd.Socket, b []byte) { got.add(t, node, sock, b) }
	if c.Synced {
		for _, n := range w.Nodes {
			n.Start()
			n.Attach(0)
			if wiretest.Option(events, "fencing") == "resource-only" { // set while attached, as in the capture
				opts := replication.DefaultDiskOptions()
				opts.ALExtents = c.ALSlots
				opts.Fencing = replication.FencingResourceOnly
				n.Command(replication.Command{Kind: replication.CmdSetOptions, Net: c.Net[0], Disk: opts}, nil)
			}
		}
	}
	for _, e := range events {
		if e.Kind != wiretest.Command {
			continue
		}
		command(t, w, w.Nodes[e.From[0]-'A'], e.Text)
		w.Run(1000)
		if err := w.Err(); err != nil {
			t.Fatalf("%s: %v", e.Text, err)
		}
	}
	return got
}

func command(t *testing.T, w *repltest.World, n *repltest.Node, text string) {
	words := strings.Fields(text)
	if words[0] == "poke" {
		poke(t, w, n, words[2:])
		return
	}
	do := func(kind replication.CommandKind, force bool) {
		n.Command(replication.Command{Kind: kind, Force: force}, nil)
	}
	switch strings.Join(words[1:], " ") {
	case "up r0":
		n.Up()
	case "connect r0":
		do(replication.CmdConnect, false)
	case "connect --discard-my-data r0":
		w.Model.Excuse(n)
		do(replication.CmdConnect, true)
	case "disconnect r0", "down r0":
		do(replication.CmdDisconnect, false)
	case "primary r0":
		do(replication.CmdPrimary, false)
	case "primary --force r0":
		do(replication.CmdPrimary, true)
	case "secondary r0":
		do(replication.CmdSecondary, false)
	default:
		t.Fatalf("no such command: %s", text)
	}
}

// poke makes single writes: w, offset, size, fill byte.
func poke(t *testing.T, w *repltest.World, n *repltest.Node, words []string) {
	for ; len(words) >= 4 && words[0] == "w"; words = words[4:] {
		w.Model.Submit(n, repltest.Request{Op: replication.OpWrite, Sector: bytesOf(t, words[1]) / 512, Count: bytesOf(t, words[2]) / 512}, nil)
		w.Run(200)
	}
	if len(words) > 0 {
		t.Fatalf("poke: %v", words)
	}
}

func bytesOf(t *testing.T, s string) int {
	unit := 1
	switch s[len(s)-1] {
	case 'k':
		unit, s = 1<<10, s[:len(s)-1]
	case 'm':
		unit, s = 1<<20, s[:len(s)-1]
	}
	v, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return v * unit
}
