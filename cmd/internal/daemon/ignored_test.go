package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/conf"
)

func specOf(t *testing.T, startup, net, disk string) resourceSpec {
	t.Helper()
	path := filepath.Join(t.TempDir(), "r0.res")
	text := `global { disable-ip-verification; }
resource r0 {
	device /dev/drbd0 minor 0; disk /dev/vg0/r0; meta-disk internal;
	startup { ` + startup + ` }
	net { ` + net + ` }
	disk { ` + disk + ` }
	on alpha { address 10.0.0.1:7788; }
	on beta { address 10.0.0.2:7788; }
}
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := conf.Load([]string{path}, conf.Env{Hostname: "alpha"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Resolve("r0")
	if err != nil {
		t.Fatal(err)
	}
	return resourceSpec{Resource: r, Node: "alpha"}
}

func TestIgnoredOptionsAreNamed(t *testing.T) {
	if got := ignoredOptions(specOf(t, "wfc-timeout 60;", "", "")); len(got) != 0 {
		t.Errorf("defaults are warned about: %q", got)
	}
	all := ignoredOptions(specOf(t, "become-primary-on beta; wfc-timeout 60; degr-wfc-timeout 30;",
		"protocol A; on-congestion pull-ahead; csums-alg sha1; tls-keyring 12;",
		"disk-timeout 50; read-balancing round-robin; al-extents 513; md-flushes no; disk-barrier; disk-drain no;"))
	wants := []string{"become-primary-on beta", "degr-wfc-timeout 30", "tls-keyring 12", "disk-barrier yes", "disk-drain no"}
	got := strings.Join(all, "\n")
	if len(all) != len(wants) {
		t.Errorf("%d options are named, want %d:\n%s", len(all), len(wants), got)
	}
	for _, want := range wants {
		if !strings.Contains(got, want) {
			t.Errorf("nothing says that %s has no effect:\n%s", want, got)
		}
	}
}
