package replication

import "github.com/pollux-project/pollux/protocol/drbd"

func (r *Resource) protocolPacket() drbd.ProtocolPacket {
	p := drbd.ProtocolPacket{
		Protocol:  uint32(r.net.Protocol-'A') + drbd.ProtocolA,
		AfterSB0P: r.net.AfterSB0P, AfterSB1P: r.net.AfterSB1P, AfterSB2P: r.net.AfterSB2P,
		IntegrityAlg: r.net.DataIntegrityAlg,
	}
	if r.net.AllowTwoPrimaries {
		p.TwoPrimaries = 1
	}
	if r.link.DiscardMyData {
		p.ConnFlags |= drbd.ConnDiscardMyData
	}
	if r.link.DryRun {
		p.ConnFlags |= drbd.ConnDryRun
	}
	return p
}

func (r *Resource) syncParam(v *volume) drbd.SyncParam89 {
	return drbd.SyncParam89{
		ResyncRate: v.opts.ResyncRateKiB, VerifyAlg: r.net.VerifyAlg, CsumsAlg: r.net.CsumsAlg,
		CPlanAhead: v.opts.CPlanAhead, CDelayTarget: v.opts.CDelayTarget,
		CFillTarget: v.opts.CFillTarget, CMaxRate: v.opts.CMaxRateKiB,
	}
}

func (r *Resource) sendSizes(v *volume, current drbd.Sector) { r.sendSizesFlags(v, current, 0) }

func (r *Resource) sendSizesFlags(v *volume, current drbd.Sector, flags uint16) {
	p := drbd.Sizes{
		DDSFlags: flags,
		USize:    drbd.Sector(v.opts.SizeSectors), CSize: current, MaxBioSize: drbd.MaxRequestSize,
		WSame: r.link.Features&drbd.FeatureWSame != 0, PhysicalBlockSize: 4096, LogicalBlockSize: 512, DiscardEnabled: 1,
	}
	if v.hasDisk() {
		p.DSize = v.usable
		p.LogicalBlockSize = max(v.blockSize, 512)
	}
	r.sendPacket(drbd.DataSocket, drbd.CmdSizes, v.num, p)
}

func (r *Resource) sendUUIDs(v *volume, extra uint64) {
	flags := extra
	if v.discardMyData {
		flags |= drbd.UUIDDiscardMyData
	}
	if v.crashed {
		flags |= drbd.UUIDCrashedPrimary
	}
	if v.st.Disk == drbd.Negotiating && v.negDisk == drbd.Inconsistent {
		flags |= drbd.UUIDInconsistent
	}
	var dirty uint64
	if v.bitmap != nil {
		dirty = v.bitmap.Weight()
	}
	v.sentBits = dirty
	r.sendPacket(drbd.DataSocket, drbd.CmdUUIDs, v.num, drbd.UUIDs{
		Current: v.uuids.Current, Bitmap: v.uuids.Bitmap, History: v.uuids.History, DirtyBits: dirty, Flags: flags,
	})
}

func (r *Resource) sendStateWord(v *volume, s drbd.State) {
	start := r.beginPacket(drbd.CmdState, v.num, 4)
	w := v.tellable(s).Word()
	r.arena = append(r.arena, byte(w>>24), byte(w>>16), byte(w>>8), byte(w))
	r.endPacket(drbd.DataSocket, start, nil)
}
