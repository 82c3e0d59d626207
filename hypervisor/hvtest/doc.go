// Package hvtest tests hypervisor adapters and those who use them: [Fake] is
// a hypervisor without machines, [Run] the suite that each adapter must pass.
//
//	func TestConformance(t *testing.T) {
//		hvtest.Run(t, func(t *testing.T) hvtest.Subject {
//			m := new(hvtest.Machine)
//			return hvtest.Subject{Open: func() hypervisor.Hypervisor { return hvtest.NewFake(m) }, …}
//		})
//	}
package hvtest
