package ha

import "testing"

// started is a cluster in which web runs on a, and both copies count.
func started(t *testing.T, cfg Config) *world {
	t.Helper()
	w := newWorld(t, cfg)
	for _, h := range w.hosts {
		h.on()
	}
	w.until("web runs on a", 15000, func() bool { return w.runsOn("web") == "a" && w.host("a").vms["web"].ips })
	w.run(3000)
	if r := w.arb.records["r0"]; r.Owner != "a" || len(r.InSync) != 2 {
		t.Fatalf("record %+v", r)
	}
	return w
}

func TestStart(t *testing.T) {
	started(t, testConfig(ArbiterEtcd)).run(60000)
}
