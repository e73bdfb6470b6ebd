package keys

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"
)

// golden are tokens of version one, which is for good. Their checksums were made by zlib.
var golden = []string{
	"af_live_PYXQq4GoG7bX06SyWDkuuPBFGbX5y21zfdZf",
	"af_live_0000000000000000000000000000000o2cAz",
	"af_live_0123456789ABCDEFGHIJKLMNOPQRST38O2XM",
	"af_live_WXYZabcdefghijklmnopqrstuvwxyz2yxBnL",
	"af_live_g7OIRw3ELQbaVcDbWh5LoePtfBnyFX007sjt", // the checksum is padded
	"af_test_0123456789ABCDEFGHIJKLMNOPQRST1DL7kV", // the prefix counts
	"k_zzzzzzzzzzzzzzzzzzzzzzzzzzzzzz0kKcsH",
	"a2_b__c_Zz9Zz9Zz9Zz9Zz9Zz9Zz9Zz9Zz9Zz94g619l",
}

func TestToken_GoldenVectors(t *testing.T) {
	t.Parallel()
	for _, text := range golden {
		token, err := Parse(text)
		if err != nil || token.Reveal() != text {
			t.Errorf("Parse(%s) = %q, %v", text, token.Reveal(), err)
		}
		if seal(text[:len(text)-checkDigits]) != text {
			t.Errorf("%s is sealed otherwise", text)
		}
		if prefix := text[:len(text)-randomDigits-checkDigits-1]; token.Prefix() != prefix {
			t.Errorf("prefix %q of %s", token.Prefix(), text)
		}
	}
}

// Each character replaced by each other one, each pair of neighbours swapped, each character left out or doubled.
func TestToken_EverySlipOfTheHandIsSeen(t *testing.T) {
	t.Parallel()
	const text = "af_live_PYXQq4GoG7bX06SyWDkuuPBFGbX5y21zfdZf"
	for i := range len(text) {
		for _, c := range []byte(digits) {
			if slip := text[:i] + string(c) + text[i+1:]; slip != text {
				if _, err := Parse(slip); err == nil {
					t.Errorf("%s got through", slip)
				}
			}
		}
		for _, slip := range []string{text[:i] + text[i+1:], text[:i] + text[i:i+1] + text[i:]} {
			if _, err := Parse(slip); !errors.Is(err, ErrForm) && !errors.Is(err, ErrChecksum) {
				t.Errorf("%s: %v", slip, err)
			}
		}
		if i > 0 && text[i-1] != text[i] {
			slip := text[:i-1] + text[i:i+1] + text[i-1:i] + text[i+1:]
			if _, err := Parse(slip); err == nil {
				t.Errorf("%s got through", slip)
			}
		}
	}
}

func TestParse_TellsAnotherFormFromASlip(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]error{
		"":                                 ErrForm,
		"_":                                ErrForm,
		"sk_live_4eC39HqLyjWDarjtT1zdp7dc": ErrForm,
		"eyJhbGciOiJIUzI1NiJ9.e30.abc":     ErrForm,
		"AF_LIVE_PYXQq4GoG7bX06SyWDkuuPBFGbX5y21zfdZf": ErrForm,
		"af_live_PYXQq4GoG7bX06SyWDkuuPBFGbX5y21zfdZ":  ErrForm, // cut
		"af_live_PYXQq4GoG7bX06SyWDkuuPBFGbX5y21zfd-f": ErrForm,
		"af_live_PYXQq4GoG7bX06SyWDkuuPBFGbX5y21zfdZg": ErrChecksum,
		"af_test_PYXQq4GoG7bX06SyWDkuuPBFGbX5y21zfdZf": ErrChecksum,
		"af_live_PYXQq4GoG7bX06SyWDkuuPBFGbX5y2zzzzzz": ErrChecksum, // above 2^32
	} {
		if _, err := Parse(text); !errors.Is(err, want) {
			t.Errorf("Parse(%q): %v, want %v", text, err, want)
		}
	}
}

func TestToken_NewOnesDifferAndAreFoundByTheirPattern(t *testing.T) {
	t.Parallel()
	seen, used := map[string]bool{}, map[rune]bool{}
	pattern := regexp.MustCompile(Pattern("af_live"))
	for range 1000 {
		text := newToken("af_live").Reveal()
		if _, err := Parse(text); err != nil || seen[text] {
			t.Fatalf("%s: %v, seen %v", text, err, seen[text])
		}
		seen[text] = true
		for _, c := range text[len("af_live_"):][:randomDigits] {
			used[c] = true
		}
		if found := pattern.FindString(`curl -H "Authorization: Bearer ` + text + `" https://api`); found != text {
			t.Fatalf("the pattern found %q of %s", found, text)
		}
	}
	if len(used) != 62 {
		t.Errorf("%d digits were drawn, want all 62", len(used))
	}
	if pattern.MatchString(newToken("af_test").Reveal()) {
		t.Error("the pattern finds tokens of another prefix")
	}
}

func TestToken_DoesNotShowItself(t *testing.T) {
	t.Parallel()
	token := newToken("af_live")
	var logged strings.Builder
	slog.New(slog.NewTextHandler(&logged, nil)).Info("made", "token", token, "in", struct{ T Token }{token})
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("made", "token", token, "in", struct{ T Token }{token})
	encoded, err := json.Marshal(map[string]any{"token": token, "pointer": &token})
	if err != nil {
		t.Fatal(err)
	}
	all := fmt.Sprintf("%v %+v %#v %s %q %x %d %v", token, token, token, token, token, token, token, []any{token, &token}) + logged.String() + string(encoded)
	if strings.Contains(all, token.Reveal()) || strings.Contains(all, token.Reveal()[8:]) {
		t.Errorf("it shows: %s", all)
	}
}

func TestPrefix_NamesTheMend(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"a", "af_live", "acme2", "a__b", strings.Repeat("a", 32)} {
		if err := checkPrefix(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "_a", "a_", "2a", "Af", "a-b", "a b", "é", strings.Repeat("a", 33)} {
		if err := checkPrefix(bad); err == nil || !strings.Contains(err.Error(), "for instance af_live") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Whatever is read: no panic; what is taken for a token is sealed, has a good prefix, and is found by its pattern.
func FuzzParse(f *testing.F) {
	for _, text := range golden {
		f.Add(text)
	}
	f.Add("af_live_PYXQq4GoG7bX06SyWDkuuPBFGbX5y21zfdZg")
	f.Add("_")
	f.Add("é_\xff000000000000000000000000000000000000")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := Parse(text)
		if err != nil {
			if token != (Token{}) || len(text) > 8 && strings.Contains(err.Error(), text) {
				t.Errorf("%q: token %q with the error %v", text, token.Reveal(), err)
			}
			// Sealed, anything of the right form is a token.
			if sealed := seal(text); len(text) > randomDigits {
				if token, err := Parse(sealed); err == nil && token.Reveal() != sealed {
					t.Errorf("%q was read as %q", sealed, token.Reveal())
				}
			}
			return
		}
		if token.Reveal() != text || checkPrefix(token.Prefix()) != nil || seal(text[:len(text)-checkDigits]) != text {
			t.Errorf("%q was taken for a token of %q", text, token.Prefix())
		}
		if !regexp.MustCompile(`^` + Pattern(token.Prefix()) + `$`).MatchString(text) {
			t.Errorf("%q is not found by its pattern", text)
		}
	})
}
