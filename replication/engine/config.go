package engine

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// VolumeConfig is one volume of a resource.
type VolumeConfig struct {
	Number    int
	Minor     int
	Device    string // "/dev/drbd0", for people
	Disk      string // backing device or file; "" is none
	MetaDisk  string // "" is internal
	MetaIndex int    // slot of an indexed MetaDisk, -1 is flexible
	Direct    bool   // O_DIRECT
	Options   replication.DiskOptions
}

// Config is one resource.
type Config struct {
	Resource      string
	Node          string // this node's name
	PeerName      string
	Local, Peer   netip.AddrPort
	Net           replication.NetOptions
	TLS           *TLS // nil: plaintext
	NoDataSuspend bool // on-no-data-accessible suspend-io
	Volumes       []VolumeConfig
	Handlers      map[string]string // command lines for /bin/sh -c
	HandlerEnv    []string
	StateDir      string // "" keeps nothing across restarts
	BootID        string
	PerfEvery     int // at least one of so many requests is measured; 0: none
	Log           zerolog.Logger
}

// Validate reports what cannot work, by resource and option.
func (c *Config) Validate() error {
	switch {
	case c.Resource == "":
		return errors.New("resource without a name")
	case len(c.Volumes) == 0:
		return fmt.Errorf("%s: no volumes", c.Resource)
	case c.TLS != nil && (c.TLS.Certificate == "" || c.TLS.Key == "" || c.TLS.CA == "" || len(c.TLS.Names) == 0 || len(c.TLS.PeerNames) == 0):
		return fmt.Errorf("%s: TLS needs a certificate, a key, a CA, and the names of both nodes", c.Resource)
	}
	for _, o := range []struct{ name, alg string }{
		{"data-integrity-alg", c.Net.DataIntegrityAlg}, {"verify-alg", c.Net.VerifyAlg}, {"csums-alg", c.Net.CsumsAlg},
	} {
		if _, err := drbd.NewDigest(o.alg); o.alg != "" && err != nil {
			return fmt.Errorf("%s: option %s: %w", c.Resource, o.name, err)
		}
	}
	if c.Net.AllowTwoPrimaries && c.Net.Protocol != 'C' {
		return fmt.Errorf("%s: allow-two-primaries needs protocol C, found protocol %c", c.Resource, c.Net.Protocol)
	}
	return nil
}
