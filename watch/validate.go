package watch

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// maxLoad keeps the loaded columns within the 100 arguments of one jsonb_build_object.
const maxLoad = 50

// maxThreshold bounds what one transaction may put into the change log row by row.
const maxThreshold = 1_000_000

// Validate checks the mapping by itself, without a database. It reports every problem, each with field and mend.
func (c Config) Validate() error {
	p := &problems{}
	for _, kind := range Kinds() {
		c.Of(kind).validate(kind, p)
	}
	if c.Organization.PermissionsWhen.Column != "" && c.APIKey.Permissions == "" && c.APIKey.Table != "" {
		p.add("watch.organization.permissions_when", "says when permissions count, but watch.api_key.permissions is missing; name that column, or remove this")
	}
	if c.WideThreshold < 0 || c.WideThreshold > maxThreshold {
		p.add("watch.wide_threshold", "%d is not in 0..%d (rows; 0 means %d)", c.WideThreshold, maxThreshold, DefaultWideThreshold)
	}
	if !slices.Contains([]string{"", "on", "off", "true", "false"}, c.Notify) {
		p.add("watch.notify", "%q is not on or off", c.Notify)
	}
	return p.err()
}

func (t Table) validate(kind string, p *problems) {
	at := func(field string) string { return "watch." + kind + "." + field }
	switch name, err := ParseName(t.Table); {
	case t.Table == "":
		p.add(at("table"), "is missing; name the table that holds %s, as schema.table", strings.ReplaceAll(kind, "_", " ")+"s")
	case err != nil:
		p.add(at("table"), "%v", err)
	case name.Schema == "authfence", name.Schema == "pg_catalog", name.Schema == "information_schema":
		p.add(at("table"), "%q is in a schema that cannot be watched", t.Table)
	}
	required, foreign := []field{{"id", t.ID}}, []field(nil)
	keyOnly := []field{{"key", t.Key}, {"key_format", t.KeyFormat}, {"organization", t.Organization}}
	switch kind {
	case APIKey:
		required = append(required, keyOnly...)
		foreign = []field{{"suspended_at", t.SuspendedAt}, {"permissions_when", t.PermissionsWhen.Column + t.PermissionsWhen.Contains}}
		if t.KeyFormat != "" && !slices.Contains(formats, t.KeyFormat) {
			p.add(at("key_format"), "%q is not one of %s", t.KeyFormat, strings.Join(formats, ", "))
		}
	case Organization:
		foreign = append(keyOnly, field{"expires_at", t.ExpiresAt}, field{"revoked_at", t.RevokedAt}, field{"permissions", t.Permissions},
			field{"last_used_at", t.LastUsedAt})
	}
	for _, f := range required {
		if f.value == "" {
			p.add(at(f.name), "is missing; %s", meaning[f.name])
		}
	}
	for _, f := range foreign {
		if f.value != "" {
			p.add(at(f.name), "has no meaning for this kind; remove it")
		}
	}
	if t.PermissionsWhen.Column == "" && t.PermissionsWhen.Contains != "" {
		p.add(at("permissions_when.column"), "is missing; name the column that must hold %q", t.PermissionsWhen.Contains)
	}
	if t.LastUsedAt != "" && slices.Contains(t.RelevantColumns(), t.LastUsedAt) {
		p.add(at("last_used_at"), "%q is mapped, loaded or relevant as well, so each write to it would evict the key; name it here alone", t.LastUsedAt)
	}
	t.validateLists(at, p)
}

var formats = []string{SHA256Hex, SHA256Bytea, Plaintext}

var meaning = map[string]string{
	"id":           "name the column of the primary key",
	"key":          "name the column that a token is looked up by",
	"key_format":   "say what the key column holds: sha256_hex, sha256_bytea or plaintext",
	"organization": "name the column that holds the organization's id",
}

type field struct{ name, value string }

func (t Table) validateLists(at func(string) string, p *problems) {
	for _, list := range []struct {
		name    string
		columns []string
	}{{"relevant", t.Relevant}, {"load", t.Load}, {"load_secrets", t.LoadSecrets}} {
		for i, column := range list.columns {
			if column == "" {
				p.add(at(list.name), "entry %d is empty; remove it", i+1)
			}
		}
	}
	if len(t.Load) > maxLoad {
		p.add(at("load"), "has %d columns, at most %d can be loaded", len(t.Load), maxLoad)
	}
	for _, column := range t.Load {
		switch {
		case column == "":
		case column == t.Key:
			p.add(at("load"), "%q is the key column, which is never loaded; remove it", column)
		case LooksSecret(column) && !slices.Contains(t.LoadSecrets, column):
			p.add(at("load"), "%q looks like a secret; remove it, or repeat it in load_secrets if it may be held in caches", column)
		}
	}
	for _, column := range t.LoadSecrets {
		if column != "" && !slices.Contains(t.Load, column) {
			p.add(at("load_secrets"), "%q is not in load; it only allows what load names", column)
		}
	}
}

// secretWords give a column away by its name. The list errs on the side of asking: load_secrets answers.
var secretWords = []string{
	"secret", "password", "passwd", "passphrase", "private", "hmac", "token", "credential", "salt", "otp",
	"signing_key", "encryption_key", "encrypted", "cipher", "key_hash", "api_key", "apikey", "webhook_key", "digest",
}

// LooksSecret tells that a column's name sounds like one of a secret, so that Load takes it only if LoadSecrets says so.
func LooksSecret(column string) bool {
	folded := strings.NewReplacer("-", "_", " ", "_").Replace(strings.ToLower(column))
	return slices.ContainsFunc(secretWords, func(word string) bool { return strings.Contains(folded, word) })
}

// problems gathers what is wrong, so that one run shows all of it.
type problems struct{ list []error }

func (p *problems) add(field, format string, args ...any) {
	p.list = append(p.list, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
}

func (p *problems) err() error { return errors.Join(p.list...) }
