package result

import "time"

// Format is the value of Run.Format that this package writes and reads.
const Format = "pollux-bench/2"

// A Run is one benchmark: everything that was measured, with what and where.
type Run struct {
	Format    string     `json:"format"`            // see Format
	Started   time.Time  `json:"started"`           // UTC
	Ended     time.Time  `json:"ended"`             // UTC; zero = it was cut short
	Command   []string   `json:"command,omitempty"` // how to repeat it
	Commit    string     `json:"commit,omitempty"`  // of Pollux, as `git describe --dirty` has it
	Machine   Machine    `json:"machine"`
	Settings  Settings   `json:"settings"`
	Workloads []Workload `json:"workloads,omitempty"`
	Targets   []Target   `json:"targets,omitempty"`
	Samples   []Sample   `json:"samples,omitempty"`
	Timelines []Timeline `json:"timelines,omitempty"`
	Measures  []Measure  `json:"measures,omitempty"`
	Bars      []Bar      `json:"bars,omitempty"`
	Notes     []string   `json:"notes,omitempty"` // what a reader of the figures must know, such as a loaded machine
}

// A Machine is where it was measured.
type Machine struct {
	Kernel      string   `json:"kernel"`       // release, as uname -r has it
	CPUModel    string   `json:"cpu_model"`    // as /proc/cpuinfo has it
	CPUs        int      `json:"cpus"`         // that the benchmark could use
	MemoryBytes int64    `json:"memory_bytes"` // of the machine
	LoadBefore  float64  `json:"load_before"`  // 1 minute average, others' work
	LoadAfter   float64  `json:"load_after"`   // 1 minute average, the benchmark's own work included
	Filesystem  string   `json:"filesystem"`   // below the images, and its device
	Versions    []string `json:"versions,omitempty"`
}

// Settings are what the user chose, or the defaults.
type Settings struct {
	Rounds        int     `json:"rounds"`
	Seconds       float64 `json:"seconds"`        // of one sample
	WarmupSeconds float64 `json:"warmup_seconds"` // before each sample, not counted
	SizeBytes     int64   `json:"size_bytes"`     // of each volume
	Isolated      bool    `json:"isolated"`       // in a network namespace of its own
	DelayMicros   float64 `json:"delay_micros"`   // added to each way between the nodes
	BandwidthMbit float64 `json:"bandwidth_mbit"` // between the nodes; 0 = not limited
}

// Operations of a Workload.
const (
	OpWrite = "write"
	OpRead  = "read"
	OpMixed = "mixed" // ReadPercent says how many of them read
)

// Patterns of a Workload.
const (
	PatternRandom     = "random"
	PatternSequential = "sequential"
)

// Classes say what a reply to a write means. Only samples of one class compare.
const (
	ClassBuffered = "buffered" // both nodes have it in the page cache
	ClassDirect   = "direct"   // both devices have it (O_DIRECT), perhaps in their caches
	ClassFlush    = "flush"    // page cache, and a flush of both follows each write
	ClassFUA      = "fua"      // each write is durable on both by itself
)

// A Workload is what a client does.
type Workload struct {
	Name        string `json:"name"` // short and unique, such as "randwrite-4k-qd32-buffered"
	Op          string `json:"op"`
	Pattern     string `json:"pattern"`
	BlockBytes  int    `json:"block_bytes"`
	Depth       int    `json:"depth"`       // requests in flight, over all connections
	Connections int    `json:"connections"` // to the export
	Class       string `json:"class"`
	ReadPercent int    `json:"read_percent,omitempty"` // of an OpMixed one
}

// Kinds of a Target.
const (
	KindPollux = "pollux" // what this project is
	KindCopy   = "copy"   // one copy, no replication: an upper limit
	KindPair   = "pair"   // another userspace pair: the rival that bars are about
	KindKernel = "kernel" // kernel DRBD or md, in guests
	KindFile   = "file"   // the backing file or device itself

	// KindYardstick is an export whose speed is fixed: clients are measured with
	// it, so that it stands in no table or plot of servers.
	KindYardstick = "yardstick"
)

// A Target is what was measured, or would have been.
type Target struct {
	Name     string `json:"name"` // unique, such as "pollux-c"
	Kind     string `json:"kind"`
	Protocol string `json:"protocol,omitempty"` // "A", "B" or "C"; "" = it has no peer, or is not Pollux
	Detail   string `json:"detail,omitempty"`   // what it is, for people
	Skipped  string `json:"skipped,omitempty"`  // why it was not measured, with the package to install
}

// Clients that load an export.
const (
	ClientGo       = "go"        // our own NBD client
	ClientFio      = "fio"       // fio --ioengine=nbd
	ClientGuestFio = "guest-fio" // fio in a guest, on a block device
)

// A Sample is one workload on one target in one round.
type Sample struct {
	Round         int        `json:"round"` // from 1; samples of one round were taken beside one another
	Workload      string     `json:"workload"`
	Target        string     `json:"target"`
	Client        string     `json:"client"`
	Seconds       float64    `json:"seconds"`                   // that it took
	Ops           int64      `json:"ops"`                       // answered without an error
	Bytes         int64      `json:"bytes"`                     // moved by them
	Errors        int64      `json:"errors"`                    // answers that were errors
	Latency       *Histogram `json:"latency"`                   // one value an operation; nil = not known
	CPUMicros     float64    `json:"cpu_micros"`                // of all server processes, per operation; 0 = not known
	SyscallsPerOp float64    `json:"syscalls_per_op,omitempty"` // of all server processes; 0 = not counted
	ClientMicros  float64    `json:"client_micros,omitempty"`   // CPU time of the client, per operation; 0 = not known
	OthersCPUs    float64    `json:"others_cpus,omitempty"`     // CPUs that other work on the machine kept busy meanwhile
}

// IOPS is operations per second; 0 if no time passed.
func (s *Sample) IOPS() float64 { return perSecond(s.Ops, s.Seconds) }

// BytesPerSecond is the throughput; 0 if no time passed.
func (s *Sample) BytesPerSecond() float64 { return perSecond(s.Bytes, s.Seconds) }

func perSecond(n int64, seconds float64) float64 {
	if seconds <= 0 {
		return 0
	}
	return float64(n) / seconds
}

// A Timeline is how one workload went on one target while something happened.
type Timeline struct {
	Name          string  `json:"name"` // such as "resync under load"
	Target        string  `json:"target"`
	Workload      string  `json:"workload"`
	BucketSeconds float64 `json:"bucket_seconds"` // that each point stands for
	Points        []Point `json:"points"`
	Marks         []Mark  `json:"marks,omitempty"`
}

// A Point is one bucket of a Timeline. Latencies are 0 where nothing was answered.
type Point struct {
	T         float64 `json:"t"` // the bucket's start, seconds since the timeline's
	IOPS      float64 `json:"iops"`
	P50Micros float64 `json:"p50_us"`
	P99Micros float64 `json:"p99_us"`
	MaxMicros float64 `json:"max_us"`
}

// A Mark is an event on a Timeline, such as "disconnect", "resync starts", "resync ends".
type Mark struct {
	T    float64 `json:"t"` // seconds since the timeline's start
	Text string  `json:"text"`
}

// A Measure is what is no latency workload: a resync's rate, memory, idle CPU,
// fairness, growth. Measures of one Name are shown side by side, medians over
// the rounds.
type Measure struct {
	Name   string  `json:"name"` // such as "resync", "memory", "p50 over device size"
	Target string  `json:"target"`
	Round  int     `json:"round,omitempty"` // from 1; 0 = there are no rounds
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`             // such as "MiB/s", "bytes", "%", "us"
	Detail string  `json:"detail,omitempty"` // what distinguishes it from others of its name and target, such as "16 TiB"
}

// A Bar is one demand and what was found.
type Bar struct {
	What  string  `json:"what"`            // such as "4 KiB random write, buffered, QD1"
	Want  string  `json:"want"`            // such as ">= 1.2 x quorum"
	Got   string  `json:"got"`             // for people
	Ratio float64 `json:"ratio,omitempty"` // the figure behind Got; 0 = there is none
	Met   bool    `json:"met"`
}

// Workload returns the workload of this name, nil if the run has none.
func (r *Run) Workload(name string) *Workload {
	for i := range r.Workloads {
		if r.Workloads[i].Name == name {
			return &r.Workloads[i]
		}
	}
	return nil
}

// Target returns the target of this name, nil if the run has none.
func (r *Run) Target(name string) *Target {
	for i := range r.Targets {
		if r.Targets[i].Name == name {
			return &r.Targets[i]
		}
	}
	return nil
}

// AddWorkload makes w known; one of the same name is replaced.
func (r *Run) AddWorkload(w Workload) {
	if old := r.Workload(w.Name); old != nil {
		*old = w
		return
	}
	r.Workloads = append(r.Workloads, w)
}

// AddTarget makes t known; one of the same name is replaced.
func (r *Run) AddTarget(t Target) {
	if old := r.Target(t.Name); old != nil {
		*old = t
		return
	}
	r.Targets = append(r.Targets, t)
}

// AddBar adds a demand and its verdict. One about the same thing is replaced:
// an experiment that runs again has the last word.
func (r *Run) AddBar(b Bar) {
	for i := range r.Bars {
		if r.Bars[i].What == b.What {
			r.Bars[i] = b
			return
		}
	}
	r.Bars = append(r.Bars, b)
}
