package adm

import "time"

// Perf is the answer to CmdPerf: where the time of a resource's requests goes.
// With Reset it is what was counted until then.
type Perf struct {
	Resource string       `json:"resource"`
	Node     string       `json:"node"`
	Peer     string       `json:"peer"`
	Role     string       `json:"role"`
	Protocol string       `json:"protocol"`
	Now      time.Time    `json:"now"`
	Every    int          `json:"every"`             // at least one of so many requests is measured; 0: none
	Volumes  []PerfVolume `json:"volumes,omitempty"` // by number
}

// PerfVolume is one volume of a Perf.
type PerfVolume struct {
	Volume     int             `json:"volume"`
	Since      time.Time       `json:"since"` // attached, or reset
	Directions []PerfDirection `json:"directions,omitempty"`
}

// PerfDirection is one kind of requests, or the disk's own work.
type PerfDirection struct {
	Direction string    `json:"direction"`          // "write", "read", "flush", "discard", "peer write", "disk"
	Requests  uint64    `json:"requests,omitempty"` // all of them, measured or not
	Hops      []PerfHop `json:"hops"`               // in the order that a request meets them, "total" is the last
}

// PerfHop is a histogram of the times of one hop, in nanoseconds.
type PerfHop struct {
	Hop      string     `json:"hop"`
	Sum      int64      `json:"sum"`
	Max      int64      `json:"max"`
	Decisive int64      `json:"decisive,omitempty"` // of the totals, what was spent waiting for this hop alone
	Buckets  [][2]int64 `json:"buckets"`            // a time that is right within 3 %, and how often it was measured; ascending
}
