package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// A link is what is between the two nodes when it is not loopback: the second
// node in a network namespace of its own, reached over a veth pair whose both
// ends limit the bandwidth and add a delay.
type link struct {
	lab    *lab
	keeper *process // keeps the second namespace
}

// linkHosts are the addresses of the nodes. Source: RFC 5737, TEST-NET-1.
var linkHosts = [2]string{"192.0.2.1", "192.0.2.2"}

// Names of the two ends.
const (
	linkNear = "pollux-a"
	linkFar  = "pollux-b"
)

// errNoLink wraps the reasons why this machine can't make a link.
var errNoLink = errors.New("the link between the nodes can't be made")

// newLink makes the namespace and the link. This process must be in a namespace
// of its own already: the near end is made there.
func newLink(ctx context.Context, cfg Config) (l *link, err error) {
	if !cfg.Isolated {
		return nil, fmt.Errorf("%w: there is no network namespace for it", errNoLink)
	}
	if text := lacking("ip", "tc", "nsenter"); text != "" {
		return nil, fmt.Errorf("%w: %s", errNoLink, text)
	}
	dir, err := newLab(cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, dir.close(false))
		}
	}()
	l = &link{lab: dir}
	if l.keeper, err = l.lab.start("unshare", "--net", "--", "sleep", "infinity"); err != nil {
		return nil, err
	}
	// The name of the far end is taken by the namespace only when unshare is through.
	if err := l.lab.await(ctx, l.keeper, func(ctx context.Context) error {
		return order(ctx, l.far("ip", "link", "show", "lo")...)
	}); err != nil {
		return nil, err
	}
	near := func(args ...string) []string { return args }
	orders := [][]string{{"ip", "link", "add", linkNear, "type", "veth", "peer", "name", linkFar, "netns", fmt.Sprint(l.keeper.pid())}}
	for n, end := range []struct {
		dev string
		in  func(...string) []string
	}{{linkNear, near}, {linkFar, l.far}} {
		orders = append(orders,
			end.in("ip", "address", "add", linkHosts[n]+"/24", "dev", end.dev),
			end.in("ip", "link", "set", end.dev, "up"),
			end.in("ip", "link", "set", "lo", "up"),
			end.in("ip", "route", "replace", "192.0.2.0/24", "dev", end.dev, "src", linkHosts[n], "quickack", "1"),
		)
		for _, words := range shaping(end.dev, cfg.BandwidthMbit, cfg.DelayMicros) {
			orders = append(orders, end.in(words...))
		}
	}
	for _, words := range orders {
		if err := order(ctx, words...); err != nil {
			return nil, fmt.Errorf("%w: %w", errNoLink, err)
		}
	}
	return l, nil
}

// shaping are the orders that limit what leaves by dev. 0 = no limit, no delay.
func shaping(dev string, bandwidthMbit, delayMicros float64) (orders [][]string) {
	parent := []string{"root"}
	if delayMicros > 0 {
		orders = append(orders, []string{"tc", "qdisc", "add", "dev", dev, "root", "handle", "1:", "netem", "delay", fmt.Sprintf("%.0fus", delayMicros), "limit", "100000"})
		parent = []string{"parent", "1:1"}
	}
	if bandwidthMbit > 0 {
		// What 2 ms send, and never less than two of the largest packets.
		burst := max(128<<10, int(bandwidthMbit*1e6/8*0.002))
		words := append([]string{"tc", "qdisc", "add", "dev", dev}, parent...)
		orders = append(orders, append(words, "handle", "2:", "tbf", "rate", fmt.Sprintf("%gmbit", bandwidthMbit), "burst", fmt.Sprint(burst), "latency", "100ms"))
	}
	return orders
}

// order runs a program of iproute2; its refusals about qdiscs get what they
// mean.
func order(ctx context.Context, words ...string) error {
	out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput()
	if err == nil {
		return nil
	}
	text := string(bytes.TrimSpace(out))
	for _, kind := range []string{"netem", "tbf"} {
		if strings.Contains(strings.Join(words, " "), " "+kind+" ") && strings.Contains(text, "qdisc kind is unknown") {
			return fmt.Errorf("this kernel has no %s (CONFIG_NET_SCH_%s, module sch_%s)", kind, strings.ToUpper(kind), kind)
		}
	}
	return fmt.Errorf("%s: %w: %s", strings.Join(words, " "), err, text)
}

// far is how a program starts on the second node.
func (l *link) far(words ...string) []string {
	return append([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", l.keeper.pid()), "--"}, words...)
}

// onNode is how a program starts on node 0 or 1; a nil link is loopback.
func (l *link) onNode(node int, words ...string) []string {
	if l == nil || node == 0 {
		return words
	}
	return l.far(words...)
}

// host is the address of node 0 or 1.
func (l *link) host(node int) string {
	if l == nil {
		return "127.0.0.1"
	}
	return linkHosts[node]
}

// close ends the namespace, and with it the link.
func (l *link) close() error { return l.lab.close(false) }
