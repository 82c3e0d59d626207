package metacli

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// An alState is one state that an activity log can be in when its owner dies.
type alState struct {
	seed         uint64
	placement    string
	size         int64
	stripes, kb  int
	slots        int
	first        uint32 // number of the first transaction
	transactions int
	damage       string
	flags        meta.Flags
	unclean      bool
	bitmapUUID   uint64
	lasize       drbd.Sector
}

func (s alState) String() string {
	return fmt.Sprintf("seed=%d %s %d KiB stripes=%dx%dk slots=%d transactions=%d+%d damage=%s flags=%v unclean=%v bitmap-uuid=%x la-size=%d",
		s.seed, s.placement, s.size>>10, s.stripes, s.kb, s.slots, s.first, s.transactions, s.damage, s.flags, s.unclean, s.bitmapUUID, s.lasize)
}

// drawALState draws a state that drbd.ko or Pollux leaves, or a power cut makes of it.
func drawALState(seed uint64) alState {
	rng := rand.New(rand.NewPCG(seed, 4))
	s := alState{seed: seed, stripes: 1, kb: 32, placement: "internal", size: 64<<20 + rng.Int64N(9)<<22 + rng.Int64N(8)*512, flags: meta.MDFPrimaryInd | meta.MDFConsistent, unclean: true}
	switch rng.IntN(4) {
	case 0:
		s.placement, s.size = "flex-external", 1<<20
		s.lasize = drbd.Sector(1 + rng.Int64N(1<<20))
	case 1:
		s.placement, s.size = "0", 128<<20
		s.lasize = drbd.Sector(1 + rng.Int64N(1<<20))
	}
	if s.placement != "0" && rng.IntN(2) == 0 {
		s.stripes, s.kb = 1+rng.IntN(6), 4*(1+rng.IntN(12))
		for s.stripes*s.kb < 32 {
			s.kb += 4
		}
	}
	s.slots = []int{67, 67, 100, 919, 920, 1237}[rng.IntN(6)]
	s.transactions = []int{0, 1, 2, 5, 8, 9, 20, 60}[rng.IntN(8)]
	if s.transactions == 60 && rng.IntN(2) == 0 { // a fresh ring begins with 0
		s.first = -uint32(rng.IntN(40)) // passes 2^32 on the way
	}
	s.damage = []string{"none", "none", "none", "newest", "newest", "any", "two", "all", "flip"}[rng.IntN(9)]
	switch rng.IntN(8) {
	case 0:
		s.flags &^= meta.MDFPrimaryInd // a Secondary
	case 1:
		s.flags |= meta.MDFCrashedPrimary
	case 2:
		s.flags |= meta.MDFFullSync
	case 3:
		s.flags |= meta.MDFALDisabled
	}
	if rng.IntN(2) == 0 {
		s.bitmapUUID = rng.Uint64() | 1
	}
	if rng.IntN(8) == 0 {
		s.unclean = false // magic ...6b without the flag, as drbdmeta calls unclean too
	}
	return s
}

// make writes the state onto an image that has metadata. It returns how many
// transactions there are: fewer than wanted if all extents are hot before.
func (s alState) make(t *testing.T, path string) (written int) {
	rng := rand.New(rand.NewPCG(s.seed, 5))
	edit(t, path, s.placement, func(d blockdev.Device, l meta.Layout, sb *meta.Superblock) {
		sb.Flags, sb.Unclean, sb.UUIDs.Bitmap, sb.LASize = s.flags, s.unclean, s.bitmapUUID, s.lasize
		if s.lasize == 0 {
			sb.LASize = l.Usable
		}
		sb.ALExtents = uint32(s.slots)
		ring := s.writeTransactions(t, rng, d, l, sb.LASize)
		s.spoil(t, rng, d, l, ring)
		written = len(ring)
	})
	return written
}

// writeTransactions returns the positions of the blocks that were written, the newest last.
func (s alState) writeTransactions(t *testing.T, rng *rand.Rand, d blockdev.Device, l meta.Layout, size drbd.Sector) []int64 {
	al := meta.NewActivityLog(s.slots, l.Stripes, l.StripeSize4k)
	extents := max(1, int(size>>13)+1)
	type span struct{ first, last meta.Extent }
	var open []span
	var ring []int64
	block := make([]byte, meta.BlockSize)
	for range 4 * s.transactions {
		isDue := false
		for range 1 + rng.IntN(20) {
			for len(open) > 40 || len(open) > 0 && rng.IntN(3) == 0 {
				al.End(open[0].first, open[0].last)
				open = open[1:]
			}
			first := meta.Extent(rng.IntN(extents + 2)) // some lie beyond the end
			last := first + meta.Extent(rng.IntN(3))
			if ready, err := al.Begin(first, last); err == nil {
				open = append(open, span{first, last})
				isDue = isDue || !ready
			}
		}
		if !isDue {
			continue
		}
		al.Transaction(block)
		al.Committed()
		number := s.first + uint32(len(ring))
		binary.BigEndian.PutUint32(block[4:], number)
		binary.BigEndian.PutUint32(block[8:], 0)
		binary.BigEndian.PutUint32(block[8:], ^crc32.Update(0xffffffff, crc32.MakeTable(crc32.Castagnoli), block))
		at := l.RingBlock(l.RingOrder(number % uint32(l.ALBlocks)))
		if _, err := d.WriteAt(block, at); err != nil {
			t.Fatal(err)
		}
		if ring = append(ring, at); len(ring) == s.transactions {
			break
		}
	}
	return ring
}

func (s alState) spoil(t *testing.T, rng *rand.Rand, d blockdev.Device, l meta.Layout, ring []int64) {
	var at []int64
	anyBlock := func() int64 { return l.RingBlock(rng.IntN(l.ALBlocks)) }
	switch s.damage {
	case "newest":
		if len(ring) > 0 {
			at = ring[len(ring)-1:]
		}
	case "any":
		at = []int64{anyBlock()}
	case "two":
		at = []int64{anyBlock(), anyBlock()}
	case "all":
		for i := range l.ALBlocks {
			at = append(at, l.RingBlock(i))
		}
	case "flip":
		b := []byte{byte(1 + rng.IntN(255))}
		if _, err := d.WriteAt(b, anyBlock()+36+rng.Int64N(4000)); err != nil {
			t.Fatal(err)
		}
	}
	half := make([]byte, 2048) // torn: one half is the new block, the other something older
	rng2 := rand.NewChaCha8([32]byte{byte(s.seed)})
	for _, off := range at {
		rng2.Read(half) //nolint:errcheck // never fails
		if _, err := d.WriteAt(half, off+2048); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOracleApplyALStates: on many states of the log our apply-al leaves what the
// real one leaves. After a power cut, which tears at most the newest transaction,
// the bytes are the same, but for two things on purpose: a Secondary whose bitmap
// UUID is set may have tracked the writes of a diskless Primary, so we mark its
// extents too; and drbdmeta leaves a torn ring without any transaction as it is.
//
// Damage that no power cut leaves is refused where extents could be missing;
// drbdmeta goes on with what is left.
func TestOracleApplyALStates(t *testing.T) {
	tool := needOracle(t)
	n := uint64(80)
	if testing.Short() {
		n = 20
	}
	dir, kinds := t.TempDir(), map[string]int{}
	for seed := range n {
		s := drawALState(seed)
		mine, theirs := filepath.Join(dir, "mine"), filepath.Join(dir, "theirs")
		os.Remove(mine) // the first time it is not there
		if err := os.WriteFile(mine, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(mine, s.size); err != nil {
			t.Fatal(err)
		}
		args := []string{mine, s.placement, "create-md"}
		if s.stripes != 1 || s.kb != 32 {
			args = append(args, "--al-stripes", fmt.Sprint(s.stripes), "--al-stripe-size-kB", fmt.Sprint(s.kb))
		}
		if r := ours(t, args...); r.code != 0 {
			t.Fatalf("%v: %+v", s, r)
		}
		written := s.make(t, mine)
		if err := os.Rename(copyFile(t, mine), theirs); err != nil {
			t.Fatal(err)
		}
		r, m := drbdmeta(t, tool, theirs, s.placement, "apply-al"), ours(t, mine, s.placement, "apply-al")
		kinds[fmt.Sprintf("%s: drbdmeta %d, polluxmeta %d", s.damage, r.code, m.code)]++
		if wrong := s.compare(t, r, m, written, theirs, mine); wrong != "" {
			t.Errorf("%v: %s\n  drbdmeta %+v\n  polluxmeta %+v", s, wrong, r, m)
		}
	}
	t.Log(kinds)
}

// compare says what is wrong with what the two tools made of a state.
func (s alState) compare(t *testing.T, r, m result, written int, theirs, mine string) string {
	t.Helper()
	isPowerCut := s.damage == "none" || s.damage == "newest"
	allSet := s.flags&(meta.MDFFullSync|meta.MDFALDisabled) != 0
	noUpdates := strings.Contains(r.stderr, "No valid AL update transaction found") || s.damage != "none" && written <= 1
	switch {
	case r.code == 0 && m.code != 0:
		if isPowerCut {
			return "refused after a mere power cut"
		}
		return ""
	case r.code != 0 && m.code == 0:
		if isPowerCut || !allSet && !noUpdates {
			return "drbdmeta refuses it"
		}
		return ""
	case r.code != 0:
		return ""
	}
	want, got := parts(t, theirs, s.placement), parts(t, mine, s.placement)
	if want.superblock != got.superblock {
		return "the superblocks differ"
	}
	if want.ring != got.ring && !noUpdates {
		return "the rings differ"
	}
	tracked := s.flags&meta.MDFPrimaryInd == 0 && s.bitmapUUID != 0
	for i := range want.bitmap {
		switch more, fewer := got.bitmap[i]&^want.bitmap[i], want.bitmap[i]&^got.bitmap[i]; {
		case fewer != 0 && !(allSet && !isPowerCut):
			return fmt.Sprintf("byte %d of the bitmap has fewer bits: %#x, want %#x", i, got.bitmap[i], want.bitmap[i])
		case more != 0 && !tracked:
			return fmt.Sprintf("byte %d of the bitmap has more bits: %#x, want %#x", i, got.bitmap[i], want.bitmap[i])
		}
	}
	return ""
}

// areas are the three parts of an image's metadata as bytes.
type areas struct {
	superblock, ring string
	bitmap           []byte
}

func parts(t *testing.T, path, index string) (a areas) {
	t.Helper()
	d, err := blockdev.Open(path, blockdev.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	c := command{dev: d}
	if err := c.parseIndex(index); err != nil {
		t.Fatal(err)
	}
	l, err := c.newLayout(1, 8)
	if err != nil {
		t.Fatal(err)
	}
	if _, l, err = meta.ReadSuperblock(d, l); err != nil {
		t.Fatal(err)
	}
	read := func(off, n int64) []byte {
		b := make([]byte, n)
		if _, err := d.ReadAt(b, off); err != nil {
			t.Fatal(err)
		}
		return b
	}
	return areas{
		superblock: string(read(l.Superblock, meta.BlockSize)),
		ring:       string(read(l.AL, int64(l.ALBlocks)*meta.BlockSize)),
		bitmap:     read(l.Bitmap, min(l.BitmapBytes, 1<<20)),
	}
}
