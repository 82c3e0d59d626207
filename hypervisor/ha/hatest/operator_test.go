package hatest

import (
	"strings"
	"testing"

	"github.com/pollux-project/pollux/hypervisor/ha"
)

// TestMoveWhileItStops: one operator stops the VM, another one moves it before it has
// ended. The stop is not undone by that.
func TestMoveWhileItStops(t *testing.T) {
	for _, verb := range []ha.Verb{ha.MoveVerb, ha.RestartVerb} {
		s := newScene(t)
		s.b.manager.operatorStops(s.s)
		s.Run(90)
		id := s.b.manager.command(ha.Command{Verb: verb, Service: s.s.name})
		s.until("it is stopped", 10_000, func() bool { return len(s.s.vms) == 0 })
		if err := s.b.manager.answers[id]; !strings.Contains(err, "an operator has stopped it") || !strings.Contains(err, "polluxadm vm start vm0") {
			s.fatal("%s was answered by %q", verb, err)
		}
		s.nowhere()
		if !s.s.stopped.on {
			s.fatal("who has stopped it was not told")
		}
		s.operatorStarts(s.s)
		s.settles()
	}
}

// TestStartWhileItStops: the later order counts, and who gave the earlier one is told.
func TestStartWhileItStops(t *testing.T) {
	s := newScene(t)
	id := s.a.manager.command(ha.Command{Verb: ha.StopVerb, Service: s.s.name})
	s.Run(90)
	s.b.manager.command(ha.Command{Verb: ha.StartVerb, Service: s.s.name, NoWait: true})
	s.until("the first one is told", 5000, func() bool { return s.a.manager.answers[id] != "" })
	if err := s.a.manager.answers[id]; !strings.Contains(err, "a later order, given on b") {
		s.fatal("the stop was answered by %q", err)
	}
	s.settles()
}
