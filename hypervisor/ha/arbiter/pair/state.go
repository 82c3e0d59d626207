package pair

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// state is what is in the file. All that is said to be durable is in it.
type state struct {
	Format  int    `json:"format"`
	Cluster string `json:"cluster"`
	Node    string `json:"node"`
	Run     uint64 `json:"run"` // of the process that wrote it, grows
	// Met is the boot in which this node has met its peer: in it, its records are
	// the newest, or the peer has none newer without having fenced this node.
	Met      string            `json:"met"`
	PeerBoot string            `json:"peer_boot"` // when last heard of
	PeerOff  *peerOff          `json:"peer_off,omitempty"`
	Shot     *Shot             `json:"shot,omitempty"` // the last one at the peer
	Entries  map[string]*entry `json:"entries"`
}

// peerOff says that the peer makes no change without having met this node first.
type peerOff struct {
	Boot   string `json:"boot"` // in which it was
	Run    uint64 `json:"run"`  // of the process that resigned
	Fenced bool   `json:"fenced"`
}

// Shot is the last fence shot at a node.
type Shot struct {
	Era  uint64 `json:"era"`  // sum of all terms when it was fired: grows with each claim
	Boot string `json:"boot"` // of the target, when last heard of
	Done bool   `json:"done"` // confirmed to be off
}

// entry is one record, and what is known of the peer's. Entries are never changed,
// only replaced.
type entry struct {
	arbiter.Record
	ID     string   `json:"id"`              // drawn by chance; "" is none
	Common []string `json:"common"`          // IDs that the peer may have, besides this one
	Doubt  *entry   `json:"doubt,omitempty"` // proposed; the peer may have it
	Floor  uint64   `json:"floor,omitempty"` // terms up to here may have been used
	Split  bool     `json:"split,omitempty"` // both sides had changed it alone
}

// shown is the record as callers may rely on it.
func (e *entry) shown() arbiter.Record {
	r := e.Record
	r.InSync = slices.Clone(r.InSync)
	if e.Doubt != nil {
		r.InSync = append(r.InSync, e.Doubt.InSync...)
		slices.Sort(r.InSync)
		r.InSync = slices.Compact(r.InSync)
	}
	return r
}

// top is the highest term that may have been handed out.
func (e *entry) top() uint64 {
	t := max(e.Term, e.Floor)
	if e.Doubt != nil {
		t = max(t, e.Doubt.Term)
	}
	return t
}

const format = 1

// A Store is where the records are, other than in a file: in a simulation.
type Store interface {
	Load() ([]byte, error) // fs.ErrNotExist: there is nothing yet
	Save([]byte) error     // durable when it returns
}

// load reads the file; without one the state is empty.
func load(file string, from Store, cluster, node string) (state, error) {
	st := state{Format: format, Cluster: cluster, Node: node, Entries: map[string]*entry{}}
	var data []byte
	var err error
	if from != nil {
		data, err = from.Load()
	} else {
		data, err = os.ReadFile(file)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return st, nil
	}
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal(data, &st); err != nil {
		return st, fmt.Errorf("%s: %w: move it away, and the records are made anew when both nodes are connected", file, err)
	}
	switch {
	case st.Format != format:
		return st, fmt.Errorf("%s: format %d, this version knows %d", file, st.Format, format)
	case st.Cluster != cluster || st.Node != node:
		return st, fmt.Errorf("%s belongs to node %s of cluster %s, this is %s of %s", file, st.Node, st.Cluster, node, cluster)
	}
	for name, e := range st.Entries {
		if e == nil {
			return st, fmt.Errorf("%s: the record of %s is empty", file, name)
		}
	}
	return st, nil
}

// save replaces the file, durably.
func save(file string, to Store, st *state) error {
	data, err := json.Marshal(st)
	if err != nil {
		return err
	}
	if to != nil {
		return to.Save(data)
	}
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	defer dir.Close()
	tmp := file + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp, file); err != nil {
		return err
	}
	return dir.Sync()
}
