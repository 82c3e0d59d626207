package conf

import (
	"errors"
	"strings"
	"testing"
)

func TestOverride(t *testing.T) {
	c := loadText(t, `global { disable-ip-verification; }
resource r0 {
	device /dev/drbd0 minor 0; disk /dev/vg0/r0; meta-disk internal;
	net { protocol C; shared-secret "old"; }
	disk { resync-rate 10M; }
	on alpha { address 10.0.0.1:7788; }
	on beta { address 10.0.0.2:7788; }
}`)
	file, err := c.Resolve("r0")
	if err != nil {
		t.Fatal(err)
	}
	r, err := file.WithNet(map[string]string{"protocol": "a", "ping-int": "3", "shared-secret": "new"}, false)
	if err != nil {
		t.Fatal(err)
	}
	if r, err = r.WithDisk(0, map[string]string{"c-plan-ahead": "0"}, true); err != nil {
		t.Fatal(err)
	}
	if r.Net.Protocol != "A" || r.Net.SharedSecret != "new" || r.Volumes[0].Options.ResyncRate != 250 || r.Volumes[0].Options.CPlanAhead != 0 {
		t.Errorf("in force: %+v %+v", r.Net, r.Volumes[0].Options)
	}
	if file.Net.Protocol != "C" || file.Volumes[0].Options.ResyncRate != 10240 {
		t.Error("the configured resource was changed")
	}
	var got []string
	for _, c := range Changes(r, file) {
		got = append(got, c.Option+"="+c.InForce+" not "+c.Configured)
	}
	want := "resync-rate=250 not 10M,c-plan-ahead=0 not 20,protocol=A not C,ping-int=3 not 10,shared-secret=(another) not (not shown)"
	if s := strings.Join(got, ","); s != want {
		t.Errorf("changes:\n%s\nwant\n%s", s, want)
	}
	if back := r.TakeNet(file).TakeDisk(0, file); len(Changes(back, file)) != 0 {
		t.Errorf("after the way back: %v", Changes(back, file))
	}
	var oe *OverrideError
	for _, bad := range []map[string]string{
		{"protocol": "D"},
		{"size": "8"},
		{"nonsense": "1"},
		{"allow-two-primaries": "yes", "protocol": "A"},
		{"on-congestion": "pull-ahead"},
		{"timeout": "100000"},
	} {
		if _, err := file.WithNet(bad, false); !errors.As(err, &oe) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if _, err := file.WithDisk(0, map[string]string{"size": "8"}, false); !errors.As(err, &oe) || !strings.Contains(err.Error(), "resize") {
		t.Errorf("disk size: %v", err)
	}
}
