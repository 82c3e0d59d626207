package hatest

import "testing"

// The disk of the Primary fails, and its peer's copy is the only one that has what is
// written since. The disk is there again while the link is cut: whatever has been
// started anew meanwhile, it must not be taken for one that has everything.
func TestDiskThatFailedIsBack(t *testing.T) {
	tests := []struct {
		name    string
		restart func(s *scene) (start func())
	}{
		{"the daemon was started anew", func(s *scene) func() {
			s.a.KillPolluxd()
			return s.a.StartPolluxd
		}},
		{"daemon and manager were", func(s *scene) func() {
			s.a.KillPolluxd()
			s.a.manager.crash()
			return func() { s.a.StartPolluxd(); s.a.manager.start() }
		}},
		{"the host was", func(s *scene) func() {
			s.a.PowerOff(1)
			return s.a.Boot
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t)
			s.p.node(s.a).FailDisk()
			s.pass(5000)
			mend := s.cutData(s.a)
			start := tt.restart(s)
			s.p.node(s.a).MendDisk()
			s.pass(500)
			start()
			s.pass(20_000)
			mend()
			s.settles()
		})
	}
}
