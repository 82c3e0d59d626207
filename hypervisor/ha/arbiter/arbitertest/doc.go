// Package arbitertest tests arbiters and those who use them: [Model] is an arbiter
// in memory with a clock that the test moves, [Run] the suite that each adapter
// passes.
//
//	func TestConformance(t *testing.T) {
//		arbitertest.Run(t, func(t *testing.T) arbitertest.Subject {
//			clock := new(arbitertest.Clock)
//			m := arbitertest.NewModel(6*time.Second, clock.Now)
//			return arbitertest.Subject{
//				Open:    func(*testing.T, string) arbiter.Arbiter { return m.Client() },
//				Advance: clock.Advance,
//				Restart: func(*testing.T) { m.Restart() },
//			}
//		})
//	}
package arbitertest
