package repltest

// A feature is what one part of the engine adds to simulated histories. All of
// its functions may be nil.
type feature struct {
	name string
	// choose draws what the histories are about: options, sizes. Its dice are
	// its own: a new feature changes nothing of what the others choose.
	choose   func(d *dice, c *Config)
	troubles []*trouble
	// begin is called once, when the first node is being promoted.
	begin func(s *sim)
	// heal undoes what keeps the nodes from coming to rest. It is called once,
	// after the last trouble; faults end here.
	heal func(s *sim)
	// quiet checks what must hold at the end, when both copies are equal.
	quiet func(s *sim)
}

// A trouble is one thing that may happen to node n. What it draws (s.w.pick,
// s.w.chance, s.w.jitter) comes from a seed of its own.
type trouble struct {
	name   string
	weight int // the more, the more often; those of the machine are about 100 in all
	do     func(s *sim, n *Node)
}

// features are all there are: each has a file of its own, sim_<name>.go.
// The order counts: a later one sees what the earlier ones chose.
var features = []*feature{
	&machineFeature,
	&operatorFeature,
	&faultsFeature,
	&resyncFeature,
	&congestFeature,
	&opsFeature,
	&verifyFeature,
	&twoPrimariesFeature,
	&integrityFeature,
	&resizeFeature,
	&lossFeature,
	&termFeature,
	&hangFeature,
	&optionsFeature,
	&blocksFeature,
	&kernelPeerFeature,
}

// allTroubles returns those of all features, and the sum of their weights.
func allTroubles() (all []*trouble, total int) {
	for _, f := range features {
		for _, t := range f.troubles {
			all = append(all, t)
			total += t.weight
		}
	}
	return all, total
}
