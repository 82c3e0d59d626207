package manual

import "github.com/pollux-project/pollux/hypervisor/ha/arbiter/pair"

// New reads the records of one side, and does not wait for the peer.
func New(cfg pair.Config) (*pair.Arbiter, error) {
	cfg.Manual = true
	return pair.New(cfg)
}
