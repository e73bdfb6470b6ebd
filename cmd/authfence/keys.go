package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/keys"
)

type keysCommand struct {
	Create keysCreateCommand `cmd:"" help:"Make a key; its token is printed on stdout alone, this once."`
	List   keysListCommand   `cmd:"" help:"List keys and their states, never a token."`
	Rotate keysRotateCommand `cmd:"" help:"Make a successor of a key, which itself expires after the grace; the new token is printed on stdout alone, this once."`
	Revoke keysRevokeCommand `cmd:"" help:"End a key at once, by its id or by its token; safe to repeat."`
}

// databaseTimeout bounds what is done in Postgres, the wait for locks included.
const databaseTimeout = 30 * time.Second

// keysFlags are those of every subcommand of keys.
type keysFlags struct {
	postgresFlags
	TokenPrefix      string `default:"af_live" placeholder:"PREFIX" help:"What new tokens begin with: a-z, 0-9 and _."`
	Organization     string `env:"-" placeholder:"ID" help:"Organization, by id."`
	OrganizationName string `env:"-" placeholder:"NAME" help:"Organization, by name, where one alone has it."`
	JSON             bool   `name:"json" env:"-" help:"Print one JSON object."`
}

// open gives the registry and a connection that is made when it is first needed:
// a request that cannot be is refused before.
func (k keysFlags) open(ctx context.Context, f *file) (*keys.Registry, *pgxpool.Pool, error) {
	registry, err := keys.New(keys.Config{Watch: f.watch, Prefix: k.TokenPrefix})
	if err != nil {
		return nil, nil, asUsage(err)
	}
	if _, err := k.config(); err != nil {
		return nil, nil, err
	}
	config, err := pgxpool.ParseConfig(k.PostgresURL)
	if err != nil {
		return nil, nil, usageError{fmt.Errorf("--postgres-url: %w", err)}
	}
	config.MaxConns, config.MinConns, config.MinIdleConns = 1, 0, 0
	if _, named := config.ConnConfig.RuntimeParams["application_name"]; !named {
		config.ConnConfig.RuntimeParams["application_name"] = "authfence keys"
	}
	// As the mapping reads a timestamp without a zone: also what --set and the table's own defaults write.
	config.ConnConfig.RuntimeParams["timezone"] = "UTC"
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to postgres: %w", err)
	}
	return registry, pool, nil
}

// waitFlags are those of the subcommands that change something.
type waitFlags struct {
	natsFlags
	Wait    bool          `env:"-" help:"Wait until the change is in force on every node, and print the receipt (exit 3 without one)."`
	Timeout time.Duration `env:"-" default:"10s" help:"With --wait: give up after this long. The change stays."`
}

// waiter holds what a receipt needs; nil: nobody waits.
type waiter struct {
	nc       *nats.Conn
	subjects event.Subjects
	timeout  time.Duration
}

// prepare connects to NATS before anything is changed, so that a wrong setting
// is known by then.
func (w waitFlags) prepare(s *stage) (*waiter, error) {
	if !w.Wait {
		return nil, nil
	}
	subjects, err := w.subjects()
	if err != nil {
		return nil, err
	}
	nc, err := w.connect("authfence-keys", event.RoleOperator, s.log)
	if err != nil {
		return nil, err
	}
	return &waiter{nc, subjects, w.Timeout}, nil
}

func (w *waiter) close() {
	if w != nil {
		w.nc.Close()
	}
}

// receipt waits for what was just committed. An error of exit 3 may come with a
// receipt.
func (w *waiter) receipt(ctx context.Context, s *stage, registry *keys.Registry, db keys.DB) (*event.Receipt, error) {
	bounded, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	missing, err := registry.Unwatched(bounded, db)
	switch {
	case err != nil:
		s.log.Warn("what the triggers watch cannot be read", "err", err)
	case len(missing) > 0:
		s.log.Warn("the triggers do not watch all that was changed: run authfence migrate up with this mapping", "missing", missing)
	}
	if w == nil {
		return nil, nil
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("the change is committed; %w: no receipt can speak of what no trigger watches; run authfence migrate up", errUnmet)
	}
	receipt, err := awaitReceipt(ctx, w.nc, w.subjects, w.timeout)
	if err != nil {
		return receipt, fmt.Errorf("the change is committed, and in force by itself after max_staleness; %w", err)
	}
	return receipt, nil
}

type keysCreateCommand struct {
	keysFlags
	waitFlags
	Name        string            `env:"-" help:"Name of the key, for people."`
	Permissions string            `env:"-" placeholder:"JSON" help:"What it may do, for instance {\"invoices\":[\"read\",\"write\"]}; \"*\" is every resource or action. Default: the column's, in the reference schema nothing."`
	ExpiresIn   time.Duration     `env:"-" placeholder:"DURATION" help:"Its life from now, for instance 720h. Default: for ever."`
	Set         map[string]string `env:"-" mapsep:"none" placeholder:"COLUMN=VALUE" help:"Value of a further column, as Postgres reads it, for instance created_at=now; may be repeated."`
}

func (c keysCreateCommand) Run(ctx context.Context, s *stage, f *file) error {
	registry, db, err := c.open(ctx, f)
	if err != nil {
		return err
	}
	defer db.Close()
	waiter, err := c.prepare(s)
	if err != nil {
		return err
	}
	defer waiter.close()
	request := keys.CreateRequest{
		OrganizationID: c.Organization, OrganizationName: c.OrganizationName, Name: c.Name, ExpiresIn: c.ExpiresIn, Set: c.Set,
	}
	if c.Permissions != "" {
		request.Permissions = []byte(c.Permissions)
	}
	bounded, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	made, token, err := registry.Create(bounded, db, request)
	if err != nil {
		return asUsage(err)
	}
	fmt.Fprintf(s.err, "created key %s of %s, %s\n", made.ID, owner(made), life(made))
	if !c.JSON {
		if err := printToken(s, made, token); err != nil {
			return err
		}
	}
	receipt, err := waiter.receipt(ctx, s, registry, db)
	if c.JSON {
		return errors.Join(printJSON(s, newKeyJSON{Token: token.Reveal(), Key: made, Receipt: receipt}), err)
	}
	if receipt != nil {
		printReceipt(s.err, "accepted", *receipt)
	}
	return err
}

type keysListCommand struct {
	keysFlags
	State []keys.State `env:"-" placeholder:"STATE" help:"Only these states, comma-separated: active, rotating, expired, revoked. Default: all."`
	Limit int          `env:"-" default:"100" help:"The most keys to list, up to 10000."`
}

func (c keysListCommand) Run(ctx context.Context, s *stage, f *file) error {
	registry, db, err := c.open(ctx, f)
	if err != nil {
		return err
	}
	defer db.Close()
	if c.Limit == 0 {
		return usageError{errors.New("--limit: 0 is none: want 1 or more")}
	}
	ctx, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	found, more, err := registry.List(ctx, db, keys.ListRequest{
		OrganizationID: c.Organization, OrganizationName: c.OrganizationName, States: c.State, Limit: c.Limit,
	})
	if err != nil {
		return asUsage(err)
	}
	if c.JSON {
		return printJSON(s, listJSON{Keys: found, More: more})
	}
	if err := printKeys(s.out, found); err != nil {
		return fmt.Errorf("print keys: %w", err)
	}
	if more {
		fmt.Fprintf(s.err, "there are more than %d: name an organization or a --state, or raise --limit\n", c.Limit)
	}
	return nil
}

type keysRotateCommand struct {
	keysFlags
	waitFlags
	KeyID     string            `arg:"" name:"key-id" help:"The key to rotate, by id."`
	Grace     time.Duration     `env:"-" default:"24h" help:"How long the old key is accepted beside the new one; 0: not at all."`
	ExpiresIn time.Duration     `env:"-" placeholder:"DURATION" help:"The new key's life from now. Default: it expires when the old one would have."`
	Set       map[string]string `env:"-" mapsep:"none" placeholder:"COLUMN=VALUE" help:"As for create; instead of what would be taken over from the old key."`
}

func (c keysRotateCommand) Run(ctx context.Context, s *stage, f *file) error {
	registry, db, err := c.open(ctx, f)
	if err != nil {
		return err
	}
	defer db.Close()
	if err := refuseToken(c.KeyID); err != nil {
		return err
	}
	waiter, err := c.prepare(s)
	if err != nil {
		return err
	}
	defer waiter.close()
	bounded, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	old, made, token, err := registry.Rotate(bounded, db, keys.RotateRequest{
		ID: c.KeyID, OrganizationID: c.Organization, OrganizationName: c.OrganizationName,
		Grace: c.Grace, ExpiresIn: c.ExpiresIn, Set: c.Set,
	})
	if err != nil {
		return asUsage(err)
	}
	fmt.Fprintf(s.err, "created key %s of %s, %s\n", made.ID, owner(made), life(made))
	fmt.Fprintf(s.err, "the old key %s is %s\n", old.ID, ending(old))
	if !c.JSON {
		if err := printToken(s, made, token); err != nil {
			return err
		}
	}
	receipt, err := waiter.receipt(ctx, s, registry, db)
	if c.JSON {
		return errors.Join(printJSON(s, newKeyJSON{Token: token.Reveal(), Key: made, Old: &old, Receipt: receipt}), err)
	}
	if receipt != nil {
		printRotationReceipt(s.err, old, *receipt)
	}
	return err
}

type keysRevokeCommand struct {
	keysFlags
	waitFlags
	KeyID      string `arg:"" optional:"" name:"key-id" help:"The key to revoke, by id."`
	TokenStdin bool   `env:"-" help:"Read the token of the key from standard input instead: for one that leaked."`
}

func (c keysRevokeCommand) Run(ctx context.Context, s *stage, f *file) error {
	registry, db, err := c.open(ctx, f)
	if err != nil {
		return err
	}
	defer db.Close()
	if c.TokenStdin == (c.KeyID != "") {
		return usageError{errors.New("give KEY-ID, or --token-stdin and the token on standard input, one of them")}
	}
	if err := refuseToken(c.KeyID); err != nil {
		return err
	}
	waiter, err := c.prepare(s)
	if err != nil {
		return err
	}
	defer waiter.close()
	request := keys.RevokeRequest{ID: c.KeyID, OrganizationID: c.Organization, OrganizationName: c.OrganizationName}
	if c.TokenStdin {
		if request.Token, err = readToken(s); err != nil {
			return err
		}
	}
	bounded, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	revoked, err := registry.Revoke(bounded, db, request)
	if err != nil {
		return asUsage(err)
	}
	if !c.JSON {
		for _, r := range revoked {
			printRevocation(s.out, r)
		}
	}
	receipt, err := waiter.receipt(ctx, s, registry, db)
	if c.JSON {
		return errors.Join(printJSON(s, revokedJSON{Revoked: revoked, Receipt: receipt}), err)
	}
	if receipt != nil {
		printReceipt(s.out, "refused", *receipt)
	}
	return err
}

// What --json prints.
type (
	newKeyJSON struct {
		Token   string         `json:"token"`
		Key     keys.Key       `json:"key"`
		Old     *keys.Key      `json:"old,omitempty"`
		Receipt *event.Receipt `json:"receipt,omitempty"`
	}
	listJSON struct {
		Keys []keys.Key `json:"keys"`
		More bool       `json:"more"`
	}
	revokedJSON struct {
		Revoked []keys.Revocation `json:"revoked"`
		Receipt *event.Receipt    `json:"receipt,omitempty"`
	}
)

func printJSON(s *stage, v any) error {
	encoder := json.NewEncoder(s.out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	return nil
}
