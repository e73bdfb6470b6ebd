package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/keys"
	"github.com/authfence/authfence/observe"
	"github.com/authfence/authfence/observe/terminal"
)

type explainCommand struct {
	natsFlags
	postgresFlags
	KeyID      string        `env:"-" placeholder:"ID" help:"The key with this id; needs --postgres-url."`
	Ref        string        `env:"-" placeholder:"HEX" help:"The key with this ref: the hex SHA-256 of its token."`
	TokenStdin bool          `env:"-" help:"The key whose token is read from standard input."`
	Since      string        `env:"-" default:"168h" placeholder:"WHEN" help:"Its changes since then: a duration back from now, or a time as 2026-11-25T10:00:00Z."`
	Wait       time.Duration `env:"-" default:"1s" help:"How long nodes have to answer."`
	JSON       bool          `name:"json" env:"-" help:"Print one JSON object."`
}

// explainEvents is how many of the last changes are shown.
const explainEvents = 5

// explainTimeout bounds all of it but the wait for nodes.
const explainTimeout = 30 * time.Second

func (c explainCommand) Run(ctx context.Context, s *stage, f *file) error {
	since, err := parseSince("--since", c.Since)
	switch {
	case err != nil:
		return err
	case since.IsZero():
		return usageError{errors.New("--since: want a time or a duration back from now")}
	case c.Wait < 50*time.Millisecond || c.Wait > time.Minute:
		return usageError{fmt.Errorf("--wait: %s: want 50ms to 1m", c.Wait)}
	case c.KeyID == "" && c.Ref == "" && !c.TokenStdin:
		return usageError{errors.New("--key-id, --ref, --token-stdin: give one of them")}
	case c.KeyID != "" && c.PostgresURL == "":
		return missing("postgres-url", "postgres://user@host:5432/database")
	}
	subjects, err := c.subjects()
	if err != nil {
		return err
	}
	find := keys.FindRequest{KeyID: c.KeyID}
	var ref event.Ref
	switch {
	case c.KeyID != "" && (c.Ref != "" || c.TokenStdin) || c.Ref != "" && c.TokenStdin:
		return usageError{errors.New("--key-id, --ref, --token-stdin: give one of them")}
	case c.KeyID != "":
		if err := refuseToken(c.KeyID); err != nil {
			return err
		}
	case c.TokenStdin:
		if find.Token, err = readToken(s); err != nil {
			return err
		}
		ref = event.KeyRef(find.Token)
	default:
		if ref, err = parseRef(c.Ref); err != nil {
			return err
		}
		find.Ref = ref.ID
	}
	nc, err := c.connect("authfence-explain", event.RoleObserver, s.log, nats.RetryOnFailedConnect(false))
	if err != nil {
		return err
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(ctx, explainTimeout+c.Wait)
	defer cancel()

	var x terminal.Explanation
	ask := event.EntryAsk{Key: ref.ID}
	var found []keys.Found
	if c.PostgresURL != "" {
		if found, err = c.find(ctx, f, find); err != nil && (c.KeyID != "" || !errors.Is(err, keys.ErrUnknownKey)) {
			return asUsage(err)
		}
		if x.Verdict = "unknown"; len(found) > 0 {
			ask.Key, ask.Organization, x.Verdict = found[0].Ref, found[0].OrganizationID, found[0].Verdict
		}
		x.Postgres = describe(found)
	}
	if x.Ref = ask.Key; x.Ref == "" {
		return fmt.Errorf("the row of key %s holds no token that could be a ref", c.KeyID)
	}
	if x.Nodes, err = observe.GatherEntries(ctx, nc, subjects, ask, c.Wait); err != nil {
		return err
	}
	wanted := map[event.Ref]bool{{Kind: event.APIKey, ID: ask.Key}: true}
	if ask.Organization != "" {
		wanted[event.OrganizationRef(ask.Organization)] = true
	}
	x.Audit, err = observe.Receipts(ctx, nc, observe.ReceiptsConfig{
		Subjects: subjects, Stream: event.AuditStream(c.stream(subjects)), Domain: c.NATSDomain, Since: since, Max: explainEvents, Filter: observe.Filter{Refs: wanted},
	})
	if err != nil {
		x.Audit, x.Note = nil, err.Error()
	}
	if c.JSON {
		err = c.write(s.out, x, found)
	} else {
		err = x.Write(s.out, colored(s.out), time.Now())
	}
	if names := x.Contradicts(); err == nil && len(names) > 0 {
		err = fmt.Errorf("%w: %s would answer otherwise than Postgres says", errUnmet, strings.Join(names, ", "))
	}
	return err
}

func (c explainCommand) find(ctx context.Context, f *file, q keys.FindRequest) ([]keys.Found, error) {
	registry, db, err := keysFlags{postgresFlags: c.postgresFlags}.open(ctx, f)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	return registry.Find(ctx, db, q)
}

// describe says what Postgres has, in words.
func describe(found []keys.Found) (lines []string) {
	at := func(what string, t *time.Time) string {
		if t == nil {
			return ""
		}
		return ", " + what + " " + t.UTC().Format(time.RFC3339)
	}
	if len(found) == 0 {
		return []string{"unknown: no row has it"}
	}
	if len(found) > 1 {
		lines = append(lines, fmt.Sprintf("%d rows have it, for want of a unique index: which one counts is left to chance", len(found)))
	}
	for _, k := range found {
		name := ""
		if k.Name != "" {
			name = fmt.Sprintf(" %q", k.Name)
		}
		owner := "no organization"
		if k.OrganizationID != "" {
			owner = "organization " + k.OrganizationID
		}
		if k.OrganizationName != "" {
			owner += fmt.Sprintf(" %q", k.OrganizationName)
		}
		lines = append(lines, fmt.Sprintf("%s: key %s%s of %s%s%s%s%s", k.Verdict, k.ID, name, owner,
			at("revoked", k.RevokedAt), at("expires", k.ExpiresAt), at("organization suspended", k.OrganizationSuspendedAt), at("last used", k.LastUsedAt)))
	}
	return lines
}

func (c explainCommand) write(out io.Writer, x terminal.Explanation, found []keys.Found) error {
	whole := struct {
		Ref      string             `json:"ref"`
		Verdict  string             `json:"verdict,omitempty"`
		Postgres []keys.Found       `json:"postgres"`
		Nodes    []event.EntryReply `json:"nodes"`
		Changes  []any              `json:"changes"`
		Note     string             `json:"note,omitempty"`
	}{Ref: x.Ref, Verdict: x.Verdict, Postgres: append([]keys.Found{}, found...), Nodes: append([]event.EntryReply{}, x.Nodes...), Changes: []any{}, Note: x.Note}
	if x.Audit != nil {
		for _, r := range x.Audit.Receipts {
			whole.Changes = append(whole.Changes, terminal.JSONOf(r)...)
		}
	}
	body, err := json.MarshalIndent(whole, "", "  ")
	if err != nil {
		return fmt.Errorf("encode explanation: %w", err)
	}
	_, err = out.Write(append(body, '\n'))
	return err
}
