package hatestbed

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Link is one of the networks.
type Link string

// The networks of the rack.
const (
	Management  Link = "mgmt"
	Replication Link = "repl"
	Public      Link = "pub"
)

// subnets have the host's number as last byte.
var subnets = map[Link]string{Management: "10.77.1.", Replication: "10.77.2.", Public: "10.77.3."}

// The machine's own address and tap device, the same on both data nodes.
const (
	machineAddress = "10.77.3.10"
	machineTap     = "tap0"
	clientNumber   = 100
	bootIDPath     = "/proc/sys/kernel/random/boot_id"
)

// A Rack is the three hosts, the client's place and the cables between them.
type Rack struct {
	Hosts  []*Host // alpha, beta, witness
	client *Space
	number int // of the rack in the sandbox
}

// NewRack makes the bridges, the hosts and the client's place, all below dir.
// It must run in a sandbox, where each rack has a number, 0 to 9; racks don't
// see each other.
func NewRack(dir string, number int) (*Rack, error) {
	r := &Rack{number: number}
	for _, l := range []Link{Management, Replication, Public} {
		if err := addUp(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: r.bridge(l)}}); err != nil {
			return nil, fmt.Errorf("bridge %s: %w", l, err)
		}
	}
	for i, name := range []string{"alpha", "beta", "witness"} {
		h, err := r.newHost(name, i+1, filepath.Join(dir, name), name != "witness")
		if err != nil {
			return nil, err
		}
		r.Hosts = append(r.Hosts, h)
	}
	var err error
	if r.client, err = NewSpace("client", func() error { return loopbackUp() }); err != nil {
		return nil, err
	}
	return r, r.plug(r.client, "client", Public, clientNumber)
}

// bridge and port are the names of interfaces outside the hosts.
func (r *Rack) bridge(l Link) string { return fmt.Sprintf("%d-%s", r.number, l) }

func (r *Rack) port(host string, l Link) string { return fmt.Sprintf("%d-%s-%s", r.number, host, l) }

// addUp makes a link and puts it up.
func addUp(l netlink.Link) error {
	if err := netlink.LinkAdd(l); err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// plug connects a space with a network: an interface called like the network
// in it, the other end in the bridge.
func (r *Rack) plug(s *Space, host string, l Link, number int) error {
	far := r.port(host, l)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: far}, PeerName: string(l), PeerNamespace: netlink.NsFd(int(s.net.Fd()))}
	if err := addUp(veth); err != nil {
		return fmt.Errorf("cable %s: %w", far, err)
	}
	if err := setBridge(far, r.bridge(l)); err != nil {
		return err
	}
	return s.Do(func() error {
		link, err := netlink.LinkByName(string(l))
		if err != nil {
			return err
		}
		address := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(fmt.Sprint(subnets[l], number)), Mask: net.CIDRMask(24, 32)}}
		if err := netlink.AddrAdd(link, address); err != nil {
			return fmt.Errorf("address of %s on %s: %w", host, l, err)
		}
		return netlink.LinkSetUp(link)
	})
}

// setBridge plugs a port into a bridge.
func setBridge(name, bridge string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("cable %s: %w", name, err)
	}
	br, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", bridge, err)
	}
	return netlink.LinkSetMaster(link, br)
}

// Cut makes a link lose everything between a host and the others. The host's
// card sees no change: that is the failure which only timeouts find.
func (r *Rack) Cut(h *Host, l Link) error {
	link, err := netlink.LinkByName(r.port(h.Name, l))
	if err == nil {
		err = netlink.LinkSetNoMaster(link)
	}
	if err != nil {
		return fmt.Errorf("cut %s of %s: %w", l, h.Name, err)
	}
	return nil
}

// Mend undoes Cut.
func (r *Rack) Mend(h *Host, l Link) error { return setBridge(r.port(h.Name, l), r.bridge(l)) }

// A Host is one computer of the rack.
type Host struct {
	Name   string
	Dir    string // all its files
	Data   bool   // has a copy of the disk; else it is the witness
	space  *Space
	number int // last byte of its addresses
	boots  int
	disk   *Disk
}

// Address is the host's address on a link.
func (h *Host) Address(l Link) string { return fmt.Sprint(subnets[l], h.number) }

func (h *Host) path(name string) string { return filepath.Join(h.Dir, name) }

func (r *Rack) newHost(name string, number int, dir string, data bool) (*Host, error) {
	h := &Host{Name: name, Dir: dir, Data: data, number: number}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := h.newBoot(); err != nil {
		return nil, err
	}
	var err error
	h.space, err = NewSpace(name, func() error {
		if err := unix.Mount(h.path("boot_id"), bootIDPath, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("boot id: %w", err)
		}
		return loopbackUp()
	})
	if err != nil {
		return nil, err
	}
	for _, l := range h.links() {
		if err := r.plug(h.space, name, l, number); err != nil {
			return nil, err
		}
	}
	if !data {
		return h, nil
	}
	return h, h.space.Do(h.machineNetwork)
}

// links are the networks that the host has a card for.
func (h *Host) links() []Link {
	if h.Data {
		return []Link{Management, Replication, Public}
	}
	return []Link{Management}
}

// machineNetwork moves the host's card of the public network into a bridge, and
// makes a tap device for the machine beside it.
func (h *Host) machineNetwork() error {
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: machineTap}, Mode: netlink.TUNTAP_MODE_TAP}
	for _, l := range []netlink.Link{bridge, tap} {
		if err := addUp(l); err != nil {
			return fmt.Errorf("%s of %s: %w", l.Attrs().Name, h.Name, err)
		}
	}
	return errors.Join(setBridge(machineTap, "br0"), setBridge(string(Public), "br0"))
}

// newBoot gives the host another boot id, in the same file: it is mounted.
func (h *Host) newBoot() error {
	h.boots++
	return os.WriteFile(h.path("boot_id"), fmt.Appendf(nil, "%08x-0000-4000-8000-%012x\n", h.number, h.boots), 0o644)
}

// Reboot is what the next power-on begins with: another boot id, and nothing
// left in the directories that a boot empties.
func (h *Host) Reboot() error {
	if err := os.RemoveAll(h.path("run")); err != nil {
		return err
	}
	return errors.Join(os.Mkdir(h.path("run"), 0o700), h.newBoot())
}

// Close kills everything on all hosts and lets their namespaces go.
func (r *Rack) Close() error {
	var errs []error
	for _, h := range r.Hosts {
		errs = append(errs, h.space.Kill(), h.space.Close())
		if h.disk != nil {
			errs = append(errs, h.disk.Close())
		}
		errs = append(errs, r.unplug(h.Name, h.Data))
	}
	errs = append(errs, r.client.Close(), r.unplug("client", true))
	for _, l := range []Link{Management, Replication, Public} {
		errs = append(errs, remove(r.bridge(l)))
	}
	return errors.Join(errs...)
}

func (r *Rack) unplug(host string, all bool) error {
	var errs []error
	for l := range subnets {
		if name := r.port(host, l); all || l == Management {
			errs = append(errs, remove(name))
		}
	}
	return errors.Join(errs...)
}

// remove deletes an interface; one that is gone already is no error: its other
// end may have been deleted with a namespace.
func remove(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}
