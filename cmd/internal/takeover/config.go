package takeover

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/pollux-project/pollux/conf"
)

// Config says whether a resource's configuration can be run here. withoutEffect
// are the options of it that Pollux does not have; isLocal tells this machine's
// addresses.
func (m Machine) Config(r *conf.Resource, withoutEffect []string, isLocal func(netip.Addr) bool) []Finding {
	volumes := "1 volume"
	if n := len(r.Volumes); n != 1 {
		volumes = fmt.Sprintf("%d volumes", n)
	}
	fs := []Finding{{About: "config", Text: fmt.Sprintf("%s: %s, protocol %s, peer %s", r.File, volumes, r.Net.Protocol, r.Peer.Name)}}
	for _, text := range withoutEffect {
		fs = append(fs, Finding{Verdict: Note, About: "config", Text: text})
	}
	if !isLocal(r.Local.Addr.Addr()) {
		fs = append(fs, Finding{
			Verdict: Wrong, About: "config", Text: fmt.Sprintf("%s is not an address of this machine", r.Local.Addr.Addr()),
			Do: []string{"bring the network interface up, or correct the configuration"},
		})
	}
	return fs
}

// Device warns of those who expect a block device that will not be there.
func (m Machine) Device(name string, vols []conf.Volume, attach string) []Finding {
	if attach != "none" {
		return nil
	}
	var fs []Finding
	fstab, _ := os.ReadFile(m.path("/etc/fstab")) // without one nobody mounts by it
	for _, v := range vols {
		f := Finding{Verdict: Note, About: "device", Text: fmt.Sprintf("there will be no %s: attach-device in pollux.toml is \"none\", clients use the NBD export", v.Device)}
		for line := range strings.Lines(string(fstab)) {
			w := strings.Fields(line)
			if len(w) > 1 && (w[0] == v.Device || strings.HasPrefix(w[0], "/dev/drbd/by-res/"+name)) {
				f.Verdict = Wrong
				f.Text = fmt.Sprintf("/etc/fstab mounts %s on %s, but there will be no such device: attach-device in pollux.toml is \"none\"", w[0], w[1])
				f.Do = []string{"set attach-device = \"nbd\" in pollux.toml and restart polluxd"}
			}
		}
		fs = append(fs, f)
	}
	return fs
}
