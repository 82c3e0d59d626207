package repltest

import (
	"fmt"

	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// termFile is the copy of a volume's term record in the state directory. It is
// replaced as a whole, durably.
type termFile struct{ bytes []byte }

func (f *termFile) record() meta.TermRecord {
	rec, err := meta.DecodeTermRecord(f.bytes)
	if err != nil {
		return meta.TermRecord{}
	}
	return rec
}

// storeTerm is the first step of a metadata job that carries a term record.
func (n *Node) storeTerm(v *Volume, rec []byte, lost *error) func() error {
	return func() error {
		if n.faulty(failTerm) {
			*lost = ErrIO
			return nil
		}
		n.durably(func() { v.term.bytes = rec })
		return nil
	}
}

// superblock lets f change the superblock of a disk that nobody uses.
func (n *Node) superblock(v *Volume, f func(sb *meta.Superblock)) error {
	if n.alive {
		return fmt.Errorf("%s is running", n.name)
	}
	sb, l, err := meta.ReadSuperblock(v.meta, v.layout)
	if err != nil {
		return err
	}
	f(&sb)
	if err := meta.WriteSuperblock(v.meta, l, sb); err != nil {
		return err
	}
	v.meta.commit()
	return nil
}

// term is what befalls the term records of a node that is down:
//
//	foreign a             a program that knows no terms writes the superblock
//	foreign a keeps uuid  one that keeps the reserved bytes begins a generation
//	lose-state a          the state directory is lost
//	save a, roll-back a   the disk's metadata, or with state the state
//	                      directory's record, is put back as it was saved
func (s *script) term(d *directive, n *Node) bool {
	v := n.Vols[d.number("vol", 0)]
	switch d.cmd {
	case "promise":
		n.Command(replication.Command{Kind: replication.CmdPromiseTerm, Term: uint64(d.number("term", 0))}, nil)
	case "foreign":
		err := n.superblock(v, func(sb *meta.Superblock) {
			if !d.has("keeps") {
				sb.Term = meta.TermRecord{}
			}
			if d.has("uuid") {
				replication.NewCurrent(&sb.UUIDs, 0x7777777777777770, false)
			}
		})
		if err != nil {
			d.fatalf("%v", err)
		}
	case "lose-state":
		v.term.bytes = nil
	case "save":
		s.savedMeta, s.savedTerm = append([]byte(nil), v.meta.now...), v.term.bytes
	case "roll-back":
		if d.has("state") {
			v.term.bytes = s.savedTerm
		} else {
			copy(v.meta.now, s.savedMeta)
			copy(v.meta.durable, s.savedMeta)
		}
	default:
		return false
	}
	return true
}

// termText is what a node knows of its term, empty if terms are not in use.
func termText(t replication.TermSnapshot) string {
	if t == (replication.TermSnapshot{}) {
		return ""
	}
	s := fmt.Sprintf(" term=%d promised=%d", t.Term, t.Promised)
	for _, w := range []struct {
		word string
		on   bool
	}{{"owned", t.Owned}, {"sole", t.Sole}, {"override", t.Override}, {"marked", t.Marked}, {"stands-back", t.StandsBack}, {"peer-stands-back", t.PeerStandsBack}} {
		if w.on {
			s += " " + w.word
		}
	}
	if t.Unknown != "" {
		s += fmt.Sprintf(" unknown=%q", t.Unknown)
	}
	return s
}
