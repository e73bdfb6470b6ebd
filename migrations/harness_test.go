package migrations_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
	"github.com/jackc/pgx/v5"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// database is one test's own, with a session of its owner.
type database struct {
	t    testing.TB
	url  string
	conn *pgx.Conn
}

func newDatabase(t testing.TB) *database {
	t.Helper()
	url := testenv.Database(t)
	return &database{t: t, url: url, conn: connect(t, url)}
}

func connect(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(deadline(t), url)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// deadline ends a hang; it measures nothing.
func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// up installs and drops the wide changes that an installation writes.
func (d *database) up(options migrations.Options) {
	d.t.Helper()
	if err := migrations.Up(deadline(d.t), d.url, options); err != nil {
		d.t.Fatalf("up: %v", err)
	}
	d.exec(`DELETE FROM authfence.change`)
}

func (d *database) exec(sql string, args ...any) {
	d.t.Helper()
	if _, err := d.conn.Exec(deadline(d.t), sql, args...); err != nil {
		d.t.Fatalf("%s: %v", sql, err)
	}
}

func scalar[T any](d *database, sql string, args ...any) T {
	d.t.Helper()
	var value T
	if err := d.conn.QueryRow(deadline(d.t), sql, args...).Scan(&value); err != nil {
		d.t.Fatalf("%s: %v", sql, err)
	}
	return value
}

// drain takes what is in the change log, as "kind op ref" or "kind op *" for a wide change, sorted.
func (d *database) drain() []string {
	d.t.Helper()
	rows, err := d.conn.Query(deadline(d.t), `DELETE FROM authfence.change
		RETURNING kind || ' ' || op || ' ' || CASE WHEN wide THEN '*' || ref ELSE ref END`)
	if err != nil {
		d.t.Fatalf("drain: %v", err)
	}
	changes, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		d.t.Fatalf("drain: %v", err)
	}
	slices.Sort(changes)
	return changes
}

// expect drains and compares.
func (d *database) expect(want ...string) {
	d.t.Helper()
	slices.Sort(want)
	if got := d.drain(); !slices.Equal(got, want) {
		d.t.Fatalf("changes:\n  %s\nwant:\n  %s", brief(got), brief(want))
	}
}

func brief(changes []string) string {
	const most = 12
	if len(changes) > most {
		return fmt.Sprintf("%s\n  ... %d in all", strings.Join(changes[:most], "\n  "), len(changes))
	}
	return strings.Join(changes, "\n  ")
}

// Fixed ids keep the tables of expectations readable.
const (
	org1 = "00000000-0000-4000-8000-000000000001"
	org2 = "00000000-0000-4000-8000-000000000002"
)

func ref(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// organization inserts one and forgets its changes.
func (d *database) organization(id string) {
	d.t.Helper()
	d.exec(`INSERT INTO organizations (id, name) VALUES ($1, 'org')`, id)
	d.drain()
}

// keys inserts one key a token for org1 and forgets the changes.
func (d *database) keys(tokens ...string) {
	d.t.Helper()
	d.exec(`INSERT INTO api_keys (organization_id, key_hash, name) SELECT $1, sha256(convert_to(token, 'UTF8')), token FROM unnest($2::text[]) token`, org1, tokens)
	d.drain()
}

// keyed is the reference database with two organizations and the keys a, b and c of the first. It is a copy of one that
// is made once: most tests begin here.
func keyed(t testing.TB) *database {
	t.Helper()
	server := testenv.PostgresServer(t)
	original.once.Do(func() { original.err = makeOriginal(server) })
	if original.err != nil {
		t.Fatalf("make the original: %v", original.err)
	}
	name := fmt.Sprintf("keyed_%d", original.copies.Add(1))
	admin := connect(t, server.URL("postgres"))
	if _, err := admin.Exec(deadline(t), `CREATE DATABASE `+name+` TEMPLATE `+originalName); err != nil {
		t.Fatalf("copy the original: %v", err)
	}
	if err := admin.Close(deadline(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.DropDatabase(context.Background(), name); err != nil {
			t.Logf("drop database: %v", err)
		}
	})
	return &database{t: t, url: server.URL(name), conn: connect(t, server.URL(name))}
}

const originalName = "keyed_original"

var original struct {
	once   sync.Once
	err    error
	copies atomic.Int64
}

func makeOriginal(server *testenv.Postgres) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := server.CreateDatabase(ctx, originalName); err != nil {
		return err
	}
	url := server.URL(originalName)
	if err := migrations.Up(ctx, url, migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true}); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, fmt.Sprintf(`
		INSERT INTO organizations (id, name) VALUES ('%[1]s', 'org'), ('%[2]s', 'org');
		INSERT INTO api_keys (organization_id, key_hash, name) SELECT '%[1]s', sha256(token::bytea), token FROM unnest('{a,b,c}'::text[]) token;
		DELETE FROM authfence.change`, org1, org2))
	// No session may be left: a database with one cannot be copied.
	return errors.Join(err, conn.Close(ctx))
}

func change(kind, op, ref string) string { return kind + " " + op + " " + ref }

func keyChange(op, token string) string { return change(watch.APIKey, op, ref(token)) }

func mustHex(text string) []byte {
	raw, err := hex.DecodeString(text)
	if err != nil {
		panic(err)
	}
	return raw
}

// eventually polls until the condition holds; the deadline is for a hang only.
func (d *database) eventually(what string, holds func() bool) {
	d.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if holds() {
			return
		}
	}
	d.t.Fatalf("not within a minute: %s", what)
}
