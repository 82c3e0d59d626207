package pair

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Kinds of messages. A request of the first four is answered by one of the last two.
const (
	kindHello   = "hello"   // I am here
	kindSync    = "sync"    // all my records; the answer has all of yours
	kindPropose = "propose" // New in place of Old
	kindResign  = "resign"  // I make no change alone any more
	kindOK      = "ok"
	kindRefused = "refused"
)

// message is a request or an answer.
type message struct {
	Kind    string `json:"kind"`
	Cluster string `json:"cluster"`
	From    string `json:"from"`
	Boot    string `json:"boot"`
	Run     uint64 `json:"run"`               // of the process, grows with each start
	Session string `json:"session,omitempty"` // of the lease
	Why     string `json:"why,omitempty"`     // of a refusal

	// Number is, with all records, the one that proposals must bear from now on;
	// with a proposal, the last one that came.
	Number  uint64            `json:"number,omitempty"`
	Entries map[string]*entry `json:"entries,omitempty"`

	// Made is, with a proposal, the number of the last copy of all records that its
	// sender had made: what arrives after it and was made before it is old.
	Made uint64 `json:"made,omitempty"`

	Resource string `json:"resource,omitempty"`
	Old      string `json:"old,omitempty"`
	New      *entry `json:"new,omitempty"`
}

var (
	errLate   = errors.New("it counts as off")
	errClosed = errors.New("closed")
)

// decode reads a message and checks what needs no state.
func decode(data []byte) (message, error) {
	var m message
	if err := json.Unmarshal(data, &m); err != nil {
		return m, err
	}
	for name, e := range m.Entries {
		if e == nil || e.Resource != name {
			return m, fmt.Errorf("the record of %q is of another resource", name)
		}
	}
	if m.Kind == kindPropose && (m.New == nil || m.New.ID == "" || m.New.Resource != m.Resource) {
		return m, errors.New("a proposal without a record")
	}
	return m, nil
}
