package control

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/pollux-project/pollux/conf"
)

// ErrNoCluster says that this node is in no cluster.
var ErrNoCluster = errors.New("this node is in no cluster: make one with polluxadm cluster init, or join one with polluxadm cluster join")

// Store is where a node keeps what makes it a member. Its methods are for one
// goroutine at a time, and one process (package service locks the state directory).
//
//	Dir/ca.pem          who signs the certificates of all nodes
//	Dir/ca.key          its key, on nodes of kind data
//	Dir/node.pem, .key  this node's
//	Dir/cluster.toml    what File was when it was written last
//	Dir/tokens/         one file for each token that was given out
//	File                cluster.toml, which people may edit
//
// Dir is made under another name and renamed when it is complete.
type Store struct {
	Dir  string // "cluster" in the state directory
	File string // conf.HA.ClusterFile
}

// CAFile has the CA's certificate. It and the next two are in PEM, the key in
// PKCS 8; other programs of this node (etcd, the client of a witness) read them.
func (s Store) CAFile() string { return filepath.Join(s.Dir, "ca.pem") }

// CertFile is this node's certificate.
func (s Store) CertFile() string { return filepath.Join(s.Dir, "node.pem") }

// KeyFile is this node's key, mode 0600.
func (s Store) KeyFile() string { return filepath.Join(s.Dir, "node.key") }

func (s Store) caKeyFile() string { return filepath.Join(s.Dir, "ca.key") }
func (s Store) copyFile() string  { return filepath.Join(s.Dir, "cluster.toml") }
func (s Store) tokenDir() string  { return filepath.Join(s.Dir, "tokens") }

// InitOptions are what a new cluster begins with.
type InitOptions struct {
	Cluster string // its name
	Node    string // this node's
	Links   []netip.AddrPort
	// Change, if not nil, has the last word on the description: the arbiter, times.
	Change func(c *conf.Cluster) error
}

// Init makes a cluster with this node as its only one. A node that is in a
// cluster already is refused, and nothing is changed.
func Init(s Store, o InitOptions) (*conf.Cluster, error) {
	if err := s.vacant(); err != nil {
		return nil, err
	}
	c := conf.DefaultCluster()
	c.Name, c.ID, c.Serial, c.File = o.Cluster, newUUID(), 1, s.File
	c.Nodes = []conf.ClusterNode{{Name: o.Node, Kind: conf.NodeData, Links: o.Links}}
	if o.Change != nil {
		if err := o.Change(c); err != nil {
			return nil, err
		}
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	ca, err := newAuthority(c.Name, c.ID)
	if err != nil {
		return nil, err
	}
	caKey, err := keyPEM(ca.key)
	if err != nil {
		return nil, err
	}
	key, keyText, err := newKey()
	if err != nil {
		return nil, err
	}
	cert, err := ca.issue(c, o.Node, o.Links, &key.PublicKey)
	if err != nil {
		return nil, err
	}
	id, err := newIdentity(certPEM(ca.cert.Raw), caKey, certPEM(cert), keyText)
	if err != nil {
		return nil, err
	}
	c.Nodes[0].PublicKey = id.PublicKey
	return c, s.found(c, memberFiles{ca: certPEM(ca.cert.Raw), caKey: caKey, cert: certPEM(cert), key: keyText})
}

// memberFiles are the contents of Dir; caKey may be nil.
type memberFiles struct{ ca, caKey, cert, key []byte }

// vacant refuses a node that is, or was left, in a cluster.
func (s Store) vacant() error {
	id, c, err := s.Load()
	switch {
	case err == nil:
		return fmt.Errorf("node %q is in cluster %q (id %s) already: nothing was changed; polluxadm cluster leave %s ends that", id.Node, c.Name, c.ID, id.Node)
	case !errors.Is(err, ErrNoCluster):
		return fmt.Errorf("this node has state of a cluster that can't be read: nothing was changed; repair it, or move %s and %s away: %w", s.Dir, s.File, err)
	}
	return nil
}

// found writes the state of a new member. It is one when Dir has its name.
func (s Store) found(c *conf.Cluster, files memberFiles) error {
	if err := os.MkdirAll(filepath.Dir(s.Dir), 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(s.Dir), filepath.Base(s.Dir)+".new-")
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // it has another name by now, or is of no use
	t := Store{Dir: tmp}
	for _, f := range []struct {
		path string
		text []byte
	}{{t.CAFile(), files.ca}, {t.caKeyFile(), files.caKey}, {t.CertFile(), files.cert}, {t.KeyFile(), files.key}, {t.copyFile(), c.Text()}} {
		if len(f.text) == 0 {
			continue
		}
		if err := WriteFile(f.path, f.text); err != nil {
			return err
		}
	}
	if err := os.Mkdir(t.tokenDir(), 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if err := os.Rename(tmp, s.Dir); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if err := syncDir(filepath.Dir(s.Dir)); err != nil {
		return err
	}
	return WriteFile(s.File, c.Text())
}

// Load reads who this node is, and its cluster. Without one the error wraps
// ErrNoCluster. An Init or Join that was interrupted after its last step but one
// is completed.
func (s Store) Load() (*Identity, *conf.Cluster, error) {
	ca, err := readSmall(s.CAFile())
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(s.File); err == nil {
			return nil, nil, fmt.Errorf("%s is there, but no certificates in %s: cluster.toml is written by polluxadm cluster init and join; move it away first", s.File, s.Dir)
		}
		return nil, nil, ErrNoCluster
	}
	if err != nil {
		return nil, nil, err
	}
	cert, err := readSmall(s.CertFile())
	if err != nil {
		return nil, nil, err
	}
	key, err := readSecret(s.KeyFile())
	if err != nil {
		return nil, nil, err
	}
	caKey, err := readSecret(s.caKeyFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	id, err := newIdentity(ca, caKey, cert, key)
	if err != nil {
		return nil, nil, fmt.Errorf("certificates in %s: %w", s.Dir, err)
	}
	c, err := s.loadFile()
	if err != nil {
		return nil, nil, err
	}
	n := c.Node(id.Node)
	switch {
	case c.ID != id.ClusterID:
		return nil, nil, fmt.Errorf("%s is of cluster %q with id %s, the certificates in %s are of %q with id %s: put the file of that cluster there", s.File, c.Name, c.ID, s.Dir, id.ClusterName, id.ClusterID)
	case n == nil || n.Name != id.Node:
		return nil, nil, fmt.Errorf("%s has no node %q, for which the certificate in %s is: this node was removed from cluster %q; polluxadm cluster leave forgets it here", s.File, id.Node, s.Dir, c.Name)
	case n.PublicKey != "" && n.PublicKey != id.PublicKey:
		return nil, nil, fmt.Errorf("%s has another public-key for node %q than the certificate in %s: another machine has joined under this name", s.File, id.Node, s.Dir)
	}
	return id, c, nil
}

func (s Store) loadFile() (*conf.Cluster, error) {
	c, err := conf.LoadCluster(s.File)
	if !errors.Is(err, fs.ErrNotExist) {
		return c, err
	}
	text, err := readSmall(s.copyFile())
	if err != nil {
		return nil, err
	}
	if err := WriteFile(s.File, text); err != nil {
		return nil, err
	}
	return conf.LoadCluster(s.File)
}

// Save replaces cluster.toml. It is on disk when Save returns.
func (s Store) Save(c *conf.Cluster) error {
	if err := WriteFile(s.copyFile(), c.Text()); err != nil {
		return err
	}
	return WriteFile(s.File, c.Text())
}

// leftFile in Dir says that the cluster was left, and that Retire has not ended yet.
func (s Store) leftFile() string { return filepath.Join(s.Dir, "left") }

// IsRetiring reports whether a Retire was cut off: it is to be called again before
// anything else.
func (s Store) IsRetiring() bool {
	_, err := os.Lstat(s.leftFile())
	return err == nil
}

// Retire forgets the cluster: keys are removed, the rest, and what lies at the paths
// beside, is kept under another name, which is returned. One that is cut off at any
// point is completed by the next one. What of beside can't be moved stays, and is told
// when all else is done.
func (s Store) Retire(beside ...string) (kept string, err error) {
	for n := 1; ; n++ {
		kept = fmt.Sprintf("%s.left-%d", s.Dir, n)
		if _, err := os.Lstat(kept); errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err := s.retire(kept, beside); err != nil {
		return "", fmt.Errorf("forget the cluster: %w", err)
	}
	return kept, nil
}

func (s Store) retire(kept string, beside []string) error {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return err
	}
	if err := WriteFile(s.leftFile(), nil); err != nil {
		return err
	}
	for _, path := range []string{s.caKeyFile(), s.KeyFile()} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := moveAway(s.File, filepath.Join(s.Dir, "cluster.toml.last")); err != nil {
		return err
	}
	var stays []error
	for _, path := range beside {
		stays = append(stays, moveAway(path, filepath.Join(s.Dir, filepath.Base(path))))
	}
	// The last step: what is in Dir is whole by now.
	if err := errors.Join(syncDir(s.Dir), syncDir(filepath.Dir(s.File)), os.Rename(s.Dir, kept)); err != nil {
		return err
	}
	stays = append(stays, os.Remove(filepath.Join(kept, filepath.Base(s.leftFile()))), syncDir(filepath.Dir(s.Dir)))
	return errors.Join(stays...)
}

// moveAway renames what may not be there.
func moveAway(from, to string) error {
	if err := os.Rename(from, to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// maxFile bounds the files of a Store.
const maxFile = 256 << 10

func readSmall(path string) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxFile {
		return nil, fmt.Errorf("%s is no file of at most %d KiB", path, maxFile>>10)
	}
	return os.ReadFile(path)
}

func readSecret(path string) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others (mode %04o): run `chmod 600 %s`", path, fi.Mode().Perm(), path)
	}
	return readSmall(path)
}

// WriteFile replaces a file, mode 0600: whatever happens there is the old one or
// the new one, and the new one is on disk when it returns.
func WriteFile(path string, text []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // of no use to anybody
		}
	}()
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// newUUID makes a random one (version 4, RFC 9562).
func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
