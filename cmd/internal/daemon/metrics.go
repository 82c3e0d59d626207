package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

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

// The buckets of the histograms have powers of two as upper bounds: 2^13 ns
// (8 us) to 2^33 ns (8.6 s), which are bounds of the buckets of package perf.
const minBucket, maxBucket = 13, 33

// A collector tells Prometheus what polluxd knows. It reads snapshots, at each scrape.
type collector struct {
	d *Daemon

	info, up, resources                                     *prometheus.Desc
	role, connection, suspended, splitBrain, violations     *prometheus.Desc
	disk, peerDisk, size, outOfSync, open                   *prometheus.Desc
	resyncTotal, resyncLeft, resyncRate                     *prometheus.Desc
	read, written, sent, received, alWrites, bitmapWrites   *prometheus.Desc
	localPending, peerPending, unacked, appPending          *prometheus.Desc
	requests, operation, heap, memory, goroutines, gcPauses *prometheus.Desc
	hops                                                    map[perf.Dir]*prometheus.Desc
}

func newCollector(d *Daemon) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("pollux_"+name, help, labels, nil)
	}
	res := func(name, help string, more ...string) *prometheus.Desc {
		return desc(name, help, append([]string{"resource"}, more...)...)
	}
	vol := func(name, help string, more ...string) *prometheus.Desc {
		return res(name, help, append([]string{"volume"}, more...)...)
	}
	c := &collector{
		d:         d,
		info:      desc("build_info", "Version of polluxd and name of the node; always 1.", "version", "node"),
		resources: desc("resources", "Resources by state: up, down, failed.", "state"),
		heap:      desc("heap_bytes", "Heap in use by polluxd."),
		memory:    desc("memory_bytes", "Memory that polluxd has from the kernel, without what it gave back."),

		goroutines: desc("goroutines", "Goroutines of polluxd."),
		gcPauses:   desc("gc_cycles_total", "Garbage collections of polluxd."),

		up:         res("resource_up", "1 if the resource is up on this node."),
		role:       res("role", "1 for the role of this node and of the peer.", "node", "role"),
		connection: res("connection_state", "1 for the state of the connection to the peer, in DRBD's words.", "state"),
		suspended:  res("suspended", "1 if I/O is frozen."),
		splitBrain: res("split_brain", "1 if both nodes have written on their own."),
		violations: res("protocol_violations", "How often the peer has broken the protocol since the last connect."),

		disk:         vol("disk_state", "1 for the state of the local disk, in DRBD's words.", "state"),
		peerDisk:     vol("peer_disk_state", "1 for the state of the peer's disk, in DRBD's words.", "state"),
		size:         vol("size_bytes", "Size of the volume."),
		outOfSync:    vol("out_of_sync_bytes", "What is known to differ from the peer's disk."),
		open:         vol("open_clients", "NBD clients that hold the volume open."),
		resyncTotal:  vol("resync_bytes", "What the resync under way has to look at; 0 if none runs."),
		resyncLeft:   vol("resync_left_bytes", "What of that is left."),
		resyncRate:   vol("resync_rate_bytes_per_second", "How fast the resync under way is now."),
		read:         vol("disk_read_bytes_total", "Read from the local disk."),
		written:      vol("disk_written_bytes_total", "Written to the local disk."),
		sent:         vol("sent_bytes_total", "Data sent to the peer."),
		received:     vol("received_bytes_total", "Data received from the peer."),
		alWrites:     vol("activity_log_writes_total", "Transactions of the activity log."),
		bitmapWrites: vol("bitmap_writes_total", "Writes of pages of the bitmap."),
		localPending: vol("local_pending", "Operations on the local disk under way."),
		peerPending:  vol("peer_pending", "Requests that the peer has not answered."),
		unacked:      vol("unacked", "Requests of the peer that this node has not answered."),
		appPending:   vol("application_pending", "Requests of clients under way."),

		requests:  vol("requests_total", "Requests of clients and, as peer_write, of the peer's.", "kind"),
		operation: vol("disk_operation_seconds", "Times of fdatasync, transactions of the activity log, other metadata writes: all of them.", "operation"),
		hops:      map[perf.Dir]*prometheus.Desc{},
	}
	for dir := range perf.Disk {
		c.hops[dir] = vol(label(dir.String())+"_hop_seconds", "Where the time of a "+dir.String()+" goes; of the requests that are measured.", "hop")
	}
	return c
}

// label makes a name out of words.
func label(words string) string { return strings.ToLower(strings.ReplaceAll(words, " ", "_")) }

// Describe implements prometheus.Collector: which series there are depends on
// the resources, so none is promised.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	c.process(ch, gauge)
	states := map[string]int{adm.StateUp: 0, adm.StateDown: 0, adm.StateFailed: 0}
	for _, r := range c.d.sorted() {
		st := r.status()
		states[st.State]++
		gauge(c.up, number(st.State == adm.StateUp), st.Name)
		eng := r.engine()
		if st.State != adm.StateUp || eng == nil {
			continue
		}
		gauge(c.role, 1, st.Name, "local", st.Role)
		gauge(c.role, 1, st.Name, "peer", st.PeerRole)
		gauge(c.connection, 1, st.Name, st.Connection)
		gauge(c.suspended, number(len(st.Suspended) > 0), st.Name)
		gauge(c.splitBrain, number(st.SplitBrain != ""), st.Name)
		broken := 0
		if st.Violation != nil {
			broken = st.Violation.Count
		}
		gauge(c.violations, float64(broken), st.Name)
		for _, v := range st.Volumes {
			c.volume(ch, st.Name, v)
			c.times(ch, []string{st.Name, strconv.Itoa(v.Volume)}, eng.Perf(v.Volume))
		}
	}
	for state, n := range states {
		gauge(c.resources, float64(n), state)
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// process tells of polluxd itself.
func (c *collector) process(ch chan<- prometheus.Metric, gauge func(*prometheus.Desc, float64, ...string)) {
	gauge(c.info, 1, service.Version, c.d.currentSettings().NodeName)
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
		{Name: "/gc/cycles/total:gc-cycles"},
	}
	metrics.Read(samples)
	gauge(c.heap, float64(samples[0].Value.Uint64()))
	gauge(c.memory, float64(samples[1].Value.Uint64()-samples[2].Value.Uint64()))
	gauge(c.goroutines, float64(runtime.NumGoroutine()))
	ch <- prometheus.MustNewConstMetric(c.gcPauses, prometheus.CounterValue, float64(samples[3].Value.Uint64()))
}

func (c *collector) volume(ch chan<- prometheus.Metric, res string, v adm.Volume) {
	labels := []string{res, strconv.Itoa(v.Volume)}
	resync := adm.Resync{}
	if v.Resync != nil {
		resync = *v.Resync
	}
	for _, g := range []struct {
		desc  *prometheus.Desc
		value float64
	}{
		{c.size, float64(v.SizeBytes)},
		{c.outOfSync, float64(v.OutOfSyncBytes)},
		{c.open, float64(v.OpenCount)},
		{c.resyncTotal, float64(resync.TotalBytes)},
		{c.resyncLeft, float64(resync.LeftBytes)},
		{c.resyncRate, float64(resync.RateBytesPerSec)},
		{c.localPending, float64(v.LocalPending)},
		{c.peerPending, float64(v.PeerPending)},
		{c.unacked, float64(v.Unacked)},
		{c.appPending, float64(v.AppPending)},
	} {
		ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.value, labels...)
	}
	ch <- prometheus.MustNewConstMetric(c.disk, prometheus.GaugeValue, 1, append(labels, v.Disk)...)
	ch <- prometheus.MustNewConstMetric(c.peerDisk, prometheus.GaugeValue, 1, append(labels, v.PeerDisk)...)
	for _, n := range []struct {
		desc  *prometheus.Desc
		value uint64
	}{
		{c.read, v.ReadBytes},
		{c.written, v.WrittenBytes},
		{c.sent, v.SentBytes},
		{c.received, v.ReceivedBytes},
		{c.alWrites, v.ALWrites},
		{c.bitmapWrites, v.BitmapWrites},
	} {
		ch <- prometheus.MustNewConstMetric(n.desc, prometheus.CounterValue, float64(n.value), labels...)
	}
}

// times tells where the time of a volume's requests goes.
func (c *collector) times(ch chan<- prometheus.Metric, labels []string, v *perf.Volume) {
	for _, d := range v.Snapshot() {
		if d.Dir != perf.Disk {
			ch <- prometheus.MustNewConstMetric(c.requests, prometheus.CounterValue, float64(d.Requests), append(labels, label(d.Dir.String()))...)
		}
		for _, h := range d.Hops {
			desc, of := c.hops[d.Dir], append(labels, label(h.Hop.Name(d.Dir)))
			if d.Dir == perf.Disk {
				desc = c.operation
			}
			bounds := map[float64]uint64{}
			for p := minBucket; p <= maxBucket; p++ {
				bounds[float64(uint64(1)<<p)/1e9] = h.Below(p)
			}
			ch <- prometheus.MustNewConstHistogram(desc, h.Count, float64(h.Sum)/1e9, bounds, of...)
		}
	}
}

// metricsHandler serves /metrics.
func metricsHandler(d *Daemon) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(newCollector(d))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes, Timeout: scrapeTimeout}))
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
