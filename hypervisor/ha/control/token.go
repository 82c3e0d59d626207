package control

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pollux-project/pollux/conf"
)

// Bounds of join tokens. TokenLife is enough for walking to another machine room.
const (
	TokenLife    = time.Hour
	maxTokenLife = 24 * time.Hour
	maxTokenText = 4096
	maxTokens    = 64 // that are outstanding
	tokenPrefix  = "pollux1."
)

// Token is what a new node needs to join: where, whom to believe, and a secret
// that is good once.
type Token struct {
	Cluster   string           `json:"c"`
	ClusterID string           `json:"i"`
	Node      string           `json:"n"` // who may join with it
	Addresses []netip.AddrPort `json:"a"` // of nodes that are members, the one that gave it out first
	CA        string           `json:"f"` // fingerprint of the cluster's CA
	ID        string           `json:"t"` // 16 digits, of the token
	Secret    string           `json:"s"` // 32 digits
	Expires   time.Time        `json:"e"` // by the clock of the node that gave it out
}

// String gives the form that people copy.
func (t Token) String() string {
	b, err := json.Marshal(t)
	if err != nil {
		panic(fmt.Sprintf("control: a token can't be encoded: %v", err)) // texts and addresses only
	}
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParseToken reads what String gives; space around and within it, as terminals
// and mails add it, does not matter.
func ParseToken(text string) (Token, error) {
	var t Token
	bad := func(why string) (Token, error) {
		return Token{}, fmt.Errorf("this is no join token (%s): copy the whole line that polluxadm cluster token prints", why)
	}
	if len(text) > maxTokenText {
		return bad("too long")
	}
	body, ok := strings.CutPrefix(strings.Join(strings.Fields(text), ""), tokenPrefix)
	if !ok {
		return bad(fmt.Sprintf("it does not begin with %q", tokenPrefix))
	}
	b, err := base64.RawURLEncoding.DecodeString(body)
	if err != nil {
		return bad("a part is missing or changed")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&t); err != nil {
		return bad("a part is missing or changed")
	}
	switch {
	case t.Cluster == "" || t.ClusterID == "" || t.Node == "":
		return bad("it names no cluster or node")
	case len(t.Addresses) == 0 || len(t.Addresses) > conf.MaxClusterNodes*conf.MaxLinks:
		return bad("it has no address")
	case len(t.CA) != 7+64 || !isHex(t.ID, 16) || !isHex(t.Secret, 32):
		return bad("a part is missing or changed")
	}
	for _, a := range t.Addresses {
		if !a.IsValid() || a.Port() == 0 {
			return bad("an address is wrong")
		}
	}
	return t, nil
}

func isHex(s string, n int) bool {
	_, err := hex.DecodeString(s)
	return err == nil && len(s) == n && strings.ToLower(s) == s
}

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// pending is a token that was given out, as its file has it: without the secret.
type pending struct {
	ID      string           `json:"id"`
	Hash    string           `json:"hash"` // SHA-256 of the secret
	Node    string           `json:"node"`
	Kind    string           `json:"kind"`
	Links   []netip.AddrPort `json:"links"`
	Expires time.Time        `json:"expires"`
}

func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

func (s Store) tokenFile(id string) string { return filepath.Join(s.tokenDir(), id+".json") }

func (s Store) addToken(p pending) error {
	list, err := s.tokens(time.Now())
	if err != nil {
		return err
	}
	if len(list) >= maxTokens {
		return fmt.Errorf("%d join tokens are outstanding: wait until they expire", len(list))
	}
	for _, old := range list {
		if conf.SameHost(old.Node, p.Node) { // the newest is the one that counts
			if err := s.dropToken(old.ID); err != nil {
				return err
			}
		}
	}
	b, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode a token: %w", err)
	}
	return WriteFile(s.tokenFile(p.ID), b)
}

// tokens lists those that are good; the files of others are removed.
func (s Store) tokens(now time.Time) ([]pending, error) {
	files, err := os.ReadDir(s.tokenDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("tokens: %w", err)
	}
	if err != nil {
		return nil, os.MkdirAll(s.tokenDir(), 0o700)
	}
	var list []pending
	for _, f := range files {
		id, ok := strings.CutSuffix(f.Name(), ".json")
		if !ok || !isHex(id, 16) {
			continue
		}
		var p pending
		b, err := readSecret(s.tokenFile(id))
		if err == nil {
			err = json.Unmarshal(b, &p)
		}
		// A clock that was set back must not make a token good for years.
		if err != nil || p.ID != id || now.After(p.Expires) || p.Expires.Sub(now) > maxTokenLife {
			if err := s.dropToken(id); err != nil {
				return nil, err
			}
			continue
		}
		list = append(list, p)
	}
	return list, nil
}

func (s Store) dropToken(id string) error {
	if err := os.Remove(s.tokenFile(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("tokens: %w", err)
	}
	return syncDir(s.tokenDir())
}

// findToken returns the token of an ID if the secret is right.
func (s Store) findToken(id, secret string, now time.Time) (pending, error) {
	list, err := s.tokens(now)
	if err != nil {
		return pending{}, err
	}
	for _, p := range list {
		if p.ID == id && subtle.ConstantTimeCompare([]byte(p.Hash), []byte(hashSecret(secret))) == 1 {
			return p, nil
		}
	}
	return pending{}, errors.New("the token is used up, has expired or was given out by another node: make a new one with polluxadm cluster token")
}
