package vip

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// A note says that an address is ours. It is written before the kernel is told
// and removed after, so it may outlive the address but never the other way round.
type note struct {
	Prefix    netip.Prefix `json:"prefix"`
	Interface string       `json:"interface"`
}

const noteSuffix = ".addr"

func (m *Manager) path(addr netip.Addr) string {
	return filepath.Join(m.cfg.Dir, addr.String()+noteSuffix)
}

func (m *Manager) note(n note) error {
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	path := m.path(n.Prefix.Addr())
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// read returns the note of an address, or nil. A note that can't be read still
// says that the address is ours.
func (m *Manager) read(addr netip.Addr) *note {
	text, err := os.ReadFile(m.path(addr))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var n note
	if err != nil || json.Unmarshal(text, &n) != nil || n.Prefix.Addr() != addr {
		n = note{Prefix: netip.PrefixFrom(addr, addr.BitLen())}
	}
	return &n
}

func (m *Manager) forget(addr netip.Addr) error {
	if err := os.Remove(m.path(addr)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (m *Manager) notes() ([]note, error) {
	entries, err := os.ReadDir(m.cfg.Dir)
	if err != nil {
		return nil, err
	}
	var notes []note
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), noteSuffix)
		if !ok {
			continue
		}
		addr, err := netip.ParseAddr(name)
		if err != nil {
			return nil, fmt.Errorf("%s: not a note of an address", filepath.Join(m.cfg.Dir, e.Name()))
		}
		if n := m.read(addr); n != nil {
			notes = append(notes, *n)
		}
	}
	return notes, nil
}
