package hvtest_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/hypervisor"
	"github.com/pollux-project/pollux/hypervisor/hvtest"
)

func guest(name string) hypervisor.Guest {
	return hypervisor.Guest{
		Name: name, MemoryBytes: 16 << 20, VCPUs: 1,
		Disks: []hypervisor.Disk{{Socket: "/run/nbd.sock", Export: "r0"}},
	}
}

func TestConformance(t *testing.T) {
	hvtest.Run(t, func(*testing.T) hvtest.Subject {
		m := new(hvtest.Machine)
		return hvtest.Subject{
			Open: func() hypervisor.Hypervisor { return hvtest.NewFake(m) },
			Guest: func(name string, temper byte) hypervisor.Guest {
				m.SetDeaf(name, temper == hvtest.Deaf)
				return guest(name)
			},
			Broken: func(name string) hypervisor.Guest {
				m.RefuseStart(name, errors.New("no such export"))
				return guest(name)
			},
			Booted: func(context.Context, string) error { return nil },
			Pause: func(_ context.Context, name string) error {
				if !m.Pause(name, "io-error") {
					return errors.New("not running")
				}
				return nil
			},
			Crash: func(_ context.Context, name string) error {
				if !m.Die(name) {
					return errors.New("not running")
				}
				return nil
			},
		}
	})
}

func TestAgent(t *testing.T) {
	m := new(hvtest.Machine)
	hv := hvtest.NewFake(m)
	if err := hv.Start(t.Context(), guest("web")); err != nil {
		t.Fatal(err)
	}
	m.SetAgent("web", true)
	if err := hv.AskAgent(t.Context(), "web"); err != nil {
		t.Error(err)
	}
	m.Pause("web", "io-error")
	if err := hv.AskAgent(t.Context(), "web"); !errors.Is(err, hypervisor.ErrNoAgent) {
		t.Errorf("AskAgent of a paused guest = %v, want %v", err, hypervisor.ErrNoAgent)
	}
}

func TestMachineRemembers(t *testing.T) {
	m := new(hvtest.Machine)
	hv := hvtest.NewFake(m)
	want := guest("web")
	if err := hv.Start(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	got, ok := m.Guest("web")
	if diff := cmp.Diff(want, got); !ok || diff != "" {
		t.Errorf("Guest: %v (-want +got):\n%s", ok, diff)
	}
	if err := hv.Kill(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	if _, ok := m.Guest("web"); ok {
		t.Error("Guest of a killed VM is still known")
	}
	if diff := cmp.Diff([]string{"start web", "kill web"}, m.Calls()); diff != "" {
		t.Errorf("Calls (-want +got):\n%s", diff)
	}
}
