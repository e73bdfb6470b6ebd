package authlib

import (
	"encoding/base64"
	"strings"
	"testing"
)

func TestParseSealKeys_TakesTheFirstToSealAndNamesWhatIsWrong(t *testing.T) {
	key := func(b byte, n int) string {
		return base64.StdEncoding.EncodeToString([]byte(strings.Repeat(string(rune(b)), n)))
	}
	keys, err := ParseSealKeys("2026b:" + key('b', 32) + ", 2026a:" + key('a', 32))
	if err != nil {
		t.Fatal(err)
	}
	if len(keys) != 2 || keys[0].ID != "2026b" || keys[1].ID != "2026a" || keys[0].Key[0] != 'b' {
		t.Errorf("got %v", keys)
	}
	for text, want := range map[string]string{
		"":                             "openssl rand -base64 32",
		"k1":                           "key 1: want id:base64",
		"k 1:" + key('a', 32):          "key 1: want id:base64",
		"k1:secret-not-base64!":        `key "k1": not base64`,
		"k1:" + key('s', 16):           `key "k1" has 16 bytes, want 32`,
		"k1:" + key('a', 32) + ",k1:x": `key "k1": not base64`,
		"k1:" + key('a', 32) + ",k1:" + key('b', 32): `id "k1" is there twice`,
	} {
		_, err := ParseSealKeys(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want an error with %q", text, err, want)
		}
		if err != nil && (strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), key('s', 16))) {
			t.Errorf("the error repeats the key: %v", err)
		}
	}
}
