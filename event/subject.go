package event

import (
	"fmt"
	"strings"
)

// DefaultPrefix is the first part of every subject unless configured.
const DefaultPrefix = "authfence"

// Subjects lays out the NATS subjects under a prefix, so that several systems
// can share one NATS. The zero Subjects uses [DefaultPrefix].
type Subjects struct {
	Prefix string // subject tokens without wildcards; default "authfence"
}

// Validate says what is wrong with the prefix.
func (s Subjects) Validate() error {
	if s.Prefix == "" {
		return nil
	}
	for token := range strings.SplitSeq(s.Prefix, ".") {
		if token == "" || strings.ContainsAny(token, "*> \t\r\n") || !isPrintableASCII(token) {
			return fmt.Errorf("nats prefix %q: want ASCII words joined by dots, without spaces, * or >", clip(s.Prefix))
		}
	}
	return nil
}

func (s Subjects) prefix() string {
	if s.Prefix == "" {
		return DefaultPrefix
	}
	return s.Prefix
}

// Source is the prefix in force.
func (s Subjects) Source() string { return s.prefix() }

// Event is the subject of events, on core NATS and captured by the stream.
func (s Subjects) Event() string { return s.prefix() + ".event" }

// Lease is the subject of lease asks.
func (s Subjects) Lease() string { return s.prefix() + ".lease" }

// Report is the subject on which a leader asks every node how far it is.
func (s Subjects) Report() string { return s.prefix() + ".report" }

// Barrier is the subject of barrier asks.
func (s Subjects) Barrier() string { return s.prefix() + ".barrier" }

// Status is the subject on which every process is asked what it is at.
func (s Subjects) Status() string { return s.prefix() + ".status" }

// Entry is the subject on which every node is asked what it holds of a key.
func (s Subjects) Entry() string { return s.prefix() + ".entry" }

// Applied is the subject on which nodes say when they applied what.
func (s Subjects) Applied() string { return s.prefix() + ".applied" }

// The roles of clients of NATS, in permissions and in inboxes.
const (
	RoleListener = "listener"
	RoleNode     = "node"     // also `authfence invalidate`
	RoleOperator = "operator" // asks for barriers
	RoleObserver = "observer" // watches: hears events, asks for status
)

// Inbox is the prefix of the inboxes of a role, for nats.CustomInboxPrefix: with
// an inbox of its own, permissions can say who may answer whom. Nobody needs it
// where NATS has no permissions.
func (s Subjects) Inbox(role string) string { return s.prefix() + ".inbox." + role }

// Answerable reports whether an answer may go to a reply subject that the asker
// chose. One that means something by itself, ours or the server's own
// ($JS.API.STREAM.PURGE…), would let anybody who may ask publish there with the
// permissions of whoever answers.
func (s Subjects) Answerable(reply string) bool {
	switch reply {
	case "", s.Event(), s.Lease(), s.Report(), s.Barrier(), s.Status(), s.Applied():
		return false
	}
	return reply[0] != '$'
}

// AuditStream is the name of the stream of the audit beside a stream of events.
func AuditStream(stream string) string { return stream + "_AUDIT" }

// Stream is the default name of the JetStream stream that captures Event.
// Stream names cannot hold dots.
func (s Subjects) Stream() string {
	return strings.ToUpper(strings.ReplaceAll(s.prefix(), ".", "_"))
}

func isPrintableASCII(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
