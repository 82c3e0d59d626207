package drbd

import (
	"crypto/hmac"
	"crypto/subtle"
)

// AuthChallengeSize is the number of random bytes in a P_AUTH_CHALLENGE that we
// send. Source: drbd_receiver.c, CHALLENGE_LEN; the kernel takes 64 to 128.
const AuthChallengeSize = 64

// AuthResponse is the payload of P_AUTH_RESPONSE: the HMAC of the whole payload
// of the peer's P_AUTH_CHALLENGE, keyed with the shared secret. alg is the
// cram-hmac-alg: md5, sha1, sha256, sha384 or sha512; the error is a
// *AlgorithmError if it is another.
func AuthResponse(alg, secret string, challenge []byte) ([]byte, error) {
	newHash, err := macHash(alg)
	if err != nil {
		return nil, err
	}
	m := hmac.New(newHash, []byte(secret))
	m.Write(challenge)
	return m.Sum(nil), nil
}

// AuthResult is the verdict on a peer's P_AUTH_RESPONSE.
type AuthResult uint8

// Verdicts. After AuthWrongSize the kernel tries the connection again, after
// AuthRefused it gives up.
const (
	AuthOK AuthResult = iota
	AuthWrongSize
	AuthRefused
)

// CheckAuthResponse judges the peer's response to our challenge, in time that
// does not depend on where it differs.
func CheckAuthResponse(alg, secret string, challenge, response []byte) (AuthResult, error) {
	want, err := AuthResponse(alg, secret, challenge)
	if err != nil {
		return AuthRefused, err
	}
	if len(response) != len(want) {
		return AuthWrongSize, nil
	}
	if subtle.ConstantTimeCompare(response, want) != 1 {
		return AuthRefused, nil
	}
	return AuthOK, nil
}

// AuthReflected reports whether the peer's challenge is our own sent back: it
// would make us compute the answer that it has to give. The caller gives up.
func AuthReflected(mine, peer []byte) bool {
	return len(peer) >= len(mine) && subtle.ConstantTimeCompare(mine, peer[:len(mine)]) == 1
}
