package adm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// The JSON of "drbdsetup status --json", dialect 9, names and order of
// drbd-cli's section "status --json"; what Pollux adds is in the keys that
// begin with "pollux-". Consumers cope with unknown keys.
type (
	jsonResource struct {
		Name             string           `json:"name"`
		NodeID           int              `json:"node-id"`
		Role             string           `json:"role"`
		Suspended        bool             `json:"suspended"`
		SuspendedUser    bool             `json:"suspended-user"`
		SuspendedNoData  bool             `json:"suspended-no-data"`
		SuspendedFencing bool             `json:"suspended-fencing"`
		SuspendedQuorum  bool             `json:"suspended-quorum"`
		ForceIOFailures  bool             `json:"force-io-failures"`
		WriteOrdering    string           `json:"write-ordering"`
		Devices          []jsonDevice     `json:"devices"`
		Connections      []jsonConnection `json:"connections"`
		State            string           `json:"pollux-state"`   // up, down, failed
		Verdict          string           `json:"pollux-verdict"` // protected, degraded, at risk, stopped
		Why              string           `json:"pollux-why"`
		Advice           string           `json:"pollux-advice,omitempty"`
		Term             *adm.Term        `json:"pollux-term,omitempty"`
		SplitBrain       string           `json:"pollux-split-brain,omitempty"`
		LastError        string           `json:"pollux-last-error,omitempty"`
		Violation        *adm.Violation   `json:"pollux-violation,omitempty"`
		PeerLostSince    *time.Time       `json:"pollux-peer-lost-since,omitempty"`
	}
	jsonDevice struct {
		Volume       int    `json:"volume"`
		Minor        int    `json:"minor"`
		DiskState    string `json:"disk-state"`
		Client       bool   `json:"client"`
		Open         bool   `json:"open"`
		Quorum       bool   `json:"quorum"`
		Size         uint64 `json:"size"`    // KiB
		Read         uint64 `json:"read"`    // KiB
		Written      uint64 `json:"written"` // KiB
		ALWrites     uint64 `json:"al-writes"`
		BMWrites     uint64 `json:"bm-writes"`
		UpperPending uint64 `json:"upper-pending"`
		LowerPending uint64 `json:"lower-pending"`
		Device       string `json:"pollux-device"`
		BackingDisk  string `json:"pollux-backing-disk,omitempty"`
		Export       string `json:"pollux-export,omitempty"`
		BlockDevice  string `json:"pollux-block-device,omitempty"`
	}
	jsonConnection struct {
		PeerNodeID  int              `json:"peer-node-id"`
		Name        string           `json:"name"`
		State       string           `json:"connection-state"`
		Congested   bool             `json:"congested"`
		PeerRole    string           `json:"peer-role"`
		TLS         bool             `json:"tls"`
		APInFlight  uint64           `json:"ap-in-flight"`
		RSInFlight  uint64           `json:"rs-in-flight"`
		Paths       []jsonPath       `json:"paths"`
		PeerDevices []jsonPeerDevice `json:"peer_devices"`
		Protocol    string           `json:"pollux-protocol,omitempty"`
		TLSDetails  *adm.TLS         `json:"pollux-tls,omitempty"`
	}
	jsonPath struct {
		ThisHost    jsonHost `json:"this_host"`
		RemoteHost  jsonHost `json:"remote_host"`
		Established bool     `json:"established"`
	}
	jsonHost struct {
		Address string `json:"address"`
		Port    uint16 `json:"port"`
		Family  string `json:"family"`
	}
	jsonPeerDevice struct {
		Volume           int      `json:"volume"`
		ReplicationState string   `json:"replication-state"`
		PeerDiskState    string   `json:"peer-disk-state"`
		PeerClient       bool     `json:"peer-client"`
		ResyncSuspended  string   `json:"resync-suspended"`
		Received         uint64   `json:"received"`    // KiB
		Sent             uint64   `json:"sent"`        // KiB
		OutOfSync        uint64   `json:"out-of-sync"` // KiB
		Pending          uint64   `json:"pending"`
		Unacked          uint64   `json:"unacked"`
		HasSyncDetails   bool     `json:"has-sync-details"`
		HasVerifyDetails bool     `json:"has-online-verify-details"`
		PercentInSync    percent  `json:"percent-in-sync"`
		RSTotal          *uint64  `json:"rs-total,omitempty"` // sectors
		ETASeconds       *int64   `json:"estimated-seconds-to-finish,omitempty"`
		Rate             *percent `json:"db/dt [MiB/s],omitempty"`
		ResyncDone       *percent `json:"percent-resync-done,omitempty"`
		*jsonVerify
	}
	// jsonVerify is what only an online verify has; in sectors.
	jsonVerify struct {
		Start    uint64 `json:"ov-start-sector"`
		Stop     uint64 `json:"ov-stop-sector"`
		Position uint64 `json:"ov-position"`
		Left     uint64 `json:"ov-left"`
		Skipped  uint64 `json:"ov-skipped"`
	}
	// percent is a number with two decimals, as the real program prints it.
	percent float64
)

// MarshalJSON writes two decimals.
func (p percent) MarshalJSON() ([]byte, error) { return fmt.Appendf(nil, "%.2f", float64(p)), nil }

// writeStatusJSON prints one object per resource; the brackets stand on their own lines.
func writeStatusJSON(w io.Writer, st adm.Status, now time.Time) error {
	var b bytes.Buffer
	b.WriteString("[\n")
	for i, r := range st.Resources {
		if i > 0 {
			b.WriteString(",\n")
		}
		obj, err := json.MarshalIndent(toJSON(r, now), "", "  ")
		if err != nil {
			return fmt.Errorf("status of %s: %w", r.Name, err)
		}
		b.Write(obj)
		b.WriteByte('\n')
	}
	b.WriteString("]\n")
	_, err := w.Write(b.Bytes())
	return err
}

func toJSON(r adm.Resource, now time.Time) jsonResource {
	v := judge(r, now)
	j := jsonResource{
		Name: r.Name, Role: roleWord(r.Role), WriteOrdering: "flush",
		Suspended: len(r.Suspended) > 0, SuspendedUser: slices.Contains(r.Suspended, "user"),
		SuspendedNoData: slices.Contains(r.Suspended, "no-data"), SuspendedFencing: slices.Contains(r.Suspended, "fencing"),
		Devices: []jsonDevice{}, Connections: []jsonConnection{},
		State: r.State, Verdict: v.Level.String(), Why: v.Why, Advice: v.Advice,
		Term: r.Term, SplitBrain: r.SplitBrain, LastError: r.LastError, Violation: r.Violation, PeerLostSince: r.PeerLostSince,
	}
	j.NodeID, _ = nodeIDs(r)
	for _, v := range r.Volumes {
		j.Devices = append(j.Devices, jsonDevice{
			Volume: v.Volume, Minor: v.Minor, DiskState: diskWord(v.Disk), Client: v.BackingDisk == "",
			Open: v.OpenCount > 0, Quorum: true, Size: v.SizeBytes >> 10, Read: v.ReadBytes >> 10,
			Written: v.WrittenBytes >> 10, ALWrites: v.ALWrites, BMWrites: v.BitmapWrites,
			Device: v.Device, BackingDisk: v.BackingDisk, Export: v.Export, BlockDevice: v.BlockDevice,
		})
	}
	if r.State == adm.StateUp {
		j.Connections = append(j.Connections, toJSONConnection(r))
	}
	return j
}

func toJSONConnection(r adm.Resource) jsonConnection {
	_, peerID := nodeIDs(r)
	c := jsonConnection{
		PeerNodeID: peerID, Name: r.Peer, State: connectionWord(r.Connection), PeerRole: roleWord(r.PeerRole),
		Protocol: r.Protocol, TLS: r.TLS != nil, TLSDetails: r.TLS, PeerDevices: []jsonPeerDevice{},
		Paths: []jsonPath{{ThisHost: hostOf(r.Address), RemoteHost: hostOf(r.PeerAddress), Established: isConnected(r)}},
	}
	for _, v := range r.Volumes {
		p := jsonPeerDevice{
			Volume: v.Volume, ReplicationState: replicationWord(v.Replication), PeerDiskState: diskWord(v.PeerDisk),
			ResyncSuspended: resyncSuspended(v), Received: v.ReceivedBytes >> 10, Sent: v.SentBytes >> 10, OutOfSync: v.OutOfSyncBytes >> 10,
			PercentInSync: 100,
		}
		if v.SizeBytes > 0 && v.OutOfSyncBytes <= v.SizeBytes {
			p.PercentInSync = percent(100 * float64(v.SizeBytes-v.OutOfSyncBytes) / float64(v.SizeBytes))
		}
		if s := v.Resync; s != nil {
			total, rate, done := s.TotalBytes>>9, percent(float64(s.RateBytesPerSec)/(1<<20)), percent(s.Done())
			p.HasSyncDetails, p.RSTotal, p.Rate, p.ResyncDone = true, &total, &rate, &done
			if s.ETASeconds >= 0 {
				p.ETASeconds = &s.ETASeconds
			}
		}
		if s := v.Verify; s != nil {
			total, rate, done := s.TotalBytes>>9, percent(float64(s.RateBytesPerSec)/(1<<20)), percent(s.Done())
			p.HasVerifyDetails, p.RSTotal, p.Rate, p.ResyncDone = true, &total, &rate, &done
			p.jsonVerify = &jsonVerify{Start: s.StartSector, Stop: s.StopSector, Position: s.Position, Left: s.LeftBytes >> 9, Skipped: s.FailedBytes >> 9}
			if s.StopSector == 0 {
				p.jsonVerify.Stop = v.SizeBytes >> 9
			}
			if s.ETASeconds >= 0 {
				p.ETASeconds = &s.ETASeconds
			}
		}
		c.PeerDevices = append(c.PeerDevices, p)
	}
	return c
}

// nodeIDs are the ids of a pair in dialect 9, where 8.4 has none: the node
// whose address sorts first is 0, so that both sides agree.
func nodeIDs(r adm.Resource) (own, peer int) {
	a, errA := netip.ParseAddrPort(r.Address)
	b, errB := netip.ParseAddrPort(r.PeerAddress)
	if errA == nil && errB == nil && a.Compare(b) > 0 {
		return 1, 0
	}
	return 0, 1
}

func hostOf(addr string) jsonHost {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return jsonHost{Family: "ipv4"}
	}
	h := jsonHost{Address: ap.Addr().String(), Port: ap.Port(), Family: "ipv4"}
	if ap.Addr().Is6() && !ap.Addr().Is4In6() {
		h.Family = "ipv6"
	}
	return h
}

// connectionWord is dialect 9's word for 8.4's connection state.
func connectionWord(cs string) string {
	switch cs {
	case "StandAlone", "Disconnecting", "Unconnected", "Timeout", "BrokenPipe", "NetworkFailure", "ProtocolError", "TearDown":
		return cs
	case "WFConnection", "WFReportParams":
		return "Connecting"
	case "":
		return "StandAlone"
	}
	return "Connected"
}

// replicationWord is dialect 9's replication state for 8.4's connection state.
func replicationWord(cs string) string {
	switch {
	case cs == "Connected":
		return "Established"
	case connectionWord(cs) != "Connected":
		return "Off"
	}
	return cs
}

func roleWord(s string) string {
	if s == "" {
		return "Unknown"
	}
	return s
}

func diskWord(s string) string {
	if s == "" {
		return "Diskless"
	}
	return strings.TrimSpace(s)
}
