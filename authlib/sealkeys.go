package authlib

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// ParseSealKeys reads keys for sealing from one line of text, as it stands in an
// environment variable or a secret: "id:base64", comma-separated, the one that
// seals first, for instance "2026b:m3J…=,2026a:Zk1…=". Its errors name the key by
// place and id, never its bytes.
func ParseSealKeys(text string) ([]SealKey, error) {
	if strings.TrimSpace(text) == "" {
		return nil, errors.New("no key for sealing: want id:base64 of 32 random bytes, for instance from: echo \"k1:$(openssl rand -base64 32)\"")
	}
	var keys []SealKey
	for part := range strings.SplitSeq(text, ",") {
		id, encoded, ok := strings.Cut(strings.TrimSpace(part), ":")
		if !ok || !validSealID(id) {
			return nil, fmt.Errorf("key %d: want id:base64, the id of letters, digits, '-', '_' or '.'", len(keys)+1)
		}
		key, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return nil, fmt.Errorf("key %q: not base64 (openssl rand -base64 32 gives some)", id)
		}
		keys = append(keys, SealKey{ID: id, Key: key})
	}
	if _, err := newSealer(keys); err != nil {
		return nil, err
	}
	return keys, nil
}
