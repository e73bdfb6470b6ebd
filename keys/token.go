package keys

import (
	"crypto/rand"
	"database/sql/driver"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"regexp"
	"strings"
)

// DefaultPrefix is what tokens begin with unless Config.Prefix says otherwise.
const DefaultPrefix = "af_live"

const (
	digits        = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	randomDigits  = 30 // 62^30 is 2^178.6
	checkDigits   = 6  // 62^6 is more than 2^32
	maxPrefix     = 32
	maxTokenBytes = 4096
)

// Why Parse does not take a text for a token.
var (
	// ErrForm: not prefix, underscore and 36 base62 digits. Cut, or of another make.
	ErrForm = errors.New("not a token of this form")
	// ErrChecksum: the form is right, and a character is not what it was.
	ErrChecksum = errors.New("the checksum does not fit: the token was mistyped")
)

// Token is a secret. Only Reveal gives it away.
type Token struct{ text string }

// newToken draws a token. A prefix that does not validate is the caller's bug.
func newToken(prefix string) Token {
	random := make([]byte, 0, randomDigits)
	for draw := make([]byte, 2*randomDigits); len(random) < randomDigits; {
		_, _ = rand.Read(draw) // never fails
		for _, b := range draw {
			// 248 is 4 * 62: beyond it, the low digits would come up more often.
			if b < 248 && len(random) < randomDigits {
				random = append(random, digits[b%62])
			}
		}
	}
	return Token{seal(prefix + "_" + string(random))}
}

// seal appends the checksum.
func seal(text string) string {
	var check [checkDigits]byte
	sum := crc32.ChecksumIEEE([]byte(text))
	for i := len(check) - 1; i >= 0; i-- {
		check[i] = digits[sum%62]
		sum /= 62
	}
	return text + string(check[:])
}

// Parse reads a token of any prefix, offline. It says nothing of whether there is such a key. Its errors are ErrForm and
// ErrChecksum, and never repeat the text.
func Parse(text string) (Token, error) {
	at := strings.LastIndexByte(text, '_')
	if at < 0 || len(text)-at-1 != randomDigits+checkDigits || checkPrefix(text[:at]) != nil {
		return Token{}, ErrForm
	}
	for _, c := range []byte(text[at+1:]) {
		if strings.IndexByte(digits, c) < 0 {
			return Token{}, ErrForm
		}
	}
	if seal(text[:len(text)-checkDigits]) != text {
		return Token{}, ErrChecksum
	}
	return Token{text}, nil
}

// Prefix is what the token begins with, without the underscore.
func (t Token) Prefix() string {
	if t.text == "" {
		return ""
	}
	return t.text[:strings.LastIndexByte(t.text, '_')]
}

// Pattern is a regular expression (RE2, PCRE, ECMAScript) that finds the tokens of a prefix in any text, for scanners of
// secrets. What it finds and Parse refuses is none.
func Pattern(prefix string) string {
	return fmt.Sprintf(`\b%s_[0-9A-Za-z]{%d}\b`, regexp.QuoteMeta(prefix), randomDigits+checkDigits)
}

func checkPrefix(prefix string) error {
	ok := prefix != "" && len(prefix) <= maxPrefix && prefix[0] >= 'a' && prefix[0] <= 'z' && prefix[len(prefix)-1] != '_'
	for _, c := range []byte(prefix) {
		ok = ok && (c == '_' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9')
	}
	if !ok {
		return fmt.Errorf("want 1 to %d of a-z, 0-9 and _, a letter first and no _ last, for instance %s", maxPrefix, DefaultPrefix)
	}
	return nil
}

const redacted = "[redacted]"

// Reveal is the token itself, to be handed to whom it is for.
func (t Token) Reveal() string { return t.text }

// Format covers every verb of fmt.
func (Token) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalJSON is for loggers that write JSON.
func (Token) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// LogValue is for slog.
func (Token) LogValue() slog.Value { return slog.StringValue(redacted) }

// Value is for Postgres, where the column holds the token itself.
func (t Token) Value() (driver.Value, error) { return t.text, nil }
