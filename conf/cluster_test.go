package conf

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func loadCluster(t *testing.T) *Cluster {
	t.Helper()
	c, err := LoadCluster("testdata/examples/cluster.toml")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCluster(t *testing.T) {
	c := loadCluster(t)
	want := DefaultCluster()
	if c.Heartbeat != want.Heartbeat || c.Arbiter.TTL != want.Arbiter.TTL {
		t.Errorf("the example has %+v and %v, which are not the defaults", c.Heartbeat, c.Arbiter.TTL)
	}
	if c.Name != "office" || c.Serial != 4 || c.LeaderIP.String() != "10.1.1.30/24" || c.LeaderInterface != "eth0" {
		t.Errorf("%+v", c)
	}
	if diff := cmp.Diff([]string{"nodo1", "nodo2"}, c.DataNodes()); diff != "" {
		t.Errorf("data nodes (-want +got):\n%s", diff)
	}
	n := c.Node("NODO1.example.com")
	if n == nil || n.Links[1] != netip.MustParseAddrPort("192.168.7.1:7790") || n.EtcdClient().String() != "10.1.1.31:2379" || n.EtcdPeer().String() != "10.1.1.31:2380" {
		t.Errorf("nodo1 is %+v", n)
	}
	if c.Node("nodo") != nil {
		t.Error("a part of a name was taken for it")
	}
	if c.Fences[0].Options["ip"] != "10.1.9.31" {
		t.Errorf("%+v", c.Fences)
	}
	if err := c.AutomaticFailover(); err != nil {
		t.Error(err)
	}
}

// What is written is what is read, and equal clusters have equal texts.
func TestClusterText(t *testing.T) {
	c := loadCluster(t)
	if err := parseClusterTwice(t, c.Text()); err != nil {
		t.Fatal(err)
	}
	c.Nodes[0], c.Nodes[2] = c.Nodes[2], c.Nodes[0]
	if !bytes.Equal(c.Text(), loadCluster(t).Text()) {
		t.Error("another order of the nodes is another text")
	}
	c.Fences[0].Options["password"] = "a \"b\" \\ \t\x01 é"
	c.Arbiter.Kind, c.Arbiter.UnsafeShortTTL, c.Arbiter.TTL = ArbiterWitness, true, Duration{300 * time.Millisecond}
	c.Arbiter.Witness = WitnessTable{Address: netip.MustParseAddrPort("[fd00::9]:7791"), Fingerprint: "sha256:" + strings.Repeat("0a", 32), CA: "/ca", Cert: "/c", Key: "/k"}
	c.Arbiter.Etcd = EtcdTable{Endpoints: []string{"https://10.0.0.1:2379"}, User: "u", PasswordFile: "/p", CA: "/ca", Cert: "/c", Key: "/k"}
	got, err := ParseCluster("/x/cluster.toml", c.Text())
	if err != nil {
		t.Fatal(err)
	}
	got.File, got.keys, c.File, c.keys = "", nil, "", nil
	c.Nodes = sortedNodes(c.Nodes)
	if !reflect.DeepEqual(c, got) {
		t.Errorf("got\n%+v\nwant\n%+v", got, c)
	}
}

// parseClusterTwice parses a text, and what Text makes of it: that has to be the same.
func parseClusterTwice(t *testing.T, text []byte) error {
	c, err := ParseCluster("f.toml", text)
	if err != nil {
		return err
	}
	again, err := ParseCluster("f.toml", c.Text())
	if err != nil {
		t.Fatalf("%v in\n%s", err, c.Text())
	}
	if !bytes.Equal(c.Text(), again.Text()) {
		t.Errorf("read\n%s\nand then\n%s", c.Text(), again.Text())
	}
	return nil
}

const (
	clusterHead = "name='c'\nid='3e1f8a52-7c0d-4b6e-9a41-5d2c8f60b713'\n"
	clusterA    = "[[node]]\nname='a'\nlinks=['10.0.0.1:7790']\n"
	clusterB    = "[[node]]\nname='b'\nlinks=['10.0.0.2:7790']\n"
	clusterW    = "[[node]]\nname='w'\nkind='witness'\nlinks=['10.0.0.3:7790']\n"
	print64     = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

func TestClusterRefuses(t *testing.T) {
	const base = clusterHead + clusterA + clusterB // 8 lines
	for _, tt := range []struct{ name, text, want string }{
		{"nothing", "", `c.toml:1:1: name: found ""`},
		{"no id", "name='c'\n" + clusterA, `c.toml:1:1: id: found "", expected a UUID`},
		{"id", "name='c'\nid='3E1F8A52-7c0d-4b6e-9a41-5d2c8f60b713'\n" + clusterA, `c.toml:2:1: id: found "3E1F`},
		{"unknown key", base + "[heartbeat]\nkeepalife='1s'", `c.toml:10:1: unknown key "heartbeat.keepalife", did you mean "keepalive"?`},
		{"unknown key of a node", base + "link=[]", `c.toml:9:1: unknown key "node.link", did you mean "links"?`},
		{"warntime", base + "[heartbeat]\nkeepalive='2s'\nwarntime='5s'\ndeadtime='7s'", `c.toml:11:1: heartbeat.warntime: found 5s, expected at least three times keepalive (6s)`},
		{"warntime of the default keepalive", base + "[heartbeat]\nwarntime='2900ms'", `c.toml:10:1: heartbeat.warntime: found 2.9s`},
		{"deadtime", base + "[heartbeat]\nwarntime='6s'", `c.toml:9:1: heartbeat.deadtime: found 6s, expected more than warntime (6s)`},
		{"initdead", base + "[heartbeat]\ndeadtime='16s'", `c.toml:9:1: heartbeat.initdead: found 30s, expected at least twice deadtime (32s)`},
		{"no keepalive", base + "[heartbeat]\nkeepalive='0s'", `c.toml:10:1: heartbeat.keepalive: found 0s, expected 10ms to 1h0m0s`},
		{"no unit", base + "[heartbeat]\nkeepalive='1'", `expected a time with its unit`},
		{"ttl", base + "[arbiter]\nttl='4s'", `c.toml:10:1: arbiter.ttl: found 4s, expected at least 5s`},
		{"deadtime below ttl", base + "[arbiter]\nkind='etcd'\nttl='10s'", `c.toml:1:1: heartbeat.deadtime: found 6s, expected at least arbiter.ttl (10s): with arbiter "etcd" the lease decides`},
		{"kind", base + "[arbiter]\nkind='raft'", `c.toml:10:1: arbiter.kind: found "raft", expected one of etcd, witness, fence, manual`},
		{"witness without address", base + "[arbiter]\nkind='witness'", `arbiter.witness.address: found "", expected IP:PORT`},
		{"witness without a print", base + "[arbiter.witness]\naddress='10.0.0.9:7791'", `arbiter.witness: found neither fingerprint nor ca`},
		{"fingerprint", base + "[arbiter.witness]\naddress='10.0.0.9:7791'\nfingerprint='sha256:12'", `c.toml:11:1: arbiter.witness.fingerprint: found "sha256:12"`},
		{"witness on a node", base + "[arbiter.witness]\naddress='10.0.0.2:7790'\nfingerprint='sha256:" + print64 + "'", `c.toml:10:1: arbiter.witness.address: 10.0.0.2:7790 is a link of b, expected a third host`},
		{"witness key alone", base + "[arbiter.witness]\naddress='10.0.0.9:7791'\nca='x'\nkey='y'", `found one of cert and key`},
		{"endpoint", base + "[arbiter.etcd]\nendpoints=['10.0.0.1:2379']", `c.toml:10:1: arbiter.etcd.endpoints: found "10.0.0.1:2379", expected a URL`},
		{"endpoint in the clear", base + "[arbiter.etcd]\nendpoints=['http://10.0.0.1:2379']", `without TLS, expected https`},
		{"endpoint twice", base + "[arbiter.etcd]\nendpoints=['https://a:1','https://a:1']", `https://a:1 is listed twice`},
		{"user alone", base + "[arbiter.etcd]\nuser='u'", `found one of user and password-file`},
		{"no nodes", clusterHead, `node: found 0 nodes, expected 1 to 32`},
		{"witnesses only", clusterHead + clusterW, `node: found witnesses only`},
		{"name twice", base + "[[node]]\nname='A.example.com'\nlinks=['10.0.0.4:7790']", `c.toml:10:1: node.name: "A.example.com" is also "a"`},
		{"name", clusterHead + "[[node]]\nname='a b'\nlinks=['10.0.0.4:7790']", `c.toml:4:1: node.name: found "a b", expected a host name`},
		{"node kind", base + "[[node]]\nname='x'\nkind='spare'\nlinks=['10.0.0.4:7790']", `c.toml:11:1: node.kind: found "spare", expected one of data, witness`},
		{"address twice", base + "[[node]]\nname='x'\nlinks=['10.0.0.1:7790']", `c.toml:11:1: node.links: 10.0.0.1:7790 is that of node a as well`},
		{"public key", base + "[[node]]\nname='x'\nlinks=['10.0.0.4:7790']\npublic-key='12'", `c.toml:12:1: node.public-key: found "12", expected "sha256:" and 64 digits`},
		{"no link", base + "[[node]]\nname='x'", `c.toml:9:1: node.links: found 0 links of node "x"`},
		{"no address", base + "[[node]]\nname='x'\nlinks=['0.0.0.0:7790']", `node.links: found "0.0.0.0:7790", expected IP:PORT that other nodes can reach`},
		{"host name", base + "[[node]]\nname='x'\nlinks=['host:7790']", `c.toml:`},
		{"etcd's port", clusterHead + "[arbiter]\nkind='etcd'\n" + clusterA + "etcd='10.0.0.1:7789'\n", `node.etcd: 10.0.0.1:7790 is that of node a as well`},
		{"fence of nobody", base + "[[fence]]\nnode='z'\nagent='fence_x'", `c.toml:10:1: fence.node: found "z", expected the name of a node`},
		{"fence twice", base + "[[fence]]\nnode='a'\nagent='fence_x'\n[[fence]]\nnode='A'\nagent='fence_x'", `c.toml:13:1: fence.node: a has two fence devices`},
		{"agent", base + "[[fence]]\nnode='a'\nagent='sh -c x'", `c.toml:11:1: fence.agent: found "sh -c x", expected a program such as "fence_ipmilan"`},
		{"relative agent", base + "[[fence]]\nnode='a'\nagent='bin/fence_x'", `or its absolute path`},
		{"action", base + "[[fence]]\nnode='a'\nagent='fence_x'\n[fence.options]\naction='off'", `fence.options: found "action", which Pollux sets itself`},
		{"number", base + "[[fence]]\nnode='a'\nagent='fence_x'\n[fence.options]\nlanplus=1", `c.toml:13:1: fence.options.lanplus: found a number, expected a text`},
		{"leader", "leader-ip='10.0.0.9'\n" + base, `expected an address with the length of its prefix`},
		{"leader's interface", "leader-interface='eth0'\n" + base, `c.toml:1:1: leader-interface: found "eth0" without leader-ip`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseCluster("c.toml", []byte(tt.text))
			var parse *ParseError
			if err == nil || !errors.As(err, &parse) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is\n%v\nwant %q in it", err, tt.want)
			}
		})
	}
	if _, err := ParseCluster("c.toml", []byte(base+"[arbiter]\nttl='1s'\nunsafe-short-ttl=true")); err != nil {
		t.Errorf("a short ttl, asked for: %v", err)
	}
}

func TestAutomaticFailover(t *testing.T) {
	const witness = "[arbiter.witness]\naddress='10.0.0.9:7791'\nfingerprint='sha256:" + print64 + "'\n"
	fence := func(node string) string { return "[[fence]]\nnode='" + node + "'\nagent='fence_x'\n" }
	for _, tt := range []struct{ name, text, want string }{
		{"manual", clusterA + clusterB, `protected against the loss of a disk, not of a host`},
		{"one node", "[arbiter]\nkind='etcd'\n" + clusterA, `c.toml:5:1: no automatic failover: there is one node of kind "data"`},
		{"two voters", "[arbiter]\nkind='etcd'\n" + clusterA + clusterB, `c.toml:4:1: no automatic failover: the nodes' own etcd has 2 voters`},
		{"three voters", "[arbiter]\nkind='etcd'\n" + clusterA + clusterB + clusterW, ""},
		{"three data nodes", "[arbiter]\nkind='etcd'\n" + clusterA + clusterB + strings.Replace(clusterW, "witness", "data", 1), ""},
		{"an etcd of its own", "[arbiter]\nkind='etcd'\n[arbiter.etcd]\nendpoints=['https://10.0.0.7:2379']\n" + clusterA + clusterB, ""},
		{"witness", "[arbiter]\nkind='witness'\n" + witness + clusterA + clusterB, ""},
		{"fence of one", "[arbiter]\nkind='fence'\n" + clusterA + clusterB + fence("a"), `nothing switches b off`},
		{"fence", "[arbiter]\nkind='fence'\n" + clusterA + clusterB + fence("a") + fence("b"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := ParseCluster("c.toml", []byte(clusterHead+tt.text))
			if err != nil {
				t.Fatal(err)
			}
			err = c.AutomaticFailover()
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want %q in it", err, tt.want)
			}
		})
	}
}

// The man pages name each key that there is.
func TestManPagesNameAllKeys(t *testing.T) {
	for _, tt := range []struct {
		page string
		of   any
	}{{"cluster.toml.5", Cluster{}}, {"pollux.toml.5", HA{}}} {
		b, err := os.ReadFile("../docs/" + tt.page)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(b), `\-`, "-")
		for _, key := range tomlTags(reflect.TypeOf(tt.of)) {
			if !strings.Contains(text, ".B "+key+"\n") && !strings.Contains(text, ".BR "+key+" ") && !strings.Contains(text, "["+key) && !strings.Contains(text, "."+key+"]") {
				t.Errorf("docs/%s does not name %q", tt.page, key)
			}
		}
	}
}

func tomlTags(t reflect.Type) []string {
	switch t.Kind() {
	case reflect.Slice, reflect.Map, reflect.Pointer:
		return tomlTags(t.Elem())
	case reflect.Struct:
		var keys []string
		for i := range t.NumField() {
			if tag := t.Field(i).Tag.Get("toml"); tag != "" && tag != "-" {
				keys = append(append(keys, tag), tomlTags(t.Field(i).Type)...)
			}
		}
		return keys
	default:
		return nil
	}
}
