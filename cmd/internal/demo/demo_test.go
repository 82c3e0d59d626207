package demo

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/cmd/internal/demo/records"
	"github.com/pollux-project/pollux/cmd/internal/demo/storage"
	"github.com/pollux-project/pollux/hypervisor"
	"github.com/pollux-project/pollux/hypervisor/qemu"
)

// guestDir is where scripts/demo/build-guest puts the guest.
const guestDir = "../../../build/guest"

const testLimit = 2 * time.Minute

// needTools skips the test where a program is absent; CI has them all.
func needTools(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := storage.Tool(name); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

// shortDir is a temporary directory with a path short enough for unix sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pollux-demo-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // only leaves rubbish behind
	return dir
}

// serve runs an NBD server for a file, without Pollux.
func serve(t *testing.T, image, socket string) {
	t.Helper()
	needTools(t, "nbdkit")
	cmd := exec.Command("nbdkit", "--foreground", "--unix", socket, "file", image)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }) // it is killed, so it fails
	deadline := time.Now().Add(testLimit)
	tick := time.NewTicker(consolePoll)
	defer tick.Stop()
	for {
		if _, err := os.Stat(socket); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the NBD server doesn't listen")
		}
		<-tick.C
	}
}

// The guest is killed at work and booted again, on a disk without Pollux: what
// the demo judges by must itself be right.
func TestE2EGuest(t *testing.T) {
	needTools(t, "qemu-system-x86_64", "mkfs.ext4", "debugfs", "e2fsck")
	guest, err := filepath.Abs(guestDir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(guest, "initramfs.cpio")); err != nil {
		t.Skipf("%v; scripts/demo/build-guest makes it", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	defer cancel()
	dir := shortDir(t)
	image, socket := filepath.Join(dir, "disk.img"), filepath.Join(dir, "nbd.sock")
	if err := storage.MakeFilesystemImage(ctx, image, 64<<20); err != nil {
		t.Fatal(err)
	}
	serve(t, image, socket)
	hv, err := qemu.New(qemu.Config{RunDir: filepath.Join(dir, "vm")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := hv.Kill(context.Background(), vmName); err != nil && !errors.Is(err, hypervisor.ErrNotRunning) {
			t.Error(err)
		}
	})
	con := &console{path: filepath.Join(dir, "console.log")}
	boot := func(acks int) health {
		t.Helper()
		if err := con.newRun(); err != nil {
			t.Fatal(err)
		}
		if err := hv.Start(ctx, hypervisor.Guest{
			Name: vmName, MemoryBytes: 192 << 20, VCPUs: 1, ConsoleLog: con.path,
			Disks: []hypervisor.Disk{{Socket: socket, Export: "web"}},
			Boot: hypervisor.Boot{
				Kernel: filepath.Join(guest, "vmlinuz"), Initrd: filepath.Join(guest, "initramfs.cpio"),
				Cmdline: "console=ttyS0 quiet loglevel=1 panic=-1 mitigations=off",
			},
			ExtraArgs: []string{"-no-reboot"},
		}); err != nil {
			t.Fatal(err)
		}
		h, err := con.booted(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := con.waitAcks(ctx, acks, func(int) {}); err != nil {
			t.Fatal(err)
		}
		return h
	}

	if diff := cmp.Diff(health{journal: "clean", fsck: "clean"}, boot(50), cmp.AllowUnexported(health{})); diff != "" {
		t.Errorf("first boot (-want +got):\n%s", diff)
	}
	if err := hv.Kill(ctx, vmName); err != nil {
		t.Fatal(err)
	}
	acks, err := con.acks()
	if err != nil {
		t.Fatal(err)
	}
	second := boot(50)
	if faults := second.faults(acks[len(acks)-1].Number); second.journal != "replayed" || len(faults) > 0 {
		t.Errorf("second boot: %+v, want a replayed journal; faults: %v", second, faults)
	}
	if err := hv.Stop(ctx, vmName, testLimit); err != nil {
		t.Fatal(err)
	}
	text, err := con.run()
	if err != nil {
		t.Fatal(err)
	}
	if halt, _ := line(text, "HALT"); halt != "unmounted" {
		t.Errorf("the guest ends with %q", tail(text))
	}

	if acks, err = con.acks(); err != nil {
		t.Fatal(err)
	}
	if lost := lostOn(t, ctx, image, acks); len(lost) != 0 {
		t.Errorf("lost: %v", lost)
	}
	if err := storage.CheckFilesystem(ctx, image); err != nil {
		t.Error(err)
	}
	victim := acks[len(acks)/2]
	if _, err := storage.DropRecord(image, victim); err != nil {
		t.Fatal(err)
	}
	want := []records.Loss{{Ack: victim, Why: records.ErrEmpty.Error()}}
	if diff := cmp.Diff(want, lostOn(t, ctx, image, acks)); diff != "" {
		t.Errorf("lost after the sabotage (-want +got):\n%s", diff)
	}
}

func lostOn(t *testing.T, ctx context.Context, image string, acks []records.Ack) []records.Loss {
	t.Helper()
	found, damaged, err := storage.ReadRecords(ctx, image, "/records", filepath.Join(t.TempDir(), "records"))
	if err != nil {
		t.Fatal(err)
	}
	return records.Judge(acks, found, damaged)
}

func TestConsole(t *testing.T) {
	c := &console{path: filepath.Join(t.TempDir(), "log")}
	say := func(text string) {
		f, err := os.OpenFile(c.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.newRun(); err != nil {
		t.Fatal(err)
	}
	say("BOOT\r\nJOURNAL clean\r\nFSCK clean\r\nFOUND 0 damaged 0\r\nACK 1 00000001\r\n")
	h, err := c.booted(t.Context())
	if err != nil || len(h.faults(0)) != 0 {
		t.Errorf("booted = %+v, %v", h, err)
	}
	if err := c.newRun(); err != nil {
		t.Fatal(err)
	}
	say("BOOT\r\nJOURNAL failed\r\nFSCK damaged 4\r\nDAMAGED 3 empty\r\nFOUND 7 damaged 1\r\n")
	h, err = c.booted(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`the journal is "failed"`, `e2fsck finds the filesystem "damaged 4"`,
		"the guest finds 1 of its records damaged", "the guest finds 7 records, but 9 were acknowledged",
	}
	if diff := cmp.Diff(want, h.faults(9)); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
	say("ERROR no disk\r\n")
	if err := c.waitAcks(t.Context(), 1, func(int) {}); err == nil || !strings.Contains(err.Error(), "no disk") {
		t.Errorf("waitAcks after an error of the guest = %v", err)
	}
	if acks, err := c.acks(); err != nil || len(acks) != 1 {
		t.Errorf("acks = %v, %v, want the one of the first run", acks, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.newRun(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.wait(ended, "BOOT"); !errors.Is(err, context.Canceled) {
		t.Errorf("wait = %v, want %v", err, context.Canceled)
	}
}

func TestReport(t *testing.T) {
	var out bytes.Buffer
	r := newReport(&out)
	r.began = time.Now().Add(-90 * time.Second)
	r.chapter("alpha %s", "dies")
	r.detail("one\ntwo\r\n")
	r.detail("%s", strings.Repeat("many words ", 9))
	r.progress("invisible without a terminal")
	r.table([]row{{"records lost", "0"}, {"resync", "12 KiB"}})
	r.outage("an outage:", []phase{{"lease", 3 * time.Second}, {"boot", time.Second}})
	r.verdict(true, "all there")
	r.verdict(false, "no")
	want := `  90.0 s  alpha dies
          one
          two
          many words many words many words many words many words many words many words many words
            many words
  +--------------+--------+
  | records lost |      0 |
  | resync       | 12 KiB |
  +--------------+--------+
  an outage:
  lease                             3.00 s  ` + strings.Repeat("█", 42) + `
  boot                              1.00 s  ` + strings.Repeat(" ", 42) + strings.Repeat("█", 14) + `
  PASSED: all there
  FAILED: no
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
}

// Programs that are missing are named before anything is started.
func TestRunWithoutPrograms(t *testing.T) {
	var out bytes.Buffer
	err := Run(t.Context(), Config{Bin: t.TempDir(), Guest: t.TempDir(), Out: &out})
	if err == nil || !strings.Contains(err.Error(), "polluxd") || errors.Is(err, ErrFailed) {
		t.Errorf("Run = %v, want it to name polluxd", err)
	}
}
