package authlib

import (
	"context"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"time"
	"unsafe"

	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/invalidator"
)

// Source is where an answer came from. An answer made of several parts has the
// source of the farthest.
type Source uint8

// The sources.
const (
	None    Source = iota // there was no answer, or none was needed
	L1                    // this process
	L2                    // Redis
	Primary               // Postgres
)

func (s Source) String() string {
	return [...]string{"none", "l1", "l2", "primary"}[s&3]
}

// Request is what one request demands of its answer. The zero Request demands
// what the node promises: no answer older than Config.MaxStaleness.
type Request struct {
	// Bypass asks the primary with a read that begins after this request. For
	// what must not even be stale by the bound: changing a password, paying.
	Bypass bool

	// AtLeast demands that everything up to this position is in force: a
	// barrier's receipt, or the Position of an earlier answer. A node that is
	// not there yet asks the primary, as with Bypass. Zero demands nothing.
	AtLeast event.Mark

	// Staleness is this request's own bound, if it is shorter than
	// Config.MaxStaleness. Zero: Config.MaxStaleness.
	Staleness time.Duration

	// NoUsage keeps the request from counting as a use of its key. For what is
	// asked so often, or so idly, that it would say nothing.
	NoUsage bool
}

// demanding reports whether the request demands anything of its answer.
func (r Request) demanding() bool {
	r.NoUsage = false
	return r != Request{}
}

// Result is an answer and where it came from. It is filled as far as known when
// there is an error too.
type Result struct {
	Principal *Principal
	Source    Source
	// Position is one that the answer is at least as new as. Zero when nothing
	// can be said: the node has no history, Postgres is in another epoch, or the
	// triggers do not watch all that was read.
	Position event.Mark
	// Stale: no guarantee holds for the answer; see Config.StaleOnOutage.
	Stale bool
}

// Authenticate answers who a token stands for, from memory where it may. Its
// errors are ErrUnknown, ErrRevoked, ErrExpired, ErrSuspended and
// ErrUnavailable, the last as *UnavailableError. It may be called before Run:
// what memory does not hold then waits for Run.
func (a *Authenticator) Authenticate(ctx context.Context, token string) (*Principal, error) {
	if len(token) == 0 || len(token) > a.cfg.MaxTokenBytes {
		return nil, a.malformed()
	}
	lease := a.node.Lease()
	sum := sumOf(token)
	if p, _, verdict, ok := a.fromMemory(lease, &sum, a.cfg.MaxStaleness, a.usageAfter); ok {
		return p, verdict
	}
	res, err := a.load(ctx, token, sum, demand{staleness: a.cfg.MaxStaleness, usageAfter: a.usageAfter})
	return res.Principal, err
}

// AuthenticateWith is Authenticate for a request with demands of its own.
func (a *Authenticator) AuthenticateWith(ctx context.Context, token string, r Request) (Result, error) {
	if len(token) == 0 || len(token) > a.cfg.MaxTokenBytes {
		return Result{}, a.malformed()
	}
	// Whatever is found below is at least as new as what was applied here: a
	// change is evicted before the position moves (rule 11).
	position := a.node.Applied()
	d := demand{
		staleness: a.cfg.MaxStaleness,
		fresh:     r.Bypass || (!r.AtLeast.IsZero() && !a.node.AtLeast(r.AtLeast)),
		strict:    r.demanding(),

		usageAfter: a.usageAfter,
	}
	if r.NoUsage {
		d.usageAfter = usageNever
	}
	if r.Staleness > 0 {
		d.staleness = min(d.staleness, r.Staleness)
	}
	lease := a.node.Lease()
	sum := sumOf(token)
	if !d.fresh {
		if p, positioned, verdict, ok := a.fromMemory(lease, &sum, d.staleness, d.usageAfter); ok {
			if !positioned {
				position = event.Mark{}
			}
			return Result{Principal: p, Source: L1, Position: position}, verdict
		}
	}
	res, err := a.load(ctx, token, sum, d)
	if res.Source != None && !res.Stale && !res.unpositioned {
		res.Position = position
	}
	return res.Result, err
}

func (a *Authenticator) malformed() error {
	a.count.malformed.Add(1)
	a.count.negativeHits.Add(1)
	return ErrUnknown
}

// sumOf hashes the token where it stands: a conversion would copy it.
func sumOf(token string) [sha256.Size]byte {
	return sha256.Sum256(unsafe.Slice(unsafe.StringData(token), len(token))) // #nosec G103 -- read only, within the string
}

// fromMemory is the hit: ok is false when memory may not answer. The order of
// its steps is rule 19's: the lease was loaded before the look-ups (and so were
// the generations), the clock is read after them, once. positioned: positions say
// something of the answer.
func (a *Authenticator) fromMemory(lease *invalidator.Lease, sum *[sha256.Size]byte, staleness time.Duration, usageAfter uint64) (p *Principal, positioned bool, verdict error, ok bool) {
	keyGeneration := a.l1.keyGeneration.Load()
	organizationGeneration := a.l1.organizationGeneration.Load()
	k, found := a.l1.keys.GetIfPresent(*sum)
	if !found || k.generation != keyGeneration {
		return nil, false, nil, false
	}
	random := rand.Uint32() // #nosec G404 -- the stripe of a counter, and whom to touch
	c := k.composed.Load()
	// Now and then the organization is looked up all the same, so that otter
	// knows which ones are in use.
	if c == nil || c.organization.gone.Load() || random>>24 < touchOneIn256 {
		o, found := a.l1.organizations.GetIfPresent(k.record.OrganizationID)
		if !found {
			return nil, false, nil, false
		}
		c = k.compose(o)
	}
	o := c.organization
	if o.generation != organizationGeneration {
		return nil, false, nil, false
	}
	now := invalidator.InstantOf(a.now())
	leased := lease.ValidFor(now, staleness)
	if !k.servable(now, leased, staleness) || !o.servable(now, leased, staleness) {
		return nil, false, nil, false
	}
	if now.Wall >= k.deadline || now.Wall >= o.deadline {
		// A dead key goes the way of an unknown one, and takes as long.
		if now.Wall >= k.ttl || now.Wall >= o.ttl || k.verdict(now.Wall) != nil {
			return nil, false, nil, false
		}
		verdict = o.verdict(now.Wall)
	}
	a.count.l1Hits.add(random)
	if verdict != nil {
		return nil, k.leased && o.leased, verdict, true
	}
	a.used(k, now.Wall, usageAfter)
	return &c.principal, k.leased && o.leased, nil, true
}

// touchOneIn256 of 256 hits tell otter that the organization is in use.
const touchOneIn256 = 8

// servable is rule 19 for one entry.
func (o *origin) servable(now invalidator.Instant, leased bool, staleness time.Duration) bool {
	return (leased && o.leased) || o.young(now, staleness)
}

// demand is a request's demands, worked out.
type demand struct {
	staleness time.Duration
	fresh     bool // the read must begin after the request
	strict    bool // never StaleOnOutage

	usageAfter uint64 // as fromMemory takes it
}

// answer is a Result in the making.
type answer struct {
	Result
	unpositioned bool // a part of it is vouched for by its own read alone
}

func (r *answer) farther(s Source) { r.Source = max(r.Source, s) }

// load answers what fromMemory could not: from memory in part, from Redis, from
// the primary (rule 20).
func (a *Authenticator) load(ctx context.Context, token string, sum [sha256.Size]byte, d demand) (answer, error) {
	if a.tracer == nil {
		return a.find(ctx, token, sum, d)
	}
	ctx, end := a.traceMiss(ctx)
	res, err := a.find(ctx, token, sum, d)
	end(res.Result, err)
	return res, err
}

func (a *Authenticator) find(ctx context.Context, token string, sum [sha256.Size]byte, d demand) (answer, error) {
	if !a.sendable(token) {
		return answer{}, a.malformed()
	}
	if verdict := a.refusedInMemory(sum, d); verdict != nil {
		return answer{Result: Result{Source: L1}}, verdict
	}
	res, err := a.assemble(ctx, token, sum, d)
	var out *UnavailableError
	switch {
	case errors.As(err, &out) && ctx.Err() != nil:
		a.count.abandoned.Add(1)
	case out != nil:
		if p, verdict, ok := a.stale(&sum, d); ok {
			a.count.staleServed.Add(1)
			return answer{Result: Result{Principal: p, Source: L1, Stale: true}}, verdict
		}
		a.count.unavailable.Add(1)
		if out.Reason == reasonShed {
			a.count.shed.Add(1)
		}
	case res.Source == Primary:
		a.count.loads.Add(1)
	case res.Source == L2:
		a.count.l2Hits.Add(1)
	case errors.Is(err, ErrUnknown):
		a.count.negativeHits.Add(1)
	default: // it came into memory in the meantime
		a.count.l1Hits.add(rand.Uint32()) // #nosec G404 -- the stripe of a counter
	}
	return res, err
}

// assemble finds the key, then its organization, each by the nearest way that
// the demand allows.
func (a *Authenticator) assemble(ctx context.Context, token string, sum [sha256.Size]byte, d demand) (answer, error) {
	var (
		res answer
		o   *organizationEntry
	)
	ctx, cancel := context.WithTimeoutCause(ctx, a.cfg.LoadTimeout, errLoadTimeout)
	defer cancel()

	k := a.keyInMemory(sum, d)
	known := k != nil || a.l1.seen(sum)
	if k != nil {
		res.farther(L1)
	} else {
		r, late, err := a.fly(ctx, d, func() *flight {
			f := &flight{ref: event.KeyRefOf(sum), sum: sum, known: known}
			if a.plaintext {
				f.token = token
			}
			return f
		}, func() result { return result{key: a.keyInMemory(sum, d), source: L1} })
		if err != nil {
			return res, err
		}
		res.farther(r.source)
		k = r.key
		if r.organizationRead && (!late || r.organizationAdmitted) {
			o = r.organization
		}
	}
	res.unpositioned = !k.leased
	if verdict := k.verdict(a.now().UnixNano()); verdict != nil {
		return res, verdict
	}
	if k.record.OrganizationID == "" {
		return res, ErrUnknown // a key without an organization opens nothing
	}
	if o == nil {
		o = a.organizationInMemory(k.record.OrganizationID, d)
		if o != nil {
			res.farther(L1)
		}
	}
	if o == nil {
		r, _, err := a.fly(ctx, d, func() *flight {
			return &flight{ref: event.OrganizationRef(k.record.OrganizationID), known: known}
		}, func() result {
			return result{organization: a.organizationInMemory(k.record.OrganizationID, d), source: L1}
		})
		if err != nil {
			return res, err
		}
		res.farther(r.source)
		o = r.organization
	}
	res.unpositioned = res.unpositioned || !o.leased
	wall := a.now().UnixNano()
	if verdict := o.verdict(wall); verdict != nil {
		return res, verdict
	}
	a.used(k, wall, d.usageAfter)
	res.Principal = &k.compose(o).principal
	return res, nil
}

// refusedInMemory is the verdict on a key that memory knows to open nothing:
// the one way for unknown, revoked and expired ones.
func (a *Authenticator) refusedInMemory(sum [sha256.Size]byte, d demand) error {
	k := a.keyInMemory(sum, d)
	if k == nil {
		return nil
	}
	verdict := k.verdict(a.now().UnixNano())
	switch verdict {
	case nil:
	case ErrUnknown:
		a.count.negativeHits.Add(1)
	default:
		a.count.l1Hits.add(rand.Uint32()) // #nosec G404 -- the stripe of a counter
	}
	return verdict
}

// keyInMemory gives the key or the negative entry that memory may answer with.
func (a *Authenticator) keyInMemory(sum [sha256.Size]byte, d demand) *keyEntry {
	if d.fresh {
		return nil
	}
	lease := a.node.Lease()
	generation := a.l1.keyGeneration.Load()
	k, found := a.l1.keys.GetIfPresent(sum)
	if !found || k.generation != generation {
		k, found = a.l1.negative.GetIfPresent(sum)
	}
	if !found || k.generation != generation {
		return nil
	}
	now := invalidator.InstantOf(a.now())
	if now.Wall >= k.ttl || !k.servable(now, lease.ValidFor(now, d.staleness), d.staleness) {
		return nil
	}
	return k
}

func (a *Authenticator) organizationInMemory(id string, d demand) *organizationEntry {
	if d.fresh {
		return nil
	}
	lease := a.node.Lease()
	generation := a.l1.organizationGeneration.Load()
	o, found := a.l1.organizations.GetIfPresent(id)
	if !found || o.generation != generation {
		return nil
	}
	now := invalidator.InstantOf(a.now())
	if now.Wall >= o.ttl || !o.servable(now, lease.ValidFor(now, d.staleness), d.staleness) {
		return nil
	}
	return o
}

// stale is the opt-in of Config.StaleOnOutage: an entry that no event has
// evicted, no further past the last moment at which it was vouched for than the
// cap.
func (a *Authenticator) stale(sum *[sha256.Size]byte, d demand) (p *Principal, verdict error, ok bool) {
	most := a.cfg.StaleOnOutage
	if most <= 0 || d.strict {
		return nil, nil, false
	}
	keyGeneration := a.l1.keyGeneration.Load()
	organizationGeneration := a.l1.organizationGeneration.Load()
	k, found := a.l1.keys.GetIfPresent(*sum)
	if !found || k.generation != keyGeneration {
		return nil, nil, false
	}
	now := invalidator.InstantOf(a.now())
	vouched := a.vouched.Load()
	lately := vouched != nil && less(*vouched, now, most)
	if !k.servable(now, lately, most) {
		return nil, nil, false
	}
	o, found := a.l1.organizations.GetIfPresent(k.record.OrganizationID)
	if !found || o.generation != organizationGeneration || !o.servable(now, lately, most) {
		return nil, nil, false
	}
	if verdict = verdictOf(k, o, now.Wall); verdict != nil {
		return nil, verdict, true
	}
	a.used(k, now.Wall, d.usageAfter)
	return &k.compose(o).principal, nil, true
}
