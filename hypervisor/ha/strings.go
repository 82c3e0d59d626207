package ha

import "fmt"

var eventNames = [...]string{
	Started: "Started", Ticked: "Ticked", Reconfigured: "Reconfigured", StorageChanged: "StorageChanged", ServiceChanged: "ServiceChanged",
	HealthChanged: "HealthChanged", Heartbeat: "Heartbeat", LinkChanged: "LinkChanged", ArbiterChanged: "ArbiterChanged",
	ArbiterViewed: "ArbiterViewed", ClaimDone: "ClaimDone", OrderDone: "OrderDone", Commanded: "Commanded", Fenced: "Fenced",
}

// String is the constant's name.
func (k EventKind) String() string { return nameOf(eventNames[:], "EventKind", uint8(k)) }

var orderNames = [...]string{
	Renew: "Renew", Observe: "Observe", Claim: "Claim", Release: "Release", Resign: "Resign", PromiseTerm: "PromiseTerm",
	Promote: "Promote", Demote: "Demote", Export: "Export", Unexport: "Unexport", FreezeReads: "FreezeReads", TellLease: "TellLease",
	StartService: "StartService", StopService: "StopService", KillService: "KillService", AddIPs: "AddIPs", RemoveIPs: "RemoveIPs",
	Hook: "Hook", Fence: "Fence", Watchdog: "Watchdog", Persist: "Persist", SendBeat: "SendBeat", Note: "Note", Answer: "Answer",
}

// String is the constant's name.
func (k OrderKind) String() string { return nameOf(orderNames[:], "OrderKind", uint8(k)) }

var outcomeNames = [...]string{
	Granted: "Granted", Changed: "Changed", Held: "Held", Stale: "Stale", Behind: "Behind", Invalid: "Invalid", Unreachable: "Unreachable",
}

// String is the constant's name.
func (o Outcome) String() string { return nameOf(outcomeNames[:], "Outcome", uint8(o)) }

func nameOf(names []string, kind string, n uint8) string {
	if int(n) < len(names) && names[n] != "" {
		return names[n]
	}
	return fmt.Sprintf("%s(%d)", kind, n)
}
