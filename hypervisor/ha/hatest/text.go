package hatest

import (
	"fmt"
	"strings"

	"github.com/pollux-project/pollux/hypervisor/ha"
)

// eventText and orderText are lines of a trace.
func eventText(e *ha.Event) string {
	switch e.Kind {
	case ha.StorageChanged:
		s := e.Storage
		return fmt.Sprintf("storage %s up=%v %s/%s connected=%v %s/%s dirty=%d term=%d promised=%d owned=%v sole=%v marked=%v unknown=%q frozen=%q reads-frozen=%v inc=%q clients=%d",
			s.Resource, s.Up, s.Role, s.PeerRole, s.Connected, s.Disk, s.PeerDisk, s.DirtyBytes, s.Term, s.Promised, s.Owned, s.Sole, s.Marked, s.TermUnknown, s.Frozen, s.ReadsFrozen, s.Incarnation, s.Clients)
	case ha.ServiceChanged:
		return fmt.Sprintf("service %s %+v", e.Service, e.Seen)
	case ha.LinkChanged:
		return fmt.Sprintf("link %d to %s up=%v", e.Link, e.Node, e.Up)
	case ha.ArbiterViewed:
		return fmt.Sprintf("viewed (%d) %+v %s", e.Order, e.View, e.Err)
	case ha.ClaimDone:
		return fmt.Sprintf("claim done (%d) outcome=%v %+v %s", e.Order, e.Outcome, e.Record, e.Err)
	case ha.OrderDone:
		return fmt.Sprintf("done (%d) %s", e.Order, e.Err)
	case ha.Commanded:
		return fmt.Sprintf("command %+v", e.Command)
	default:
		return e.Kind.String()
	}
}

func orderText(o *ha.Order) string {
	s := fmt.Sprintf("%v (%d)", o.Kind, o.ID)
	for _, x := range []string{o.Service, o.Resource, o.Node, o.Incarnation, o.Text, o.Err} {
		if x != "" {
			s += " " + x
		}
	}
	switch o.Kind {
	case ha.Claim:
		s += fmt.Sprintf(" %+v", o.Claim)
	case ha.Promote, ha.PromiseTerm, ha.Release:
		s += fmt.Sprintf(" term=%d sole=%v", o.Term, o.Sole)
	case ha.Note:
		s += fmt.Sprintf(" %s %s %s", o.Note.Level, o.Note.Topic, o.Note.Text)
	case ha.Persist:
		s += fmt.Sprintf(" %+v", o.Saved)
	default: // what was printed says it all
	}
	return strings.TrimSpace(s)
}
