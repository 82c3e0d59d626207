package conf

import (
	"strings"
	"testing"
)

// TestManaged: what contradicts a manager is refused where it stands, and the
// table that it contradicts is named.
func TestManaged(t *testing.T) {
	const hosts = "\ndevice minor 1; disk /dev/x;\non alpha { address 10.0.0.1:1; }\non bravo { address 10.0.0.2:1; }\n"
	load := func(toml, common, resource string) (*Config, error) {
		d, err := ParseDaemon("/p.toml", []byte("node-name = 'alpha'\nresource-files = ['/r.res']\ndrbd-conf = ''\n"+toml))
		if err != nil {
			return nil, err
		}
		return d.LoadResources(memEnv(map[string]string{"/r.res": common + "\nresource r0 {\n" + resource + hosts + "}\n"}))
	}
	const (
		internal  = "[resource.r0]\nmanager = 'internal'\n"
		pacemaker = "[resource.r0]\nmanager = 'pacemaker'\n"
		bounds    = "max-loss-bytes = '1M'\nmax-loss-seconds = 3\n"
		fences    = "handlers { fence-peer /x; } net { fencing resource-and-stonith; }"
	)
	for _, tt := range []struct{ name, toml, common, resource, want string }{
		{"protocol C", internal, "", "", ""},
		{"none", "[resource.r0]\nmanager = 'none'\n", "", "net { protocol A; fencing dont-care; allow-two-primaries no; }", ""},
		{"stonith", internal, "", "net { fencing resource-and-stonith; }", ""},
		{"bounds", internal + bounds, "", "net { protocol A; }", ""},
		{"pacemaker", pacemaker, "", fences, ""},

		{"manager", "[resource.r0]\nmanager = 'me'\n", "", "", `/p.toml:5:1: resource.r0.manager: found "me", expected one of `},
		{"half a bound", "[resource.r0]\nmax-loss-bytes = '1M'\n", "", "", "/p.toml:5:1: resource.r0: max-loss-seconds is missing"},
		{"other half", "[resource.r0]\nmax-loss-seconds = 1\n", "", "", "/p.toml:5:1: resource.r0: max-loss-bytes is missing"},
		{"no bound", "[resource.r0]\nmax-loss-bytes = '1M'\nmax-loss-seconds = 100000\n", "", "", "/p.toml:6:1: resource.r0.max-loss-seconds: found 100000, expected 0 to 86400"},
		{"negative", "[resource.r0]\nmax-loss-bytes = '-1M'\nmax-loss-seconds = 1\n", "", "", "/p.toml:5:1: resource.r0.max-loss-bytes: found 18446744073709551615 bytes"},
		{"protocol A", internal, "", "net { protocol A; }", `/r.res:3:7: in resource r0: found protocol A, under which the peer may lack what was acknowledged: expected max-loss-bytes and max-loss-seconds in [resource.r0], or protocol C; manager = "internal" is at /p.toml:4`},
		{"protocol B in common", pacemaker, "common { net { protocol B; } }", fences, "/r.res:1:16: in resource r0: found protocol B"},
		{"protocol of 8.3", internal, "", "protocol A;", "found protocol A"},
		{"dont-care", internal, "", "disk { fencing dont-care; }", "/r.res:3:8: in resource r0: found fencing dont-care, which lets a node go on alone without asking"},
		{"resource-only in common", internal, "common { disk { fencing resource-only; } }", "", "/r.res:1:17: in resource r0: found fencing resource-only"},
		{"handler", internal, "", "handlers { fence-peer /x; }", "/r.res:3:12: in resource r0: found handler fence-peer, expected none"},
		{"two primaries", internal, "", "net { allow-two-primaries; }", "/r.res:3:7: in resource r0: found allow-two-primaries"},
		{"pull-ahead", internal + bounds, "", "net { protocol A; on-congestion pull-ahead; }", "/r.res:3:19: in resource r0: found on-congestion pull-ahead, expected block"},
		{"become-primary-on", internal, "", "startup { become-primary-on alpha; }", "/r.res:3:11: in resource r0: found become-primary-on"},
		{"loop", "attach-device = 'loop'\n" + internal, "", "", `/p.toml:5:1: [resource.r0]: manager = "internal" beside attach-device = "loop"`},
		{"pacemaker without a handler", pacemaker, "", "net { fencing resource-and-stonith; }", "/r.res:2:1: in resource r0: found no handler fence-peer"},
		{"pacemaker without stonith", pacemaker, "", "handlers { fence-peer /x; }", "/r.res:2:1: in resource r0: found fencing dont-care, expected resource-and-stonith"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := load(tt.toml, tt.common, tt.resource)
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error is\n%v\nwant\n%s", err, tt.want)
			}
		})
	}
	c, err := load("[resource.r0]\n"+bounds, "", "")
	if err != nil || len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0].Msg, "no effect under protocol C") {
		t.Errorf("bounds under protocol C: %v, %+v", err, c)
	}
}
