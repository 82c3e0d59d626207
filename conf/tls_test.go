package conf

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// loadNode writes pollux.toml and a resource file and resolves r0 on alpha.
func loadNode(t *testing.T, settings, resource string) (*Resource, error) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "pollux.toml")
	for name, text := range map[string]string{
		path:                        "node-name = 'alpha'\ndrbd-conf = ''\nresource-files = ['r.res']\n" + settings,
		filepath.Join(dir, "r.res"): resource,
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d, err := LoadDaemon(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := d.LoadResources(SystemEnv())
	if err != nil {
		t.Fatal(err)
	}
	return c.Resolve("r0")
}

const (
	tlsTable = "[tls]\ncertificate = 'a.pem'\nkey = '/k'\nca = 'ca.pem'\n"
	anyAddr  = "global { disable-ip-verification; }\n"
	tlsHosts = "device /dev/drbd0 minor 0; disk /dev/vg0/r0; meta-disk internal;\n" +
		"on alpha alpha.example.com { address 10.0.0.1:7788; }\non beta { address 10.0.0.2:7788; }\n}\n"
)

// A resource with tls and nothing to do it with is refused where it says so.
func TestTLSNeedsFiles(t *testing.T) {
	for _, tt := range []struct{ name, settings, resource, want string }{
		{"no table", "", anyAddr + "resource r0 {\nnet { tls yes; }\n" + tlsHosts, "r.res:3:7: resource r0: found tls yes, expected the table [tls] with certificate, key and ca in "},
		{"common", "", anyAddr + "common {\n  net {\n    tls;\n  } }\nresource r0 {\n" + tlsHosts, "r.res:4:5: resource r0: found tls yes"},
		{"no is none", "", anyAddr + "common { net { tls yes; } }\nresource r0 { net { tls no; }\n" + tlsHosts, ""},
		{"table", tlsTable, anyAddr + "resource r0 {\nnet { tls yes; }\n" + tlsHosts, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := loadNode(t, tt.settings, tt.resource)
			switch {
			case tt.want == "" && err != nil:
				t.Fatal(err)
			case tt.want == "" && r.Net.TLS != (tt.settings != ""):
				t.Errorf("tls is %v", r.Net.TLS)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}

// What a certificate is to carry: all names of the section will do, and for a
// section without a name its address.
func TestCertNames(t *testing.T) {
	r, err := loadNode(t, tlsTable, anyAddr+"resource r0 {\nnet { tls yes; }\n"+tlsHosts)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.Local.CertNames, []string{"alpha", "alpha.example.com"}) || !slices.Equal(r.Peer.CertNames, []string{"beta"}) {
		t.Errorf("names %q and %q", r.Local.CertNames, r.Peer.CertNames)
	}
	floating := "resource r0 {\nnet { tls yes; }\ndevice /dev/drbd0 minor 0; disk /dev/vg0/r0; meta-disk internal;\n" +
		"floating 127.0.0.1:7788;\nfloating ipv6 [2001:db8::2]:7788;\n}\n"
	if r, err = loadNode(t, tlsTable, floating); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(append(r.Local.CertNames, r.Peer.CertNames...), []string{"127.0.0.1", "2001:db8::2"}) {
		t.Errorf("floating hosts: names %q and %q", r.Local.CertNames, r.Peer.CertNames)
	}
	if _, err := r.WithNet(map[string]string{"tls": "no"}, false); err == nil || !strings.Contains(err.Error(), "then with adjust") {
		t.Errorf("net-options changed tls: %v", err)
	}
}
