package replication

// Fencing is the fencing policy of a resource (drbd.conf, disk or net section).
type Fencing uint8

// Fencing policies, weakest first.
const (
	FencingDontCare Fencing = iota
	FencingResourceOnly
	FencingResourceAndStonith
)

// OnIOError is what happens to a disk after a failed operation.
type OnIOError uint8

// Policies of on-io-error; detach is the default of drbd.conf.
const (
	DetachOnError OnIOError = iota
	PassOnError
	CallLocalIOError
)

// NetOptions are the options of drbd.conf's net section that the core and the
// engine use. Durations are in milliseconds. DefaultNetOptions has DRBD's.
type NetOptions struct {
	Protocol          byte // 'A', 'B' or 'C'
	TimeoutMS         int64
	PingIntMS         int64
	PingTimeoutMS     int64
	ConnectIntMS      int64
	SockCheckMS       int64 // 0 means ping-timeout
	KoCount           int
	MaxEpochSize      int // writes
	MaxBuffers        int // pages of 4 KiB
	SndbufBytes       int // 0 = the system's
	RcvbufBytes       int
	AllowTwoPrimaries bool
	AfterSB0P         uint32 // policy codes as on the wire (drbd84-protocol, B.6)
	AfterSB1P         uint32
	AfterSB2P         uint32
	AlwaysASBP        bool
	RRConflict        uint32
	CramHMACAlg       string
	SharedSecret      string
	DataIntegrityAlg  string
	VerifyAlg         string
	CsumsAlg          string
	UseRLE            bool

	CsumsAfterCrashOnly bool
	OnCongestion        OnCongestion
	CongestionFill      uint64 // sectors in flight, 0 = off
	CongestionExtents   int    // hot extents of the activity log

	NeedTerms    bool   // a peer without FeatureTerm is refused, also before any promise
	MaxLossBytes uint64 // protocols A and B: see lossBound; 0 is no bound
	MaxLossMS    int64
}

// OnCongestion is what a Primary does when the connection cannot keep up.
type OnCongestion uint8

// Policies of on-congestion; the last two need protocol A.
const (
	CongestionBlock OnCongestion = iota
	CongestionPullAhead
	CongestionDisconnect
)

// DefaultNetOptions are the defaults of drbd.conf.
func DefaultNetOptions() NetOptions {
	return NetOptions{
		Protocol: 'C', TimeoutMS: 6000, PingIntMS: 10000, PingTimeoutMS: 500, ConnectIntMS: 10000,
		KoCount: 7, MaxEpochSize: 2048, MaxBuffers: 2048, UseRLE: true, CongestionExtents: 1237,
	}
}

// DiskOptions are the options of drbd.conf's disk section. DefaultDiskOptions
// has DRBD's defaults.
type DiskOptions struct {
	SizeSectors   uint64 // user size, 0 = all
	OnIOError     OnIOError
	Fencing       Fencing
	DiskFlushes   bool
	MDFlushes     bool
	ResyncRateKiB uint32 // KiB/s
	CPlanAhead    uint32 // 0.1 s
	CDelayTarget  uint32 // 0.1 s
	CFillTarget   uint32 // sectors
	CMaxRateKiB   uint32 // KiB/s
	CMinRateKiB   uint32 // KiB/s
	ALExtents     int
	ALUpdates     bool

	DiskTimeoutMS        int64  // 0 = off
	RSDiscardGranularity uint32 // bytes, 0 = off
	ReadBalancing        ReadBalancing
}

// ReadBalancing is which copy serves a read.
type ReadBalancing uint8

// Policies of read-balancing; striping by address has a shift in bits (15..20).
const (
	PreferLocal ReadBalancing = iota
	PreferRemote
	RoundRobin
	LeastPending
	WhenCongestedRemote
	Striping32K
	Striping64K
	Striping128K
	Striping256K
	Striping512K
	Striping1M
)

// DefaultDiskOptions are the defaults of drbd.conf.
func DefaultDiskOptions() DiskOptions {
	return DiskOptions{
		DiskFlushes: true, MDFlushes: true, ResyncRateKiB: 250, CPlanAhead: 20, CDelayTarget: 10,
		CFillTarget: 100, CMaxRateKiB: 102400, CMinRateKiB: 250, ALExtents: 1237, ALUpdates: true,
	}
}
