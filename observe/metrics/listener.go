package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/authfence/authfence/internal/histogram"
	"github.com/authfence/authfence/listener"
)

// Listener collects what a listener says of itself.
func Listener(status func() listener.Status) prometheus.Collector {
	type s = listener.Status
	return &collector[s]{status: status, metrics: []metric[s]{
		gauges("authfence_listener_role", "1 for the role that the listener is in.", "role", func(s s) map[string]float64 {
			return states(s.Role, listener.RoleStarting, listener.RoleStandby, listener.RoleLeader, listener.RoleStopped)
		}),
		gauge("authfence_listener_role_since_seconds", "When the role began, Unix time.", func(s s) float64 { return float64(s.Since.UnixMicro()) / 1e6 }),
		gauge("authfence_listener_term", "The term that it leads; 0 when it does not lead.", func(s s) float64 { return float64(s.Term) }),
		gauge("authfence_listener_position", "The n of the position that it has committed in its term.", func(s s) float64 { return float64(s.Position.N) }),
		counter("authfence_listener_epochs_total", "Epochs that it began: each empties every cache once.", func(s s) uint64 { return s.Epochs }),
		counters("authfence_listener_sessions_ended_total", "Sessions that ended.", "reason", func(s s) map[string]uint64 {
			all := make(map[string]uint64)
			for _, reason := range []string{
				listener.ReasonStopped, listener.ReasonPostgres, listener.ReasonDeposed, listener.ReasonNATS,
				listener.ReasonPublish, listener.ReasonCommit, listener.ReasonTriggers,
			} {
				all[reason] = s.SessionsEnded[reason]
			}
			return all
		}),
		gauge("authfence_listener_nats_connected", "1 while NATS is connected.", func(s s) float64 { return bit(s.NATSConnected) }),
		gauges("authfence_listener_notify", "1 for how it hears of changes: by LISTEN, by polling only, or not now.", "state", func(s s) map[string]float64 {
			return states(s.Notify, "listening", "off", "away")
		}),
		gauge("authfence_listener_polling", "1 while NOTIFY steps aside under load.", func(s s) float64 { return bit(s.Polling) }),
		counter("authfence_listener_notifications_total", "Notifications of changes that were heard.", func(s s) uint64 { return s.Notifications }),
		counter("authfence_listener_looks_total", "Looks at an outbox that was empty.", func(s s) uint64 { return s.Looks }),
		counter("authfence_listener_drains_total", "Drains.", func(s s) uint64 { return s.Drains }),
		counter("authfence_listener_changes_total", "Rows that were drained.", func(s s) uint64 { return s.Changes }),
		counter("authfence_listener_events_total", "Events that were published.", func(s s) uint64 { return s.Events }),
		counter("authfence_listener_poison_total", "Rows that could not be told, and were published as wide changes.", func(s s) uint64 { return s.Poison }),
		spread("authfence_listener_drain_rows", "Rows of the drains that found any.", func(s s) histogram.Snapshot { return s.DrainRows }),
		gauge("authfence_listener_last_drain_seconds", "How long the last drain took.", func(s s) float64 { return s.LastDrainTook.Seconds() }),
		gauge("authfence_listener_last_lag_seconds", "Age of the oldest row of the last drain that found any, by the clock of Postgres.", func(s s) float64 { return s.LastLag.Seconds() }),
		gauge("authfence_listener_outbox_rows", "Rows in the outbox, counted up to 100,000, every 2 s.", func(s s) float64 { return float64(s.Outbox.Rows) }),
		gauge("authfence_listener_outbox_oldest_seconds", "Age of the oldest of them, by the clock of Postgres.", func(s s) float64 { return s.Outbox.Oldest.Seconds() }),
		gauge("authfence_listener_notify_queue_ratio", "How full Postgres's queue of notifications is, 0 to 1: when it is full, commits fail.", func(s s) float64 { return s.Outbox.NotifyUsage }),
		counters("authfence_listener_asks_total", "Asks for a lease.", "result", func(s s) map[string]uint64 {
			return map[string]uint64{"granted": s.AsksAnswered, "refused": s.AsksRefused, "bad": s.AsksBad}
		}),
		gauge("authfence_listener_nodes", "Nodes that the leader knows.", func(s s) float64 { return float64(len(s.Nodes)) }),
		gauge("authfence_listener_trigger_problems", "What is wrong with the triggers; above 0 no lease is granted.", func(s s) float64 { return float64(len(s.TriggerProblems)) }),
		gauge("authfence_listener_trigger_warnings", "What deserves a look about the triggers.", func(s s) float64 { return float64(len(s.TriggerWarnings)) }),
		gauge("authfence_listener_stream_problem", "1 while the stream is not there or cannot be looked at: nodes reset where they would replay.", func(s s) float64 { return bit(s.StreamProblem != "") }),
		gauge("authfence_listener_stream_differs", "Settings of the stream that are not as configured.", func(s s) float64 { return float64(len(s.StreamDiffers)) }),
		gauge("authfence_listener_audit_problem", "1 while the stream of the audit is not there or cannot be looked at.", func(s s) float64 { return bit(s.AuditProblem != "") }),
		counters("authfence_listener_barriers_total", "Barriers that were answered: with a whole receipt, or before there was one.", "result", func(s s) map[string]uint64 {
			return map[string]uint64{"met": s.Barriers, "unmet": s.BarriersUnmet}
		}),
		spread("authfence_listener_barrier_seconds", "From a barrier's ask to its answer.", func(s s) histogram.Snapshot { return s.BarrierTook }),
	}}
}
