package authlib

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
)

// SealKeyBytes is the length of a key for sealing.
const SealKeyBytes = 32

// SealKey is a key that L2 values are sealed with, and its name. Every node of a
// deployment holds the same keys. To rotate: add the new key as the second on
// every node, then make it the first, and drop the old one after Config.TTL.
type SealKey struct {
	ID  string // 1 to 32 letters, digits, '-', '_' or '.'; stands readable in the value
	Key []byte // SealKeyBytes bytes from a random source; not a passphrase
}

// sealer seals with its first key and opens with any.
//
// A value is sealed by AES-256-GCM under a key drawn for it alone: the first
// half of a random 24-byte nonce derives the key, the second half is GCM's own
// nonce (XAES-256-GCM, c2sp.org/XAES-256-GCM). So random nonces stay safe for
// 2^80 values instead of 2^32, which a busy fleet seals within weeks.
type sealer struct {
	primary string
	boxes   map[string]*box
}

func newSealer(keys []SealKey) (*sealer, error) {
	if len(keys) == 0 {
		return nil, errors.New("no key: values in Redis must be sealed, give one SealKey of 32 random bytes (openssl rand -base64 32)")
	}
	s := &sealer{primary: keys[0].ID, boxes: make(map[string]*box, len(keys))}
	for i, k := range keys {
		if !validSealID(k.ID) {
			return nil, fmt.Errorf("key %d: id: want 1 to 32 letters, digits, '-', '_' or '.'", i+1)
		}
		if _, twice := s.boxes[k.ID]; twice {
			return nil, fmt.Errorf("key %d: id %q is there twice", i+1, k.ID)
		}
		if len(k.Key) != SealKeyBytes {
			return nil, fmt.Errorf("key %q has %d bytes, want %d (openssl rand -base64 32, decoded)", k.ID, len(k.Key), SealKeyBytes)
		}
		if subtle.ConstantTimeCompare(k.Key, make([]byte, SealKeyBytes)) == 1 {
			return nil, fmt.Errorf("key %q is all zeros: draw it from a random source (openssl rand -base64 32)", k.ID)
		}
		b, err := newBox(k.Key)
		if err != nil {
			return nil, fmt.Errorf("key %q: %w", k.ID, err)
		}
		s.boxes[k.ID] = b
	}
	return s, nil
}

func validSealID(id string) bool {
	if id == "" || len(id) > 32 {
		return false
	}
	for i := range len(id) {
		c := id[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

const sealNonceBytes = 24

// seal appends nonce and ciphertext to dst, under the primary key.
func (s *sealer) seal(dst, plain, data []byte) ([]byte, error) {
	var nonce [sealNonceBytes]byte
	_, _ = rand.Read(nonce[:]) // never fails (crypto/rand, Go 1.24)
	dst = append(dst, nonce[:]...)
	return s.boxes[s.primary].seal(dst, nonce, plain, data)
}

var errSealed = errors.New("value does not open")

// open takes what seal appended.
func (s *sealer) open(id string, sealed, data []byte) ([]byte, error) {
	b, ok := s.boxes[id]
	if !ok || len(sealed) < sealNonceBytes {
		return nil, errSealed
	}
	plain, err := b.open(nil, [sealNonceBytes]byte(sealed), sealed[sealNonceBytes:], data)
	if err != nil {
		return nil, errSealed
	}
	return plain, nil
}

// box is XAES-256-GCM under one key.
type box struct {
	block  cipher.Block
	subkey [aes.BlockSize]byte // CMAC's K1
}

func newBox(key []byte) (*box, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	b := &box{block: block}
	block.Encrypt(b.subkey[:], b.subkey[:])
	var carry byte
	for i := aes.BlockSize - 1; i >= 0; i-- {
		next := b.subkey[i] >> 7
		b.subkey[i] = b.subkey[i]<<1 | carry
		carry = next
	}
	b.subkey[aes.BlockSize-1] ^= carry * 0b1000_0111
	return b, nil
}

// derive gives the AEAD of one nonce: two CMAC blocks over a counter, 'X' and
// the nonce's first half make the key.
func (b *box) derive(nonce [sealNonceBytes]byte) (cipher.AEAD, error) {
	var key [32]byte
	for i := range 2 {
		m := [aes.BlockSize]byte{0, byte(i + 1), 'X', 0}
		copy(m[4:], nonce[:12])
		subtle.XORBytes(m[:], m[:], b.subkey[:])
		b.block.Encrypt(key[i*aes.BlockSize:], m[:])
	}
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func (b *box) seal(dst []byte, nonce [sealNonceBytes]byte, plain, data []byte) ([]byte, error) {
	aead, err := b.derive(nonce)
	if err != nil {
		return nil, err
	}
	return aead.Seal(dst, nonce[12:], plain, data), nil
}

func (b *box) open(dst []byte, nonce [sealNonceBytes]byte, sealed, data []byte) ([]byte, error) {
	aead, err := b.derive(nonce)
	if err != nil {
		return nil, err
	}
	return aead.Open(dst, nonce[12:], sealed, data)
}
