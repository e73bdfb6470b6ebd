package lago

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

// The guide's snippets are what the command accepts, and the first of them is what is tested here.
func TestGuide_SnippetsAreMappings(t *testing.T) {
	texts, mappings := snippets(t)
	if len(texts) == 0 {
		t.Fatal("the guide has no example")
	}
	reference := watch.DefaultConfig()
	for i, mapping := range mappings {
		// A snippet that shows one table is completed as the command does it.
		if mapping.APIKey.Table == "" {
			mapping.APIKey = reference.APIKey
		}
		if mapping.Organization.Table == "" {
			mapping.Organization = reference.Organization
		}
		if err := mapping.Validate(); err != nil {
			t.Errorf("%s\n%v", texts[i], err)
		}
	}
	if !strings.Contains(texts[0], "premium_integrations") {
		t.Errorf("the first snippet is not Lago's:\n%s", texts[0])
	}
}

const readOnly = `{"customers": ["read"], "invoices": ["read", "write"]}`

// fixture is an organization with a key.
func (s *system) fixture(integrations string) (organization, key, token string) {
	organization = s.text(`INSERT INTO organizations (name, premium_integrations) VALUES ('acme', $1) RETURNING id::text`, integrations)
	token = "lago-" + organization + "-first"
	key = s.text(`INSERT INTO api_keys (organization_id, value, name, permissions) VALUES ($1, $2, 'first', $3) RETURNING id::text`,
		organization, token, readOnly)
	return organization, key, token
}

// TestWrites_TakeEffect makes the writes of Lago's services, console and maintenance, one after the other, each seen on
// both nodes after a receipt.
func TestWrites_TakeEffect(t *testing.T) {
	s := newSystem(t)
	organization, key, token := s.fixture(`{okta,api_permissions}`)
	s.settle()
	s.may(token, true, false)

	t.Run("permissions are updated", func(t *testing.T) { // ActiveRecord's update
		s.exec(`UPDATE "api_keys" SET "permissions" = $1, "updated_at" = now() WHERE "api_keys"."id" = $2`, `{"customers": ["read", "write"]}`, key)
		s.settle()
		s.may(token, true, true)
		s.exec(`UPDATE "api_keys" SET "permissions" = $1 WHERE "api_keys"."id" = $2`, readOnly, key) // update_columns
		s.settle()
		s.may(token, true, false)
	})
	t.Run("the organization loses and gains fine-grained permissions", func(t *testing.T) {
		s.exec(`UPDATE "organizations" SET "premium_integrations" = $1, "updated_at" = now() WHERE "organizations"."id" = $2`, `{okta}`, organization)
		s.settle()
		s.may(token, true, true)
		s.each(token, func(o outcome) bool { return o.principal.Permissions().JSON() == `{"*":["*"]}` })
		s.exec(`UPDATE organizations SET premium_integrations = array_append(premium_integrations, 'api_permissions')`) // by hand
		s.settle()
		s.may(token, true, false)
	})
	t.Run("a column of the whitelist changes", func(t *testing.T) {
		s.exec(`UPDATE organizations SET feature_flags = '{beta}', name = 'Acme Inc' WHERE id = $1`, organization)
		s.settle()
		s.each(token, func(o outcome) bool { return o.flags == `["beta"]` && o.namesOrg == "Acme Inc" })
		s.each(token, func(o outcome) bool { _, there := o.principal.OrganizationColumn("hmac_key"); return !there })
	})
	t.Run("a key is created, and was asked for before", func(t *testing.T) {
		created := "lago-created"
		s.refused(created, authlib.ErrUnknown)
		s.exec(`INSERT INTO api_keys (organization_id, value, permissions) VALUES ($1, $2, '{}')`, organization, created)
		s.settle()
		s.may(created, false, false)
	})
	t.Run("a key is rotated, the old one at once", func(t *testing.T) {
		created := "lago-rotated-at-once"
		s.inOne(func(tx pgx.Tx) {
			run(t, tx, `INSERT INTO api_keys (organization_id, value, permissions) SELECT organization_id, $2, permissions FROM api_keys WHERE id = $1`, key, created)
			run(t, tx, `UPDATE api_keys SET expires_at = $2, updated_at = now() WHERE id = $1`, key, time.Now().UTC())
		})
		s.settle()
		s.refused(token, authlib.ErrExpired)
		s.may(created, true, false)
		token = created
		key = s.text(`SELECT id::text FROM api_keys WHERE value = $1`, created)
	})
	t.Run("a key is rotated, the old one later", func(t *testing.T) {
		created := "lago-rotated-later"
		end := time.Now().Add(2 * time.Second)
		s.inOne(func(tx pgx.Tx) {
			run(t, tx, `INSERT INTO api_keys (organization_id, value, permissions) SELECT organization_id, $2, permissions FROM api_keys WHERE id = $1`, key, created)
			run(t, tx, `UPDATE api_keys SET expires_at = $2 WHERE id = $1`, key, end.UTC())
		})
		s.settle()
		s.good(created)
		if got := s.ask(s.nodes[0], token); got.err != nil && time.Now().Before(end) {
			t.Errorf("refused before its end: %v", got.err)
		}
		for time.Now().Before(end) { // no write marks the moment: the entry's own end does
			time.Sleep(10 * time.Millisecond)
		}
		s.refused(token, authlib.ErrExpired)
		token = created
	})
	t.Run("a key is destroyed", func(t *testing.T) { // Lago sets expires_at; the clock of the application need not be ours
		s.exec(`UPDATE api_keys SET expires_at = $2, updated_at = now() WHERE value = $1`, token, time.Now().UTC().Add(-time.Second))
		s.settle()
		s.refused(token, authlib.ErrExpired)
		s.exec(`UPDATE api_keys SET expires_at = NULL WHERE value = $1`, token)
		s.settle()
		s.good(token)
	})
	t.Run("values are rewritten in bulk", func(t *testing.T) {
		s.exec(`INSERT INTO api_keys (organization_id, value, permissions) SELECT $1, 'bulk-' || i, '{}' FROM generate_series(1, 3000) i`, organization)
		s.settle()
		s.good("bulk-1")
		s.good("bulk-3000")
		s.exec(`UPDATE api_keys SET value = 'new-' || value WHERE value LIKE 'bulk-%'`)
		s.settle()
		s.refused("bulk-1", authlib.ErrUnknown)
		s.refused("bulk-3000", authlib.ErrUnknown)
		s.good("new-bulk-3000")
	})
	t.Run("the organization is deleted, and its keys with it", func(t *testing.T) {
		s.good(token)
		s.exec(`DELETE FROM organizations WHERE id = $1`, organization)
		s.settle()
		s.refused(token, authlib.ErrUnknown)
		s.refused("new-bulk-1", authlib.ErrUnknown)
	})
}

func (s *system) inOne(do func(pgx.Tx)) {
	s.t.Helper()
	err := pgx.BeginFunc(s.within(), s.app, func(tx pgx.Tx) error { do(tx); return nil })
	if err != nil {
		s.t.Fatal(err)
	}
}

func run(t *testing.T, tx pgx.Tx, sql string, arguments ...any) {
	t.Helper()
	if _, err := tx.Exec(t.Context(), sql, arguments...); err != nil {
		t.Fatal(err)
	}
}

// A time without a zone is UTC, whatever the session of who wrote it, or of who reads it, thinks.
func TestTimes_WithoutAZoneAreUTC(t *testing.T) {
	s := newSystem(t)
	if zone := s.text(`SHOW timezone`); zone != "America/New_York" {
		t.Fatalf("the session is in %s", zone)
	}
	_, key, token := s.fixture(`{}`)
	for _, c := range []struct {
		ends time.Duration
		as   error
	}{{time.Hour, nil}, {-time.Hour, authlib.ErrExpired}, {6 * time.Hour, nil}, {-6 * time.Hour, authlib.ErrExpired}} { // New York is four or five hours away
		end := time.Now().UTC().Add(c.ends).Truncate(time.Second)
		s.exec(`UPDATE api_keys SET expires_at = $2::text::timestamp WHERE id = $1`, key, end.Format("2006-01-02 15:04:05"))
		s.settle()
		s.each(token, func(o outcome) bool {
			if c.as != nil {
				return errors.Is(o.err, c.as)
			}
			if o.err != nil {
				return false
			}
			at, ok := o.principal.ExpiresAt()
			return ok && at.Equal(end)
		})
	}
}

// What tracks usage writes last_used_at, hourly and for every key. It is nobody's business.
func TestUsage_NotifiesNobody(t *testing.T) {
	s := newSystem(t)
	organization, key, token := s.fixture(`{}`)
	s.settle()
	s.good(token)
	listening, err := s.app.Acquire(s.within())
	if err != nil {
		t.Fatal(err)
	}
	defer listening.Release()
	if _, err := listening.Exec(s.within(), "LISTEN authfence"); err != nil {
		t.Fatal(err)
	}
	events := s.hear(s.subjects.Event())
	s.exec(`UPDATE "api_keys" SET "last_used_at" = now() WHERE "api_keys"."id" = $1`, key)
	s.exec(`UPDATE api_keys SET last_used_at = now(), updated_at = now()`)
	s.exec(`UPDATE organizations SET updated_at = now(), vat_rate = 20, webhook_url = 'https://example.com', hmac_key = 'another'`)
	s.exec(`INSERT INTO customers (organization_id) VALUES ($1)`, organization)
	s.exec(`UPDATE api_keys SET permissions = permissions, expires_at = expires_at, last_used_at = now()`) // names them, changes nothing
	if n := s.text(`SELECT count(*)::text FROM authfence.change`); n != "0" {
		t.Errorf("%s rows in the change log", n)
	}
	s.exec(`SELECT pg_notify('authfence', 'marker')`)
	first, err := listening.Conn().WaitForNotification(s.within())
	if err != nil {
		t.Fatal(err)
	}
	if first.Payload != "marker" {
		t.Error("one of these notified")
	}
	// A change that counts is the first that anybody hears of.
	s.exec(`UPDATE organizations SET name = 'sentinel' WHERE id = $1`, organization)
	if got := <-events; !strings.Contains(got, organization) || !strings.Contains(got, `"update"`) {
		t.Errorf("the first event is %s", got)
	}
	s.settle()
	if more := len(events); more != 0 {
		t.Errorf("%d more events", more)
	}
}

func (s *system) hear(subject string) chan string {
	s.t.Helper()
	heard := make(chan string, 1000)
	nc := s.connect()
	if _, err := nc.Subscribe(subject, func(msg *nats.Msg) {
		heard <- fmt.Sprint(msg.Subject, " ", msg.Header, " ", string(msg.Data))
	}); err != nil {
		s.t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		s.t.Fatal(err)
	}
	return heard
}

// Tokens stand in the table in plaintext, and nowhere else: the log, NATS and Redis know their SHA-256.
func TestTokens_StayInTheTable(t *testing.T) {
	s := newSystem(t)
	everything := s.hear(">")
	_, key, token := s.fixture(`{}`)
	s.good(token)
	s.inOne(func(tx pgx.Tx) {
		run(t, tx, `UPDATE api_keys SET value = value || '-b' WHERE id = $1`, key)
		rows, err := tx.Query(t.Context(), `SELECT kind || ' ' || ref || ' ' || op FROM authfence.change`)
		if err != nil {
			t.Fatal(err)
		}
		log, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		for _, ref := range []string{event.KeyRef(token).ID, event.KeyRef(token + "-b").ID} {
			if !slices.ContainsFunc(log, func(line string) bool { return strings.Contains(line, ref) }) {
				t.Errorf("%s is not logged: %v", ref, log)
			}
		}
		if strings.Contains(strings.Join(log, "\n"), token) {
			t.Errorf("the log holds the token: %v", log)
		}
	})
	s.settle()
	s.good(token + "-b")
	s.settle()
	for len(everything) > 0 {
		if line := <-everything; strings.Contains(line, token) {
			t.Errorf("NATS carries the token: %s", line)
		}
	}
	client := redis.NewClient(&redis.Options{Addr: s.redis.Addr()})
	defer client.Close()
	names, err := client.Keys(s.within(), "*").Result()
	if err != nil || len(names) == 0 {
		t.Fatalf("redis holds %v, %v", names, err)
	}
	sum := sha256.Sum256([]byte(token + "-b"))
	if !slices.ContainsFunc(names, func(name string) bool { return strings.Contains(name, hex.EncodeToString(sum[:])) }) {
		t.Errorf("no value of the key in redis: %v", names)
	}
	for _, name := range names {
		value, err := client.Get(s.within(), name).Result()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(name+value, token) || strings.Contains(value, "acme") {
			t.Errorf("%s in redis tells more than it should", name)
		}
	}
}

// The installation adds triggers and changes nothing else; the removal leaves no trace.
func TestInstallation_AddsTriggersOnly(t *testing.T) {
	s := newSystem(t) // installed
	_, mappings := snippets(t)
	now := shape(t, s.app)
	if err := migrations.Down(s.within(), s.url, migrations.Options{Watch: mappings[0]}); err != nil {
		t.Fatal(err)
	}
	after := shape(t, s.app)
	for _, line := range now {
		if !slices.Contains(after, line) && !strings.HasPrefix(line, "trigger ") && !strings.Contains(line, "authfence") {
			t.Errorf("only with authfence: %s", line)
		}
	}
	for _, line := range after {
		if strings.Contains(line, "authfence") {
			t.Errorf("left behind: %s", line)
		}
		if !slices.Contains(now, line) {
			t.Errorf("only without authfence: %s", line)
		}
	}
}

// shape is what the catalog says of the tables and of what stands beside.
func shape(t *testing.T, pool *pgxpool.Pool) []string {
	t.Helper()
	rows, err := pool.Query(t.Context(), `
		SELECT 'column ' || attrelid::regclass || ' ' || attname || ' ' || format_type(atttypid, atttypmod) || ' ' || attnotnull::text
			FROM pg_attribute JOIN pg_class c ON c.oid = attrelid WHERE relnamespace = 'public'::regnamespace AND attnum > 0
		UNION ALL SELECT 'index ' || indexdef FROM pg_indexes WHERE schemaname = 'public'
		UNION ALL SELECT 'constraint ' || conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace
		UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE NOT tgisinternal
		UNION ALL SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname !~ '^pg_'
		UNION ALL SELECT 'function ' || proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
		UNION ALL SELECT 'options ' || relname || ' ' || coalesce(reloptions::text, '') || relreplident::text || relrowsecurity::text FROM pg_class WHERE relnamespace = 'public'::regnamespace`)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// Requests all the time while the organization's condition flips: whoever asks after a receipt gets what holds.
func TestCondition_HoldsUnderLoad(t *testing.T) {
	s := newSystem(t)
	organization, _, token := s.fixture(`{}`)
	s.settle()
	var group sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		for _, node := range s.nodes {
			group.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						if _, err := node.Authenticate(t.Context(), token); err != nil {
							t.Error(err)
							return
						}
					}
				}
			})
		}
	}
	for i := range 20 {
		restricted := i%2 == 0
		s.exec(`UPDATE organizations SET premium_integrations = CASE WHEN $2::bool THEN '{api_permissions}'::varchar[] ELSE '{}' END WHERE id = $1`, organization, restricted)
		s.settle()
		s.may(token, true, !restricted)
	}
	close(stop)
	group.Wait()
}
