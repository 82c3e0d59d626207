package arbitertest_test

import (
	"testing"
	"time"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/arbitertest"
)

func TestConformance(t *testing.T) {
	arbitertest.Run(t, func(*testing.T) arbitertest.Subject {
		clock := new(arbitertest.Clock)
		m := arbitertest.NewModel(6*time.Second, clock.Now)
		return arbitertest.Subject{
			Open:    func(*testing.T, string) arbiter.Arbiter { return m.Client() },
			Advance: clock.Advance,
			Restart: func(*testing.T) { m.Restart() },
			Backup: func(*testing.T) func(*testing.T) {
				saved := m.Backup()
				return func(*testing.T) { m.Restore(saved) }
			},
			Cut: func(*testing.T) func() {
				m.SetDown(true)
				return func() { m.SetDown(false) }
			},
		}
	})
}
