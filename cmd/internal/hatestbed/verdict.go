package hatestbed

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/pollux-project/pollux/cmd/internal/demo/records"
	"github.com/pollux-project/pollux/cmd/internal/demo/storage"
	"github.com/pollux-project/pollux/protocol/adm"
)

// The files that the guest writes.
const (
	ledgerFile = "/ledger"  // what the client has sent
	ownFile    = "/records" // what the guest writes by itself, all the time
)

// readLimit is for a bridge that sends the client's packets to the wrong host:
// a stopped host that wakes may say a last word.
const readLimit = 40 * time.Second

// ReadBack compares what the client was promised since a moment with what the
// machine that runs now has.
func (s *Site) ReadBack(ctx context.Context, since time.Time) ([]records.Loss, error) {
	acked := s.Customer.Acked(since)
	if len(acked) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	var found map[uint64]records.Record
	var last error
	err := until(ctx, "the machine's ledger", func() (bool, error) {
		found, last = s.Customer.ReadBack(ctx, acked[0].Number)
		return last == nil, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the ledger back from the machine: %w", errors.Join(err, last))
	}
	return records.Judge(acks(acked), found, nil), nil
}

func acks(acked []Acked) []records.Ack {
	list := make([]records.Ack, len(acked))
	for i, a := range acked {
		list[i] = a.Ack
	}
	return list
}

// consoleAcks are the acknowledgements that the machine has printed, on all hosts.
func (s *Site) consoleAcks() (list []records.Ack) {
	for _, h := range s.dataHosts() {
		for _, b := range s.consoles[h.Name].Boots() {
			for _, a := range b.Acks {
				list = append(list, a.Ack)
			}
		}
	}
	return list
}

// ReadDisk compares all that was ever acknowledged, to the client and on the
// consoles, with a host's own disk. Nothing may write to it any more.
func (s *Site) ReadDisk(ctx context.Context, h *Host) (acked int, lost []records.Loss, err error) {
	for file, promised := range map[string][]records.Ack{ledgerFile: acks(s.Customer.Acked(time.Time{})), ownFile: s.consoleAcks()} {
		found, damaged, err := storage.ReadRecords(ctx, h.disk.Device, file, filepath.Join(s.Dir, "dump"))
		if err != nil {
			return 0, nil, err
		}
		acked += len(promised)
		lost = append(lost, records.Judge(promised, found, damaged)...)
	}
	return acked, lost, nil
}

// A Late acknowledgement came from a machine after a newer one had begun to acknowledge.
type Late struct {
	Ack            ConsoleAck
	Host, Newer    string        // hosts of the two machines
	After          time.Duration // since the newer one's first acknowledgement
	OfBoot, ByBoot time.Time     // when their kernels started
}

// LateAcks returns what an older machine has acknowledged beside a newer one.
// One that was said before a pause and printed after it is among them: it is
// harmless if the record is there.
func (s *Site) LateAcks(since time.Time) []Late {
	var boots []Boot
	for _, h := range s.dataHosts() {
		boots = append(boots, s.consoles[h.Name].Boots()...)
	}
	return lateAcks(boots, since)
}

func lateAcks(boots []Boot, since time.Time) (late []Late) {
	slices.SortFunc(boots, func(a, b Boot) int { return a.Kernel.Compare(b.Kernel) })
	for i, old := range boots {
		for _, newer := range boots[i+1:] {
			if newer.Host == old.Host || len(newer.Acks) == 0 {
				continue
			}
			first := newer.Acks[0].At
			for _, a := range slices.Backward(old.Acks) {
				if !a.At.After(first) {
					break
				}
				if a.At.After(since) {
					late = append(late, Late{Ack: a, Host: old.Host, Newer: newer.Host, After: a.At.Sub(first), OfBoot: old.Kernel, ByBoot: newer.Kernel})
				}
			}
			break
		}
	}
	return late
}

// finish shuts the machine down and compares all that was acknowledged with both
// disks.
func (s *Site) finish(ctx context.Context, rep *Report) error {
	p := s.Primary()
	if p == nil {
		return errors.New("at the end there is not one Primary")
	}
	if err := p.order(ctx, adm.HARequest{Cmd: adm.HAVMStop, VM: vmName}, nil); err != nil {
		return err
	}
	if boots := s.consoles[p.Name].Boots(); len(boots) == 0 || !boots[len(boots)-1].Halted {
		rep.fault(0, "arbiter %s: the guest did not shut down in order", s.Arbiter)
	}
	if err := errors.Join(s.Hosts[0].space.Kill(), s.Hosts[1].space.Kill()); err != nil {
		return err
	}
	for _, h := range s.dataHosts() {
		_, lost, err := s.ReadDisk(ctx, h)
		if err != nil {
			return err
		}
		for i, l := range lost {
			if i == 5 {
				rep.fault(len(lost)-i, "arbiter %s: %s's disk: and %d more", s.Arbiter, h.Name, len(lost)-i)
				break
			}
			rep.fault(1, "arbiter %s: %s's disk: record %d: %s", s.Arbiter, h.Name, l.Ack.Number, l.Why)
		}
		if err := storage.CheckFilesystem(ctx, h.disk.Device); err != nil {
			rep.fault(0, "arbiter %s: %s's filesystem: %v", s.Arbiter, h.Name, err)
		}
	}
	if at, err := storage.SameContent(s.Hosts[0].disk.Device, s.Hosts[1].disk.Device, diskBytes-metadataBytes); err != nil {
		return err
	} else if at >= 0 {
		rep.fault(0, "arbiter %s: the two disks differ, first at byte %d", s.Arbiter, at)
	}
	rep.secondWriters(s.LateAcks(time.Time{}))
	return nil
}

// secondWriters: of each guest that was replaced one acknowledgement may have
// been on its way to the console. More are a second writer's.
func (rep *Report) secondWriters(late []Late) {
	type replaced struct {
		host string
		boot time.Time
	}
	count := map[replaced]int{}
	for _, l := range late {
		key := replaced{l.Host, l.OfBoot}
		if count[key]++; count[key] == 2 {
			rep.fault(1, "two guests acknowledged at once: record %d on %s, %v after the first on %s", l.Ack.Number, l.Host, l.After, l.Newer)
		}
	}
}
