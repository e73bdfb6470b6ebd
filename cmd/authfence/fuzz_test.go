package main

import (
	"testing"

	"github.com/alecthomas/kong"

	"github.com/authfence/authfence/watch"
)

// authfence.yaml, whatever it holds: settings that the flags take, or an error; no panic in the reader of YAML either.
func FuzzConfigFile(f *testing.F) {
	f.Add([]byte("nats_url: nats://127.0.0.1:4222\nmax_staleness: 2s\n"))
	f.Add([]byte("watch:\n  api_key: {table: keys, id: id, key: k, key_format: sha256_hex, organization: o}\n  notify: off\n"))
	f.Add([]byte("a: &a [*a]\n? : x"))
	f.Add([]byte("log_level: !!binary aGk=\n---\nx: 1"))
	f.Fuzz(func(t *testing.T, body []byte) {
		settings := &file{path: "authfence.yaml", watch: watch.DefaultConfig()}
		if settings.parse(body) != nil {
			return
		}
		if err := settings.watch.Validate(); err != nil {
			t.Errorf("a mapping that does not validate got through: %v", err)
		}
		var c cli
		parser, err := kong.New(&c, kong.Name("authfence"), kong.Exit(func(int) {}), kong.Resolvers(settings))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = parser.Parse([]string{"version"})
	})
}
