package qemu

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/pollux-project/pollux/hypervisor"
)

// accelArgs returns the options that choose how the guest's CPU is made.
func accelArgs(a hypervisor.Accel, usable error) ([]string, error) {
	switch {
	case a == hypervisor.AccelTCG, a != hypervisor.AccelKVM && usable != nil:
		return []string{"-accel", "tcg,thread=multi", "-cpu", "max"}, nil
	case usable != nil:
		return nil, fmt.Errorf("accel kvm: %w; use accel \"auto\" or \"tcg\"", usable)
	default:
		return []string{"-accel", "kvm", "-cpu", "host"}, nil
	}
}

// KVMUsable says why KVM can't be used here, or nil. Two things are needed:
//
//   - /dev/kvm can be opened for writing;
//   - the CPU has hardware virtualisation: the flag vmx (Intel) or svm (AMD)
//     in /proc/cpuinfo.
//
// The second one looks superfluous and is not: inside a virtual machine without
// nested virtualisation, PVM offers a /dev/kvm that runs only kernels made for
// it. A stock kernel there is emulated instruction by instruction and stops at
// the first one that PVM doesn't know.
func KVMUsable() error { return kvmUsable("/dev/kvm", "/proc/cpuinfo") }

func kvmUsable(device, cpuinfo string) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return errors.New("this machine has no " + device)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("this user may not open %s (member of the group kvm?)", device)
	case err != nil:
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	info, err := os.ReadFile(cpuinfo)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(info)) {
		if !strings.HasPrefix(line, "flags") {
			continue
		}
		for _, flag := range strings.Fields(line) {
			if flag == "vmx" || flag == "svm" {
				return nil
			}
		}
		break // all CPUs of a machine have the same
	}
	return fmt.Errorf("%s is there, but the CPU has neither vmx nor svm, so it can't run a stock kernel", device)
}
