package drbd

import (
	"crypto/md5"  //nolint:gosec // the protocol's choice, by the configuration
	"crypto/sha1" //nolint:gosec // as md5
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"hash"
	"hash/crc32"
)

// An AlgorithmError says that a hash of that name is not to be had here.
type AlgorithmError struct {
	Name string
	For  string // "digest" or "MAC"
}

func (e *AlgorithmError) Error() string {
	known := "crc32c, md5, sha1, sha256, sha384 or sha512"
	if e.For == "MAC" {
		known = "md5, sha1, sha256, sha384 or sha512"
	}
	return fmt.Sprintf("%s algorithm %q: not supported, take %s", e.For, e.Name, known)
}

// NewDigest is a new hash for data-integrity-alg, verify-alg or csums-alg, by
// its name in Linux's crypto API: crc32c, md5, sha1, sha256, sha384 or sha512.
// Sum gives the bytes as the kernel puts them on the wire. The error is an
// *AlgorithmError.
func NewDigest(alg string) (hash.Hash, error) {
	if alg == "crc32c" {
		return crc32c{crc32.New(castagnoli)}, nil
	}
	newHash, err := macHash(alg)
	if err != nil {
		return nil, &AlgorithmError{Name: alg, For: "digest"}
	}
	return newHash(), nil
}

// macHash is the hash that cram-hmac-alg names.
func macHash(alg string) (func() hash.Hash, error) {
	switch alg {
	case "md5":
		return md5.New, nil
	case "sha1":
		return sha1.New, nil
	case "sha256":
		return sha256.New, nil
	case "sha384":
		return sha512.New384, nil
	case "sha512":
		return sha512.New, nil
	}
	return nil, &AlgorithmError{Name: alg, For: "MAC"}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c is CRC-32C as the kernel's crypto API stores it: the standard value
// (start and end inverted), but in little-endian byte order. (seen on the wire,
// drbd84-protocol, 10.3 no. 17)
type crc32c struct{ hash.Hash32 }

func (c crc32c) Sum(b []byte) []byte { return binary.LittleEndian.AppendUint32(b, c.Sum32()) }
