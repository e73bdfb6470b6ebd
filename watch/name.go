package watch

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Name is a table's schema and name as the catalog has them.
type Name struct{ Schema, Table string }

// maxName is NAMEDATALEN-1: Postgres would cut a longer one and then find, or not find, another table.
const maxName = 63

// ParseName reads a table's name as SQL would: unquoted parts fold to lower case, quoted ones are taken as they are, and
// a doubled quote stands for one. A name without a schema is in public.
func ParseName(text string) (Name, error) {
	var parts []string
	rest := strings.TrimSpace(text)
	for {
		part, after, err := parsePart(rest)
		if err != nil {
			return Name{}, fmt.Errorf("%q: %w", text, err)
		}
		parts = append(parts, part)
		if after == "" {
			break
		}
		if after[0] != '.' {
			return Name{}, fmt.Errorf("%q: unexpected %q; write schema.table, and quote a part that holds other signs", text, after)
		}
		rest = after[1:]
	}
	switch len(parts) {
	case 1:
		return Name{Schema: "public", Table: parts[0]}, nil
	case 2:
		return Name{Schema: parts[0], Table: parts[1]}, nil
	default:
		return Name{}, fmt.Errorf("%q: has %d parts; write schema.table", text, len(parts))
	}
}

func parsePart(text string) (part, rest string, err error) {
	if strings.HasPrefix(text, `"`) {
		part, rest, err = parseQuoted(text[1:])
	} else {
		end := 0
		for end < len(text) && isNameByte(text[end], end == 0) {
			end++
		}
		// Postgres folds ASCII only in a UTF-8 database; strings.ToLower would fold more.
		part, rest = asciiLower(text[:end]), text[end:]
	}
	switch {
	case err != nil:
		return "", "", err
	case part == "":
		return "", "", errors.New("a part is empty; write schema.table, and quote a part that holds other signs")
	case len(part) > maxName:
		return "", "", fmt.Errorf("a part is longer than %d bytes", maxName)
	case strings.ContainsRune(part, 0):
		return "", "", errors.New("a part holds a NUL byte")
	}
	return part, rest, nil
}

func parseQuoted(text string) (part, rest string, err error) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '"' {
			b.WriteByte(text[i])
			continue
		}
		if i+1 < len(text) && text[i+1] == '"' {
			b.WriteByte('"')
			i++
			continue
		}
		return b.String(), text[i+1:], nil
	}
	return "", "", errors.New("a quote is not closed")
}

func isNameByte(c byte, first bool) bool {
	switch {
	case c == '_', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= 0x80:
		return true
	default:
		return !first && (c == '$' || c >= '0' && c <= '9')
	}
}

func asciiLower(text string) string {
	lower := []byte(text)
	for i, c := range lower {
		if c >= 'A' && c <= 'Z' {
			lower[i] = c + 'a' - 'A'
		}
	}
	return string(lower)
}

// SQL is the name with both parts quoted.
func (n Name) SQL() string { return pgx.Identifier{n.Schema, n.Table}.Sanitize() }

// String is the name as a person writes it, quoted where it must be.
func (n Name) String() string { return plain(n.Schema) + "." + plain(n.Table) }

func plain(part string) string {
	for i := range len(part) {
		if c := part[i]; !isNameByte(c, i == 0) || c >= 'A' && c <= 'Z' {
			return quote(part)
		}
	}
	return part
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }
