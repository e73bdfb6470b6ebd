package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/internal/histogram"
	"github.com/authfence/authfence/invalidator"
)

// Node collects what an Authenticator and its node say of themselves.
func Node(status func() authlib.Status) prometheus.Collector {
	return &collector[authlib.Status]{
		status:  status,
		metrics: append(requests(), append(nodes(func(s authlib.Status) invalidator.Status { return s.Node }), unlinks(func(s authlib.Status) *invalidator.UnlinkStats { return s.Unlink })...)...),
	}
}

// Invalidator collects what a node without a cache of its own says, and its
// unlinker, which may be nil.
func Invalidator(status func() invalidator.Status, unlinker *invalidator.Unlinker) prometheus.Collector {
	type both struct {
		node   invalidator.Status
		unlink *invalidator.UnlinkStats
	}
	return &collector[both]{
		status: func() both {
			b := both{node: status()}
			if unlinker != nil {
				stats := unlinker.Stats()
				b.unlink = &stats
			}
			return b
		},
		metrics: append(nodes(func(b both) invalidator.Status { return b.node }), unlinks(func(b both) *invalidator.UnlinkStats { return b.unlink })...),
	}
}

// requests are about what became of requests.
func requests() []metric[authlib.Status] {
	type s = authlib.Status
	return []metric[s]{
		counters("authfence_requests_total", "Authentications, by where the answer came from: each is in one.", "source", func(s s) map[string]uint64 {
			return map[string]uint64{
				"l1": s.Stats.L1Hits, "l2": s.Stats.L2Hits, "primary": s.Stats.Loads, "negative": s.Stats.NegativeHits,
				"stale": s.Stats.StaleServed, "unavailable": s.Stats.Unavailable,
			}
		}),
		counter("authfence_requests_malformed_total", "Tokens that cannot be one, of source negative.", func(s s) uint64 { return s.Stats.Malformed }),
		counter("authfence_requests_abandoned_total", "Requests whose caller went away while they waited, of no source.", func(s s) uint64 { return s.Stats.Abandoned }),
		counter("authfence_requests_shed_total", "Requests refused because too many waited, of source unavailable.", func(s s) uint64 { return s.Stats.Shed }),
		counter("authfence_requests_joined_total", "Requests that took the result of a read begun for another one.", func(s s) uint64 { return s.Stats.Joined }),
		gauge("authfence_requests_waiting", "Requests that wait for a read.", func(s s) float64 { return float64(s.Stats.Waiting) }),

		counter("authfence_primary_queries_total", "Queries to the primary.", func(s s) uint64 { return s.Stats.Queries }),
		counter("authfence_primary_errors_total", "Queries to the primary that failed.", func(s s) uint64 { return s.Stats.QueryErrors }),
		spread("authfence_primary_query_seconds", "How long queries took, the wait for a connection included.", func(s s) histogram.Snapshot { return s.Stats.QueryTook }),
		spread("authfence_primary_query_refs", "Refs of a query: misses that arrive together share one.", func(s s) histogram.Snapshot { return s.Stats.Batch }),
		gauge("authfence_primary_failing", "1 while the primary did not answer the last query.", func(s s) float64 { return bit(s.Failing) }),
		counter("authfence_primary_standby_total", "Queries that a standby answered: nothing of them is kept.", func(s s) uint64 { return s.Stats.Standby }),
		counter("authfence_primary_foreign_epoch_total", "Queries answered in another epoch than the node's.", func(s s) uint64 { return s.Stats.ForeignEpoch }),
		counter("authfence_primary_unwatched_total", "Queries of columns that no trigger watches: run authfence migrate up.", func(s s) uint64 { return s.Stats.Unwatched }),
		gauge("authfence_mapping_watched", "1 when the triggers watch all that the mapping reads.", func(s s) float64 { return bit(s.Watched) }),

		counter("authfence_fills_total", "Entries put into memory from the primary.", func(s s) uint64 { return s.Stats.Fills }),
		gauges("authfence_entries", "Entries in memory, by estimate.", "kind", func(s s) map[string]float64 {
			return map[string]float64{"api_key": float64(s.Stats.Keys), "organization": float64(s.Stats.Organizations), "negative": float64(s.Stats.Negative)}
		}),

		gauge("authfence_l2_configured", "1 when there is a Redis.", func(s s) float64 { return bit(s.L2) }),
		gauge("authfence_l2_breaker_open", "1 while Redis is left alone because it failed.", func(s s) float64 { return bit(s.Stats.L2Open) }),
		counter("authfence_l2_breaker_opened_total", "Times that the breaker opened.", func(s s) uint64 { return s.Stats.L2Opened }),
		counter("authfence_l2_reads_total", "Refs asked of Redis.", func(s s) uint64 { return s.Stats.L2Reads }),
		counter("authfence_l2_errors_total", "Reads of Redis that failed or timed out.", func(s s) uint64 { return s.Stats.L2Errors }),
		counter("authfence_l2_writes_total", "Values written to Redis.", func(s s) uint64 { return s.Stats.L2Writes }),
		counter("authfence_l2_dropped_total", "Writes to Redis that were dropped: queue full, breaker open, or failed.", func(s s) uint64 { return s.Stats.L2Dropped }),
		counter("authfence_l2_unopened_total", "Values whose seal did not open: another key, or tampered with.", func(s s) uint64 { return s.Stats.L2Unopened }),
		counter("authfence_l2_foreign_total", "Values of another mapping or version, unreadable, or past their end.", func(s s) uint64 { return s.Stats.L2Foreign }),

		counter("authfence_audit_samples_total", "Entries in memory that were compared with the primary (rule 23).", func(s s) uint64 { return s.Stats.AuditSamples }),
		counter("authfence_audit_stale_total", "Of them, those older than the bound: must stay 0.", func(s s) uint64 { return s.Stats.AuditStale }),
		counter("authfence_audit_errors_total", "Rounds of the audit that could not be finished.", func(s s) uint64 { return s.Stats.AuditErrors }),

		gauge("authfence_usage_on", "1 while uses of keys are taken down.", func(s s) float64 { return bit(s.Usage.On) }),
		counter("authfence_usage_written_total", "Rows whose last use was written.", func(s s) uint64 { return s.Usage.Written }),
		counter("authfence_usage_dropped_total", "Keys whose last use was given up.", func(s s) uint64 { return s.Usage.Dropped }),
		counter("authfence_usage_errors_total", "Statements that failed; what they were to write is kept.", func(s s) uint64 { return s.Usage.Failed }),
		gauge("authfence_usage_waiting", "Keys whose last use is to be written.", func(s s) float64 { return float64(s.Usage.Waiting) }),
	}
}

// nodes are about the node's place in the order of events.
func nodes[S any](of func(S) invalidator.Status) []metric[S] {
	count := func(name, help string, read func(invalidator.Stats) uint64) metric[S] {
		return counter(name, help, func(s S) uint64 { return read(of(s).Stats) })
	}
	return []metric[S]{
		gauges("authfence_node_state", "1 for the state that the node is in; only a fresh one trusts its cache.", "state", func(s S) map[string]float64 {
			return states(of(s).Phase, invalidator.Starting, invalidator.Fresh, invalidator.Degraded)
		}),
		gauge("authfence_node_nats_connected", "1 while NATS is connected.", func(s S) float64 { return bit(of(s).Connected) }),
		gauge("authfence_node_term", "The term of the position that it has applied.", func(s S) float64 { return float64(of(s).Applied.Position.Term) }),
		gauge("authfence_node_position", "The n of that position.", func(s S) float64 { return float64(of(s).Applied.Position.N) }),
		gauge("authfence_node_lease_seconds", "What is left of the lease: the headroom below the bound. 0 without one.", func(s S) float64 { return max(0, of(s).LeaseLeft).Seconds() }),
		gauge("authfence_node_lease_age_seconds", "How long ago the ask was sent that the lease counts from: no answer is older than that, and what came since. The bound without a lease.", func(s S) float64 {
			n := of(s)
			return max(0, n.MaxStaleness-max(0, n.LeaseLeft)).Seconds()
		}),
		gauge("authfence_node_max_staleness_seconds", "The bound.", func(s S) float64 { return of(s).MaxStaleness.Seconds() }),
		gauge("authfence_node_floors", "Refs with a floor of their own.", func(s S) float64 { return float64(of(s).Floors) }),
		spread("authfence_node_commit_to_applied_seconds", "From the commit of the oldest change of an event, by the clock of Postgres, to its being applied, by the clock here.", func(s S) histogram.Snapshot { return of(s).Stats.CommitToApplied }),
		count("authfence_node_events_total", "Events that were applied.", func(s invalidator.Stats) uint64 { return s.Events }),
		count("authfence_node_refs_total", "Refs that they named.", func(s invalidator.Stats) uint64 { return s.Refs }),
		count("authfence_node_gaps_total", "Places where events were missing.", func(s invalidator.Stats) uint64 { return s.Gaps }),
		count("authfence_node_replays_total", "Readings of the stream.", func(s invalidator.Stats) uint64 { return s.Replays }),
		count("authfence_node_replayed_events_total", "Events that they brought.", func(s invalidator.Stats) uint64 { return s.Replayed }),
		count("authfence_node_replays_failed_total", "Readings that did not close the gap.", func(s invalidator.Stats) uint64 { return s.ReplayFailed }),
		counters("authfence_node_resets_total", "Times that the node emptied its cache and began anew.", "reason", func(s S) map[string]uint64 {
			stats := of(s).Stats
			return map[string]uint64{"start": stats.ResetsStart, "gap": stats.ResetsGap, "lease": stats.ResetsLease, "epoch": stats.ResetsEpoch}
		}),
		counters("authfence_node_refused_total", "What a rule kept out: a read that an event overtook (16), a value of Redis that may be superseded (18).", "rule", func(s S) map[string]uint64 {
			stats := of(s).Stats
			return map[string]uint64{"16": stats.FillsRefused, "18": stats.AdmitRefused}
		}),
		counters("authfence_node_asks_total", "Asks for a lease, by their answers; an ask may be without one.", "result", func(s S) map[string]uint64 {
			stats := of(s).Stats
			return map[string]uint64{"granted": stats.Replies, "refused": stats.Refused, "nobody": stats.Unanswered, "bad": stats.BadReplies}
		}),
		count("authfence_node_leases_lost_total", "Leases that ended without a new one.", func(s invalidator.Stats) uint64 { return s.LeasesLost }),
		count("authfence_node_reports_total", "Answers to a leader's barrier.", func(s invalidator.Stats) uint64 { return s.Reports }),
		count("authfence_node_poison_total", "Events that could not be read.", func(s invalidator.Stats) uint64 { return s.Poison }),
		count("authfence_node_newer_total", "Events of a newer version, each of which evicts everything.", func(s invalidator.Stats) uint64 { return s.Newer }),
		count("authfence_node_dropped_total", "Messages that the queue could not take; they are replayed.", func(s invalidator.Stats) uint64 { return s.Dropped }),
	}
}

// unlinks are about evictions in Redis; none when another process sees to them.
func unlinks[S any](of func(S) *invalidator.UnlinkStats) []metric[S] {
	count := func(name, help string, read func(invalidator.UnlinkStats) uint64) metric[S] {
		return metric[S]{desc: prometheus.NewDesc(name, help, nil, nil), kind: prometheus.CounterValue, read: func(s S, sample func(float64, ...string)) {
			if stats := of(s); stats != nil {
				sample(float64(read(*stats)))
			}
		}}
	}
	return []metric[S]{
		count("authfence_unlink_events_total", "Events worked off for Redis.", func(u invalidator.UnlinkStats) uint64 { return u.Events }),
		count("authfence_unlink_keys_total", "Keys unlinked in Redis.", func(u invalidator.UnlinkStats) uint64 { return u.Keys }),
		count("authfence_unlink_retries_total", "Events put back because Redis failed.", func(u invalidator.UnlinkStats) uint64 { return u.Retries }),
		count("authfence_unlink_given_up_total", "Events tried for the last time in vain; what they named is refused by its stamp.", func(u invalidator.UnlinkStats) uint64 { return u.GivenUp }),
		count("authfence_unlink_errors_total", "Rounds ended by an error of NATS or Redis.", func(u invalidator.UnlinkStats) uint64 { return u.Failures }),
	}
}
