package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pollux-project/pollux/cmd/internal/service"
	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/internal/perf"
	"github.com/pollux-project/pollux/protocol/adm"
)

// Bounds for those who ask for metrics.
const (
	scrapeTimeout    = 10 * time.Second // for one request, and for its answer
	maxScrapeHeader  = 8 << 10          // bytes
	maxScrapes       = 2                // answered at a time
	maxScrapeClients = 16               // connected at a time
	scrapeIdle       = 3 * time.Minute  // longer than Prometheus waits between two
)

// A scraped is what one request for metrics shows of a resource.
type scraped struct {
	adm.Resource
	isUp  bool              // there is more to tell than the state
	times [][]perf.DirTimes // by volume, as in Resource
}

// scrape looks at all resources. Those that are not up have no volumes.
func (d *Daemon) scrape() []scraped {
	var all []scraped
	for _, r := range d.sorted() {
		s, eng := scraped{Resource: r.status()}, r.engine()
		if s.isUp = s.State == adm.StateUp && eng != nil; !s.isUp {
			s.Volumes = nil
		}
		for _, v := range s.Volumes {
			s.times = append(s.times, eng.Perf(v.Volume).Snapshot())
		}
		all = append(all, s)
	}
	return all
}

// writeMetrics writes all metrics, as they are now.
func (d *Daemon) writeMetrics(w io.Writer) error {
	p, all := newPage(w), d.scrape()
	p.process(d.currentSettings().NodeName, all)
	p.resources(all)
	p.volumes(all)
	p.times(all)
	return p.end()
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// process tells of polluxd itself.
func (p *page) process(node string, all []scraped) {
	p.family("build_info", gauge, "Version of polluxd and name of the node; always 1.")
	p.sample(1, "node", node, "version", service.Version)
	p.family("resources", gauge, "Resources by state: up, down, failed.")
	for _, state := range []string{adm.StateDown, adm.StateFailed, adm.StateUp} {
		n := 0
		for i := range all {
			if all[i].State == state {
				n++
			}
		}
		p.sample(float64(n), "state", state)
	}
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
		{Name: "/gc/cycles/total:gc-cycles"},
	}
	metrics.Read(samples)
	p.family("heap_bytes", gauge, "Heap in use by polluxd.")
	p.sample(float64(samples[0].Value.Uint64()))
	p.family("memory_bytes", gauge, "Memory that polluxd has from the kernel, without what it gave back.")
	p.sample(float64(samples[1].Value.Uint64() - samples[2].Value.Uint64()))
	p.family("goroutines", gauge, "Goroutines of polluxd.")
	p.sample(float64(runtime.NumGoroutine()))
	p.family("gc_cycles_total", counter, "Garbage collections of polluxd.")
	p.sample(float64(samples[3].Value.Uint64()))
}

// resources tells of connections and roles.
func (p *page) resources(all []scraped) {
	p.family("resource_up", gauge, "1 if the resource is up on this node.")
	for i := range all {
		p.sample(number(all[i].State == adm.StateUp), "resource", all[i].Name)
	}
	each := func(name, kind, help string, f func(r *adm.Resource)) {
		p.family(name, kind, help)
		for i := range all {
			if all[i].isUp {
				f(&all[i].Resource)
			}
		}
	}
	each("role", gauge, "1 for the role of this node and of the peer.", func(r *adm.Resource) {
		p.sample(1, "node", "local", "resource", r.Name, "role", r.Role)
		p.sample(1, "node", "peer", "resource", r.Name, "role", r.PeerRole)
	})
	each("connection_state", gauge, "1 for the state of the connection to the peer, in DRBD's words.", func(r *adm.Resource) {
		p.sample(1, "resource", r.Name, "state", r.Connection)
	})
	each("suspended", gauge, "1 if I/O is frozen.", func(r *adm.Resource) {
		p.sample(number(len(r.Suspended) > 0), "resource", r.Name)
	})
	each("split_brain", gauge, "1 if both nodes have written on their own.", func(r *adm.Resource) {
		p.sample(number(r.SplitBrain != ""), "resource", r.Name)
	})
	each("protocol_violations", gauge, "How often the peer has broken the protocol since the last connect.", func(r *adm.Resource) {
		broken := 0
		if r.Violation != nil {
			broken = r.Violation.Count
		}
		p.sample(float64(broken), "resource", r.Name)
	})
}

// volumeMetrics are the numbers that each volume has.
var volumeMetrics = []struct {
	name, kind, help string
	value            func(v *adm.Volume) float64
}{
	{"size_bytes", gauge, "Size of the volume.", func(v *adm.Volume) float64 { return float64(v.SizeBytes) }},
	{"out_of_sync_bytes", gauge, "What is known to differ from the peer's disk.", func(v *adm.Volume) float64 { return float64(v.OutOfSyncBytes) }},
	{"open_clients", gauge, "NBD clients that hold the volume open.", func(v *adm.Volume) float64 { return float64(v.OpenCount) }},
	{"resync_bytes", gauge, "What the resync under way has to look at; 0 if none runs.", func(v *adm.Volume) float64 { return float64(resyncOf(v).TotalBytes) }},
	{"resync_left_bytes", gauge, "What of that is left.", func(v *adm.Volume) float64 { return float64(resyncOf(v).LeftBytes) }},
	{"resync_rate_bytes_per_second", gauge, "How fast the resync under way is now.", func(v *adm.Volume) float64 { return float64(resyncOf(v).RateBytesPerSec) }},
	{"local_pending", gauge, "Operations on the local disk under way.", func(v *adm.Volume) float64 { return float64(v.LocalPending) }},
	{"peer_pending", gauge, "Requests that the peer has not answered.", func(v *adm.Volume) float64 { return float64(v.PeerPending) }},
	{"unacked", gauge, "Requests of the peer that this node has not answered.", func(v *adm.Volume) float64 { return float64(v.Unacked) }},
	{"application_pending", gauge, "Requests of clients under way.", func(v *adm.Volume) float64 { return float64(v.AppPending) }},
	{"disk_read_bytes_total", counter, "Read from the local disk.", func(v *adm.Volume) float64 { return float64(v.ReadBytes) }},
	{"disk_written_bytes_total", counter, "Written to the local disk.", func(v *adm.Volume) float64 { return float64(v.WrittenBytes) }},
	{"sent_bytes_total", counter, "Data sent to the peer.", func(v *adm.Volume) float64 { return float64(v.SentBytes) }},
	{"received_bytes_total", counter, "Data received from the peer.", func(v *adm.Volume) float64 { return float64(v.ReceivedBytes) }},
	{"activity_log_writes_total", counter, "Transactions of the activity log.", func(v *adm.Volume) float64 { return float64(v.ALWrites) }},
	{"bitmap_writes_total", counter, "Writes of pages of the bitmap.", func(v *adm.Volume) float64 { return float64(v.BitmapWrites) }},
}

func resyncOf(v *adm.Volume) adm.Resync {
	if v.Resync == nil {
		return adm.Resync{}
	}
	return *v.Resync
}

// volumes tells of disks.
func (p *page) volumes(all []scraped) {
	each := func(f func(v *adm.Volume, res, vol string)) {
		for i := range all {
			for k := range all[i].Volumes {
				v := &all[i].Volumes[k]
				f(v, all[i].Name, strconv.Itoa(v.Volume))
			}
		}
	}
	p.family("disk_state", gauge, "1 for the state of the local disk, in DRBD's words.")
	each(func(v *adm.Volume, res, vol string) { p.sample(1, "resource", res, "state", v.Disk, "volume", vol) })
	p.family("peer_disk_state", gauge, "1 for the state of the peer's disk, in DRBD's words.")
	each(func(v *adm.Volume, res, vol string) { p.sample(1, "resource", res, "state", v.PeerDisk, "volume", vol) })
	for _, m := range volumeMetrics {
		p.family(m.name, m.kind, m.help)
		each(func(v *adm.Volume, res, vol string) { p.sample(m.value(v), "resource", res, "volume", vol) })
	}
}

// label makes a name out of words.
func label(words string) string { return strings.ToLower(strings.ReplaceAll(words, " ", "_")) }

// times tells where the time of requests goes.
func (p *page) times(all []scraped) {
	each := func(want func(d perf.Dir) bool, f func(t *perf.DirTimes, res, vol string)) {
		for i := range all {
			for k, times := range all[i].times {
				for n := range times {
					if want(times[n].Dir) {
						f(&times[n], all[i].Name, strconv.Itoa(all[i].Volumes[k].Volume))
					}
				}
			}
		}
	}
	p.family("requests_total", counter, "Requests of clients and, as peer_write, of the peer's.")
	each(func(d perf.Dir) bool { return d != perf.Disk }, func(t *perf.DirTimes, res, vol string) {
		p.sample(float64(t.Requests), "kind", label(t.Dir.String()), "resource", res, "volume", vol)
	})
	for dir := range perf.Dirs {
		name, help, by := label(dir.String())+"_hop_seconds", "Where the time of a "+dir.String()+" goes; of the requests that are measured.", "hop"
		if dir == perf.Disk {
			name, help, by = "disk_operation_seconds", "Times of fdatasync, transactions of the activity log, other metadata writes: all of them.", "operation"
		}
		p.family(name, histogram, help)
		each(func(d perf.Dir) bool { return d == dir }, func(t *perf.DirTimes, res, vol string) {
			for _, h := range t.Hops {
				p.histogram(h.Snapshot, by, label(h.Hop.Name(dir)), "resource", res, "volume", vol)
			}
		})
	}
}

// metricsHandler serves /metrics.
func metricsHandler(d *Daemon) http.Handler {
	free := make(chan struct{}, maxScrapes)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", http.TimeoutHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case free <- struct{}{}:
			defer func() { <-free }()
		default:
			http.Error(w, fmt.Sprintf("%d others are being answered: try again later", maxScrapes), http.StatusServiceUnavailable)
			return
		}
		if err := servePage(w, r, d.writeMetrics); err != nil {
			d.log.Debug().Err(err).Msg("metrics: not all were sent")
		}
	}), scrapeTimeout, fmt.Sprintf("polluxd has not answered within %v", scrapeTimeout)))
	return mux
}

// startMetrics serves Prometheus, if the settings want it.
func (d *Daemon) startMetrics(m conf.Metrics) (stop func(), err error) {
	network, address := "tcp", m.Listen.String()
	switch {
	case m.Socket != "":
		network, address = "unix", m.Socket
	case !m.Listen.IsValid():
		return func() {}, nil
	}
	l, err := listenMetrics(network, address)
	if err != nil {
		return nil, fmt.Errorf("metrics: listen on %s: %w: is another polluxd there? see [metrics] in pollux.toml", address, err)
	}
	srv := &http.Server{
		Handler: metricsHandler(d), ReadTimeout: scrapeTimeout, WriteTimeout: 2 * scrapeTimeout, IdleTimeout: scrapeIdle,
		MaxHeaderBytes: maxScrapeHeader,
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := srv.Serve(newLimited(l, maxScrapeClients)); !errors.Is(err, http.ErrServerClosed) {
			d.log.Error().Err(err).Msg("metrics: not served any more")
		}
	}()
	d.log.Info().Str("address", l.Addr().String()).Msg("serving metrics")
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if srv.Shutdown(ctx) != nil {
			_ = srv.Close() // who asks for metrics does not hold up the end
		}
		<-ended
	}, nil
}

func listenMetrics(network, address string) (net.Listener, error) {
	if network == "unix" {
		return service.ListenPrivate(address)
	}
	return net.Listen(network, address)
}

// limited is a listener with a bound on how many connections are open.
type limited struct {
	net.Listener
	free chan struct{}
}

func newLimited(l net.Listener, n int) *limited {
	return &limited{l, make(chan struct{}, n)}
}

// Accept closes whoever is one too many.
func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.free <- struct{}{}:
			return &counted{Conn: conn, of: l}, nil
		default:
			conn.Close()
		}
	}
}

// counted is one of a limited listener's connections.
type counted struct {
	net.Conn
	of   *limited
	once sync.Once
}

func (c *counted) Close() error {
	c.once.Do(func() { <-c.of.free })
	return c.Conn.Close()
}
