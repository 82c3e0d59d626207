package hatestbed

import "context"

func (s *Site) startWitness(ctx context.Context, h *Host) error {
	return s.Start(ctx, h, "pollux-witness")
}

func (s *Site) arbiterOptions() map[string]string { return nil }
