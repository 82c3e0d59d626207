package daemon

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/pollux-project/pollux/internal/fuzztest"
	"github.com/pollux-project/pollux/protocol/adm"
)

// controlMemory is what a run of FuzzControl may allocate: some connections with
// a full line each, their answers, and a daemon that starts and stops.
const controlMemory = 64 << 20

var controlCommands = []adm.Command{
	adm.CmdHello, adm.CmdStatus, adm.CmdEvents, adm.CmdReload, adm.CmdUp, adm.CmdDown, adm.CmdAdjust, adm.CmdAttach, adm.CmdDetach,
	adm.CmdConnect, adm.CmdDisconnect, adm.CmdPrimary, adm.CmdSecondary, adm.CmdInvalidate, adm.CmdInvalidateRemote, adm.CmdOutdate,
	adm.CmdResumeIO, adm.CmdSuspendIO, adm.CmdVerify, adm.CmdPauseSync, adm.CmdResumeSync, adm.CmdResize, adm.CmdNewCurrentUUID,
	adm.CmdDiskOptions, adm.CmdNetOptions, adm.CmdForget, "", "no such thing",
}

// FuzzControl talks to the control socket of a daemon over several connections:
// all commands with any arguments, lines that do not end or are too long, bytes
// that are no request, clients that do not read or are gone. In the end the
// daemon still answers, and stops when it is told to.
func FuzzControl(f *testing.F) {
	for i := range controlCommands {
		f.Add([]byte{0, 1, byte(i), 1, 0, 3, 0, 0, 1, byte(i), 2, 255, 9, 0, 5})
	}
	f.Add([]byte{0, 2, 10, '{', '"', 'v', '"', ':', '1', ',', '\n', 0, 3, 200, 3, 4})
	f.Fuzz(func(t *testing.T, program []byte) {
		if len(program) > 2048 {
			return
		}
		watchdog := time.AfterFunc(5*time.Minute, func() { panic("the daemon does not come to its end") })
		defer watchdog.Stop()
		fuzztest.Bounded(t, controlMemory, func() { runControl(t, fuzztest.NewProgram(program)) })
	})
}

// runControl is the life of a daemon with its clients.
func runControl(t *testing.T, in *fuzztest.Program) {
	d := startDaemon(t, newFakeWorld(), "r0.res", resText("r0", 0, 7000, 2), "r1.res", resText("r1", 2, 7001, 1))
	var conns []net.Conn
	for range 64 {
		if in.Left() == 0 {
			break
		}
		if len(conns) == 0 || in.Byte() == 0xff && len(conns) < 8 {
			conns = append(conns, d.dial())
		}
		controlStep(in, conns)
	}
	d.status()
	for _, c := range conns {
		c.Close()
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
}

// controlStep is one instruction.
func controlStep(in *fuzztest.Program, conns []net.Conn) {
	op := in.Byte()
	c := conns[int(op>>3)%len(conns)]
	c.SetDeadline(time.Now().Add(time.Second)) // the daemon may have closed it
	switch op & 7 {
	case 0, 1: // a request
		c.Write(controlRequest(in)) //nolint:errcheck // as above
	case 2: // bytes
		c.Write(in.Take(int(in.Byte()))) //nolint:errcheck // as above
	case 3: // a line that is too long, or nearly
		c.Write([]byte(strings.Repeat(string(in.Take(1)), adm.MaxRequest-100+int(in.Byte())))) //nolint:errcheck // as above
	case 4: // an answer is read, or a part of it
		c.SetReadDeadline(time.Now().Add(time.Duration(in.Byte()) * time.Millisecond / 8)) // as above
		io.CopyN(io.Discard, c, int64(in.Byte())<<6)                                       //nolint:errcheck // as above
	case 5:
		c.Close()
	case 6:
		c.(*net.UnixConn).CloseWrite() //nolint:errcheck // as above
	case 7: // half a line
		b := controlRequest(in)
		c.Write(b[:len(b)/2]) //nolint:errcheck // as above
	}
}

// controlRequest is a line with a request; its values may be out of any range.
func controlRequest(in *fuzztest.Program) []byte {
	q := adm.Request{V: adm.Version, ID: uint64(in.Byte()), Cmd: controlCommands[int(in.Byte())%len(controlCommands)]}
	q.Resource = []string{"r0", "r1", "", "all", "../r0", "r\x00", "R0", strings.Repeat("r", 300)}[in.Byte()&7]
	flags := in.Byte()
	if flags&1 != 0 {
		v := []int{0, 1, -1, 65535, 1 << 40}[int(in.Byte())%5]
		q.Volume = &v
	}
	numbers := []uint64{0, 1, 8, 1 << 41, 1 << 63, 1<<64 - 1}
	number := func() uint64 { return numbers[int(in.Byte())%len(numbers)] }
	a := &q.Args
	a.Force, a.DiscardMyData, a.AssumeClean, a.ClearBitmap, a.SetDefaults = flags&2 != 0, flags&4 != 0, flags&8 != 0, flags&16 != 0, flags&32 != 0
	if flags&64 != 0 {
		a.StartSector, a.StopSector, a.SizeSectors = number(), number(), number()
	}
	if flags&128 != 0 {
		names := []string{"c-max-rate", "protocol", "al-extents", "timeout", "no-such-option", "", "allow-two-primaries", "on-io-error", "verify-alg"}
		values := []string{"1", "C", "", "yes", "-1", "99999999999999999999", "detach", "1G", "\n"}
		a.Options = map[string]string{names[int(in.Byte())%len(names)]: values[int(in.Byte())%len(values)], string(in.Take(3)): string(in.Take(3))}
	}
	line, err := adm.AppendLine(nil, q, adm.MaxRequest)
	if err != nil {
		return []byte("\n")
	}
	return line
}
