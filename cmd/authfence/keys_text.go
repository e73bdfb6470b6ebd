package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/keys"
)

// flagOf gives the flag of a request's field.
var flagOf = map[string]string{ // #nosec G101 -- names of flags
	"Prefix": "--token-prefix", "OrganizationID": "--organization", "OrganizationName": "--organization-name", "Name": "--name",
	"Permissions": "--permissions", "ExpiresIn": "--expires-in", "Set": "--set", "ID": "KEY-ID", "Token": "--token-stdin",
	"Grace": "--grace", "Limit": "--limit", "States": "--state",
}

// asUsage marks a request or a mapping that cannot be (exit 2), by its flag.
func asUsage(err error) error {
	var invalid *keys.InvalidError
	if !errors.As(err, &invalid) {
		return err
	}
	return usageError{fmt.Errorf("%s: %s", cmp.Or(flagOf[invalid.Field], invalid.Field), invalid.Problem)}
}

// refuseToken refuses a token that was taken for an id, without repeating it.
func refuseToken(id string) error {
	if _, err := keys.Parse(id); err == nil || errors.Is(err, keys.ErrChecksum) {
		return usageError{errors.New("KEY-ID: that is a token, and the shell's history and the list of processes have it now: revoke it with --token-stdin")}
	}
	return nil
}

// readToken reads one line of standard input.
func readToken(s *stage) (string, error) {
	if info, err := os.Stdin.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		fmt.Fprintln(s.err, "the token, then Enter:")
	}
	const most = 8 << 10
	line, err := bufio.NewReader(io.LimitReader(os.Stdin, most)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read token from standard input: %w", err)
	}
	token := strings.TrimRight(line, "\r\n")
	if token == "" || len(line) == most {
		return "", usageError{errors.New("--token-stdin: standard input holds no token: want one line")}
	}
	return token, nil
}

// printToken is the one place where a token is shown.
func printToken(s *stage, made keys.Key, token keys.Token) error {
	if _, err := fmt.Fprintln(s.out, token.Reveal()); err != nil {
		return fmt.Errorf("print token: %w; nobody has it: revoke key %s", err, made.ID)
	}
	return nil
}

func printKeys(w io.Writer, found []keys.Key) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ID\tORGANIZATION\tNAME\tSTATE\tENDS\tLAST USED\tFINGERPRINT")
	for _, k := range found {
		ends := moment(k.ExpiresAt)
		if k.RevokedAt != nil && (k.ExpiresAt == nil || k.RevokedAt.Before(*k.ExpiresAt)) {
			ends = moment(k.RevokedAt)
		}
		if k.State == keys.Rotating {
			ends += " -> " + k.Successor
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", printable(k.ID), owner(k), cmp.Or(printable(k.Name), "-"), k.State,
			ends, moment(k.LastUsedAt), cmp.Or(k.Fingerprint, "-"))
	}
	return table.Flush()
}

func printRevocation(w io.Writer, r keys.Revocation) {
	at := moment(cmp.Or(r.Key.RevokedAt, r.Key.ExpiresAt))
	switch {
	case r.Already:
		fmt.Fprintf(w, "key %s of %s was %s already, at %s\n", r.Key.ID, owner(r.Key), r.Was, at)
	case r.Was == keys.Expired:
		fmt.Fprintf(w, "revoked key %s of %s, which had expired before\n", r.Key.ID, owner(r.Key))
	default:
		fmt.Fprintf(w, "revoked key %s of %s\n", r.Key.ID, owner(r.Key))
	}
	if r.Key.Successor != "" {
		fmt.Fprintf(w, "  its successor %s is not touched\n", r.Key.Successor)
	}
}

// printRotationReceipt says what the receipt means while the grace runs.
func printRotationReceipt(w io.Writer, old keys.Key, receipt event.Receipt) {
	if old.State != keys.Rotating {
		fmt.Fprintln(w, "of the old key:")
		printReceipt(w, "refused", receipt)
		return
	}
	printReceipt(w, "in force", receipt)
	fmt.Fprintf(w, "in force means: the new key is accepted there from now on, and the old one refused from %s on, by each node's clock\n", end(old))
}

func owner(k keys.Key) string {
	return cmp.Or(printable(k.OrganizationName), printable(k.OrganizationID), "no organization")
}

func life(k keys.Key) string {
	if k.ExpiresAt == nil {
		return "which does not expire"
	}
	return "which expires at " + moment(k.ExpiresAt)
}

func ending(old keys.Key) string {
	if old.State == keys.Rotating {
		return "accepted until " + end(old)
	}
	return "accepted no more"
}

// end is when a rotated key stops, by whichever column the mapping has. Rounded
// up: it is a promise.
func end(old keys.Key) string {
	at := cmp.Or(old.ExpiresAt, old.RevokedAt)
	if at == nil {
		return "-"
	}
	up := at.Add(time.Second - 1).Truncate(time.Second)
	return moment(&up)
}

func moment(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

// printable keeps what others wrote into a table from steering the terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}
