package authlib

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"
)

func TestConfig_ErrorsNameTheField(t *testing.T) {
	client := redis.NewClient(&redis.Options{})
	defer client.Close()
	for want, change := range map[string]func(*Config){
		"Pool is nil":                       func(c *Config) { c.Pool = nil },
		"NATS is nil":                       func(c *Config) { c.NATS = nil },
		"SealKeys: no key":                  func(c *Config) { c.Redis = client },
		`SealKeys: key "a" has 16 bytes`:    func(c *Config) { c.Redis = client; c.SealKeys = []SealKey{{"a", make([]byte, 16)}} },
		`SealKeys: key "a" is all zeros`:    func(c *Config) { c.Redis = client; c.SealKeys = []SealKey{{"a", make([]byte, 32)}} },
		"SealKeys: key 1: id":               func(c *Config) { c.Redis = client; c.SealKeys = []SealKey{{"", make([]byte, 32)}} },
		`SealKeys: key 2: id "k1" is there`: func(c *Config) { c.Redis = client; c.SealKeys = append(testKeys(), testKeys()...) },
		"MaxStaleness":                      func(c *Config) { c.MaxStaleness = time.Millisecond },
		"TTL is":                            func(c *Config) { c.TTL = -1 },
		"L1Bytes":                           func(c *Config) { c.L1Bytes = 10 },
		"MaxLoads":                          func(c *Config) { c.MaxLoads = -1 },
		"MaxFloors":                         func(c *Config) { c.MaxFloors = 10 },
		"L2Prefix":                          func(c *Config) { c.L2Prefix = "a b" },
		"StaleOnOutage":                     func(c *Config) { c.StaleOnOutage = -1 },
		"looks like a secret":               func(c *Config) { c.Watch = DefaultConfig().Watch; c.Watch.Organization.Load = []string{"hmac_key"} },
		"Name":                              func(c *Config) { c.Name = "a b" },
	} {
		cfg := Config{Pool: &pgxpool.Pool{}, NATS: &nats.Conn{}}
		change(&cfg)
		_, err := New(cfg)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
		if err != nil && strings.Contains(err.Error(), string(testKeys()[0].Key)) {
			t.Errorf("shows a key: %v", err)
		}
	}
	if _, err := New(Config{Pool: &pgxpool.Pool{}, NATS: &nats.Conn{}}); err != nil {
		t.Errorf("the least that must do: %v", err)
	}
}

// A service that links authlib does not link what only tests, listeners or gRPC
// servers need.
func TestDependencies(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(bytes.TrimSpace(out)))
	const module = "github.com/authfence/authfence/"
	for _, dep := range deps {
		for _, banned := range []string{
			"github.com/nats-io/nats-server", "google.golang.org/", "github.com/pressly/goose", "testing",
			module + "migrations", module + "listener", module + "internal/testenv", module + "cmd",
		} {
			if dep == banned || strings.HasPrefix(dep, strings.TrimSuffix(banned, "/")+"/") {
				t.Errorf("authlib links %s", dep)
			}
		}
	}
	if len(deps) < 100 {
		t.Errorf("only %d dependencies were listed", len(deps))
	}
}

// An organization that leaves L1, for whatever reason, is marked in that step.
func TestTier1_OrganizationIsMarkedWhenItLeaves(t *testing.T) {
	newTier := func() *tier1 { return newTier1(Config{L1Bytes: 64 << 10, MaxNegative: 10}) }
	entry := func(id string) *organizationEntry {
		return newOrganizationEntry(&organizationRecord{ID: id, SuspendedAt: never}, life{})
	}
	t.Run("not admitted", func(t *testing.T) {
		if !entry("a").gone.Load() {
			t.Error("an entry that is not in L1 is not marked")
		}
	})
	t.Run("evicted", func(t *testing.T) {
		c := newTier()
		e := c.insertOrganization("a", entry("a"), nil)
		if e.gone.Load() {
			t.Fatal("marked while it is in L1")
		}
		c.Evict("organization", []string{"a"})
		if !e.gone.Load() {
			t.Error("not marked")
		}
	})
	t.Run("replaced", func(t *testing.T) {
		c := newTier()
		e := c.insertOrganization("a", entry("a"), nil)
		f := c.insertOrganization("a", entry("a"), nil)
		if !e.gone.Load() || f.gone.Load() {
			t.Error("the old one is not marked, or the new one is")
		}
	})
	t.Run("no room", func(t *testing.T) {
		c := newTier()
		var all []*organizationEntry
		for i := range 1000 {
			id := strings.Repeat("x", 100) + string(rune('a'+i%26)) + strings.Repeat("y", i)
			all = append(all, c.insertOrganization(id, entry(id), nil))
		}
		c.organizations.CleanUp()
		marked := 0
		for _, e := range all {
			in, ok := c.organizations.GetEntryQuietly(e.record.ID)
			if there := ok && in.Value == e; there == e.gone.Load() {
				t.Fatalf("in L1: %v, marked: %v", there, e.gone.Load())
			}
			if e.gone.Load() {
				marked++
			}
		}
		if marked == 0 {
			t.Error("nothing had to leave")
		}
	})
}
