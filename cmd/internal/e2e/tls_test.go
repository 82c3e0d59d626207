package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// shellBlocks are the commands of docs/tls.md, as they stand there.
func shellBlocks(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../../../docs/tls.md")
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for _, m := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllSubmatch(text, -1) {
		blocks = append(blocks, string(m[1]))
	}
	if len(blocks) != 3 {
		t.Fatalf("docs/tls.md has %d blocks of commands, want 3: the CA, the nodes, a look at them", len(blocks))
	}
	return blocks
}

// shell runs commands in dir and returns what they print.
func shell(t *testing.T, dir, commands string) string {
	t.Helper()
	sh := exec.Command("sh", "-e")
	sh.Dir, sh.Stdin = dir, strings.NewReader(commands)
	out, err := sh.CombinedOutput()
	if err != nil {
		t.Fatalf("%s\n%v\n%s", commands, err, out)
	}
	return string(out)
}

// sClient lets openssl connect to a node's replication port from an address.
func sClient(t *testing.T, to *node, from string, args ...string) string {
	t.Helper()
	cmd := exec.Command("openssl", append([]string{"s_client", "-connect", to.addr, "-bind", from + ":0", "-tls1_3", "-ign_eof"}, args...)...)
	out, _ := cmd.CombinedOutput() // it ends when polluxd closes, and complains
	return string(out)
}

// statusUntil is how long the certificate that this node's connection has shown lasts.
func (n *node) statusUntil() *time.Time {
	n.t.Helper()
	st := n.wait("a connection with TLS", func(r adm.Resource) bool { return r.TLS != nil && r.TLS.Until != nil })
	return st.TLS.Until
}

const withTLS = "net { tls yes; cram-hmac-alg sha256; shared-secret s; connect-int 1; }"

// The story that docs/tls.md tells, with its commands, openssl and two polluxd.
func TestE2ETLS(t *testing.T) {
	begin(t, "openssl", "qemu-io")
	p := configured(t, options{global: withTLS})
	certs := filepath.Dir(p.a.dir)
	blocks := shellBlocks(t)
	shell(t, certs, blocks[0]+blocks[1])
	if out := shell(t, certs, blocks[2]); strings.Count(out, ": OK") != 4 || strings.Count(out, "notAfter=") != 2 {
		t.Errorf("openssl does not like what it made: %s", out)
	}
	for _, n := range []*node{p.a, p.b} {
		if r := run(t, program("polluxd"), "--check", "--config", n.path("pollux.toml")); r.code != 10 || !strings.Contains(r.err, "r0.res:3:7: resource r0: found tls yes, expected the table [tls]") {
			t.Errorf("--check without [tls]: %v", r)
		}
		n.write("pollux.toml", settings(n.name)+fmt.Sprintf("[tls]\ncertificate = \"../%[1]s.pem\"\nkey = \"../%[1]s.key\"\nca = \"../ca.pem\"\n", n.name))
		n.must("create-md", "r0")
	}

	// Nobody gets in without a certificate, and with one only from the peer's address.
	p.a.start()
	bravo, _, _ := strings.Cut(p.b.addr, ":")
	if out := sClient(t, p.a, bravo); !strings.Contains(out, "alert certificate required") {
		t.Errorf("openssl without a certificate: %s", out)
	}
	poll(t, "alpha says who it was", func() bool {
		return strings.Contains(p.a.log(), "connect: TLS: peer bravo shows no certificate: [tls] of its pollux.toml has to name one; connecting goes on")
	})
	mine := []string{"-CAfile", certs + "/ca.pem", "-cert", certs + "/bravo.pem", "-key", certs + "/bravo.key"}
	if out := sClient(t, p.a, bravo, mine...); !strings.Contains(out, "Verify return code: 0 (ok)") || strings.Contains(out, "alert") {
		t.Errorf("openssl with a certificate: %s", out)
	}
	if out := sClient(t, p.a, "127.0.0.9", mine...); strings.Contains(out, "BEGIN CERTIFICATE") {
		t.Errorf("openssl from another address: %s", out)
	}

	p.b.start()
	p.wait("connected", func(a, b adm.Resource) bool { return a.Connection == "Connected" && b.Connection == "Connected" })
	p.a.must("primary", "--force", "r0")
	p.inSync()
	mustIO(t, p.a.uri("r0"), "write -P 1 0 8M", "flush")
	if r := p.a.must("status", "r0"); !regexp.MustCompile(`tls +TLS_\w+, certificate until .*, the peer's until `).MatchString(r) {
		t.Errorf("status: %s", r)
	}
	if r := p.a.must("status", "--json", "r0"); !strings.Contains(r, `"tls": true`) {
		t.Errorf("status --json: %s", r)
	}
	if r := p.a.must("dump", "r0"); !regexp.MustCompile(`tls +yes;`).MatchString(r) {
		t.Errorf("dump: %s", r)
	}
	p.a.refused(10, []string{"r0: Failure: (162) Invalid configuration request: option tls of section net: it is changed in the configuration of both nodes, then with adjust"},
		"net-options", "--tls=no", "r0")

	// A crash, then a renewal: the next connection takes the new certificate.
	until := *p.a.statusUntil()
	p.b.kill()
	mustIO(t, p.a.uri("r0"), "write -P 2 1M 8M", "flush")
	shell(t, certs, strings.Replace(blocks[1], "-days 365", "-days 700", 1))
	p.b.start()
	p.inSync()
	if now := p.a.statusUntil(); now == nil || !now.After(until) {
		t.Errorf("alpha's certificate lasts until %v, before the renewal %v", now, until)
	}

	// Off again, one node after the other.
	p.a.write("r0.res", p.resource(p.a, strings.Replace(withTLS, "tls yes", "tls no", 1)))
	p.a.must("adjust", "r0")
	p.a.wait("alpha hears TLS", func(r adm.Resource) bool {
		return r.LastError == "TLS: peer bravo speaks TLS: net option tls has to be set on both nodes"
	})
	p.b.wait("bravo hears none", func(r adm.Resource) bool { return strings.HasPrefix(r.LastError, "TLS: peer alpha ") })
	mustIO(t, p.a.uri("r0"), "write -P 3 2M 8M", "flush")
	p.b.write("r0.res", p.resource(p.b, strings.Replace(withTLS, "tls yes", "tls no", 1)))
	p.b.must("adjust", "r0")
	p.inSync()
	if r := p.b.must("status", "--json", "r0"); !strings.Contains(r, `"tls": false`) {
		t.Errorf("status --json: %s", r)
	}
	p.a.must("secondary", "r0")
	p.equalDisks("disk.img", usable32)
}
