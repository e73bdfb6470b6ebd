// Package authlib answers, in well under a microsecond, who a bearer token stands
// for, and never from what a change has superseded for longer than a bound.
//
//	auth, err := authlib.New(authlib.Config{
//		Pool:     pool,   // *pgxpool.Pool of the primary
//		NATS:     nc,     // *nats.Conn
//		Redis:    client, // redis.UniversalClient, or nil
//		SealKeys: []authlib.SealKey{{ID: "2026-01", Key: key}},
//	})
//	…
//	go func() { done <- auth.Run(ctx) }()
//	http.Handle("/invoices", authlib.Middleware(auth, authlib.Require("invoices", "read"))(handler))
//
// # What it promises
//
// No request begun more than Config.MaxStaleness (2 s) after a durable commit to
// a watched table is answered from what the commit superseded, whatever fails;
// while all is well, a commit is in force within milliseconds. What it cannot
// know at all it answers with ErrUnavailable, never with "unknown".
//
// Not covered: writes that bypass the triggers (the audit finds them: see
// Stats.AuditStale), a wall clock of this machine that is wrong (expiry and
// revocation times are compared with it), and Config.StaleOnOutage, which gives
// the bound away for a while, if it is set.
//
// # How a request is answered
//
//	L1       this process; key and organization, each its own entry
//	L2       Redis, sealed; asked only under a lease (rule 18)
//	Primary  Postgres; one read for all that ask for the same ref, many refs in
//	         one query, a cap on queries and on requests that wait (rule 20)
//
// An entry is served under a valid lease, or while its own read of the primary is
// younger than the bound (rule 19), so that with NATS, Redis and the listener all
// down this is a cache whose entries live for MaxStaleness. A loaded row enters
// L1 only if no event overtook its read (rule 16).
//
// # What it writes
//
// Nothing, but for one column: when a key was last used, if the mapping names one
// (Config.UsageInterval). Uses are taken down in memory and written together.
//
// Files: authenticate (hit, and what follows a miss), flight and desk (who waits
// for what), primary and tier2 (the two places to read from), tier1 (L1), entry,
// principal, permissions, seal and l2value (what stands in Redis), audit,
// usage and usagewriter (last uses, gathered and written), middleware.
package authlib
