package authlib

import (
	"context"
	"encoding/hex"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/invalidator"
	"github.com/authfence/authfence/observe"
)

// What an event.EntryReply says of a row.
const (
	verdictActive    = "active"
	verdictRevoked   = "revoked"
	verdictExpired   = "expired"
	verdictSuspended = "suspended"
	verdictUnknown   = "unknown"
)

func verdictName(err error) string {
	switch err {
	case nil:
		return verdictActive
	case ErrRevoked:
		return verdictRevoked
	case ErrExpired:
		return verdictExpired
	case ErrSuspended:
		return verdictSuspended
	}
	return verdictUnknown
}

// Explain says what this process holds of a key, in memory and in Redis, and what
// a request would get now. It changes nothing, not even what is used lately, and
// asks no primary. It is for people, who may ask any node (observe.GatherEntries).
func (a *Authenticator) Explain(ctx context.Context, ask event.EntryAsk) event.EntryReply {
	status := a.node.Status()
	e := explanation{a: a, now: invalidator.InstantOf(a.now()), lease: a.node.Lease()}
	r := event.EntryReply{
		Node: a.cfg.Name, State: string(status.Phase), Reason: status.Reason, Lease: event.Millis(max(0, status.LeaseLeft)),
		Epoch: status.Applied.Epoch, Position: status.Applied.Position,
	}
	key := part{source: Primary}
	organization := ask.Organization
	var sum [32]byte
	if n, err := hex.Decode(sum[:], []byte(ask.Key)); err == nil && n == len(sum) {
		if key = e.key(ctx, sum, &r.Key); key.source != Primary || key.organization != "" {
			organization = key.organization
		}
	}
	of := part{source: Primary}
	if organization != "" {
		r.Organization = &event.Holding{}
		of = e.organization(ctx, organization, r.Organization)
	}
	switch {
	case key.source == Primary:
		r.Source = Primary.String()
	case key.verdict != verdictActive:
		r.Source, r.Verdict = key.source.String(), key.verdict
	case organization == "": // such a key opens nothing
		r.Source, r.Verdict = key.source.String(), verdictUnknown
	default:
		r.Source = max(key.source, of.source).String()
		if of.source != Primary {
			r.Verdict = of.verdict
		}
	}
	return r
}

// part is what a request would learn of one ref, and from where: Primary means
// that it would have to ask there.
type part struct {
	source       Source
	verdict      string
	organization string // a key's
}

type explanation struct {
	a     *Authenticator
	now   invalidator.Instant
	lease *invalidator.Lease
}

func (e explanation) key(ctx context.Context, sum [32]byte, h *event.Holding) (p part) {
	l1 := e.a.l1
	p.source = Primary
	entry, found := l1.keys.GetEntryQuietly(sum)
	if !found {
		entry, found = l1.negative.GetEntryQuietly(sum)
	}
	if k := entry.Value; found {
		h.Memory = verdictName(k.verdict(e.now.Wall))
		if k.record != nil {
			p.organization = k.record.OrganizationID
		}
		if e.memory(h, &k.origin, k.ttl, k.generation == l1.keyGeneration.Load()) {
			p.source, p.verdict = L1, h.Memory
		}
	}
	row, ok := e.redis(ctx, event.KeyRefOf(sum), h)
	if !ok {
		return p
	}
	record, err := decodeKey(row)
	switch {
	case err != nil || record.verdict(e.now.Wall) != nil:
		h.NotAdmitted = "what a dead key gets comes from the primary"
	case p.source == Primary:
		p = part{source: L2, verdict: verdictActive, organization: record.OrganizationID}
	}
	return p
}

func (e explanation) organization(ctx context.Context, id string, h *event.Holding) (p part) {
	l1 := e.a.l1
	p.source = Primary
	if entry, found := l1.organizations.GetEntryQuietly(id); found {
		o := entry.Value
		h.Memory = verdictName(o.verdict(e.now.Wall))
		if e.memory(h, &o.origin, o.ttl, o.generation == l1.organizationGeneration.Load()) {
			p.source, p.verdict = L1, h.Memory
		}
	}
	row, ok := e.redis(ctx, event.OrganizationRef(id), h)
	if !ok {
		return p
	}
	record, err := decodeOrganization(id, row)
	switch {
	case err != nil:
		h.NotAdmitted = errL2Foreign.Error()
	case p.source == Primary:
		p = part{source: L2, verdict: verdictActive}
		if e.now.Wall >= record.end() {
			p.verdict = verdictSuspended
		}
	}
	return p
}

// memory says of an entry whether it may be answered with (rule 19).
func (e explanation) memory(h *event.Holding, o *origin, ttl int64, ofNow bool) bool {
	if ttl != never {
		until := time.Unix(0, ttl).UTC().Truncate(time.Millisecond)
		h.Until = &until
	}
	staleness := e.a.cfg.MaxStaleness
	leased := e.lease.ValidFor(e.now, staleness)
	switch {
	case !ofNow:
		h.Refused = "it was evicted with all of its kind"
	case e.now.Wall >= ttl:
		h.Refused = "its time to live is over"
	case o.servable(e.now, leased, staleness):
		return true
	case !leased:
		h.Refused = "there is no lease, and it was read longer than max_staleness ago (rule 19)"
	default:
		h.Refused = "no lease vouches for what it was read by, and that was longer than max_staleness ago (rule 19)"
	}
	return false
}

// redis says what is there, and gives the row if a request would take it.
func (e explanation) redis(ctx context.Context, ref event.Ref, h *event.Holding) (row []byte, ok bool) {
	l2 := e.a.l2
	if l2 == nil {
		h.Redis = "none"
		return nil, false
	}
	ctx, cancel := context.WithTimeout(ctx, 10*l2.timeout) // a person waits
	defer cancel()
	value, err := l2.client.Get(ctx, RedisKey(l2.prefix, ref)).Bytes()
	switch {
	case errors.Is(err, redis.Nil):
		h.Redis = "absent"
		return nil, false
	case err != nil:
		h.Redis = "unreachable"
		return nil, false
	}
	h.Redis = "sealed"
	body, stamp, err := decodeL2(l2.sealer, ref, value)
	if len(value) > 2 && value[0] == l2Version && len(value) >= 2+int(value[1])+l2StampBytes {
		h.SealKey = printable(string(value[2 : 2+int(value[1])]))
		stamp = stampOf(value[2+int(value[1]):])
		h.Stamp = &stamp
	}
	open, _ := l2.breaker.state()
	switch {
	case err != nil:
		h.NotAdmitted = err.Error()
	case body.Mapping != l2.mapping:
		h.NotAdmitted = "it is of another mapping"
	case e.now.Wall >= time.Unix(body.Until, 0).UnixNano():
		h.NotAdmitted = "its time to live is over"
	default:
		h.NotAdmitted = e.a.node.WhyNot(stamp.Epoch, stamp.Position, ref)
	}
	switch {
	case h.NotAdmitted != "":
	case !e.lease.Valid(e.now):
		h.NotAdmitted = "there is no lease (rule 18)"
	case open:
		h.NotAdmitted = "redis is left alone for a while, since it failed"
	}
	return body.Row, h.NotAdmitted == ""
}

// printable keeps what anybody may have written out of a terminal.
func printable(id string) string {
	if validSealID(id) {
		return id
	}
	return "?"
}

// answerEntries tells who asks what is held of a key. It is no reason to end.
func (a *Authenticator) answerEntries(ctx context.Context) {
	if err := observe.NewEntryResponder(a.cfg.NATS, a.cfg.Subjects, a.Explain, a.log).Run(ctx); err != nil {
		a.log.DebugContext(ctx, "entries are not told", "err", err)
	}
}
