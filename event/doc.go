// Package event is the wire contract of authfence: what a listener publishes,
// what a node reads, and the few messages by which leases and barriers are
// asked for. It imports nothing else of the project, so that a program in any
// language needs only this page.
//
// # Order
//
// Every event has a [Position] (term, n), compared term first, in one order
// for the whole system. Each event also names the position before it (Prev),
// so a reader can tell that it missed something without trusting the
// transport. Positions are comparable within one [Epoch] only: an epoch is one
// history of positions, and a fresh one begins whenever Postgres may have
// lost or rewound history.
//
// # Subjects
//
// With the default prefix "authfence":
//
//	authfence.event    events; core NATS, captured by the stream AUTHFENCE
//	authfence.lease    LeaseAsk   -> LeaseReply, answered by the leader
//	authfence.report   ReportAsk  -> Report, answered by every node
//	authfence.barrier  BarrierAsk -> Receipt, answered by the leader
//	authfence.status   StatusAsk  -> StatusReply, answered by every node and listener
//	authfence.entry    EntryAsk   -> EntryReply, answered by every node with a cache
//	authfence.applied  AppliedLog, from every node
//
// # Encoding
//
// A body is one compact JSON object that a person can read with "nats sub":
//
//	{"v":1,"epoch":"b1946ac92492d234","pos":"7-42","prev":"7-41",
//	 "at":"2026-01-02T03:04:05.123456Z",
//	 "changes":[{"kind":"api_key","op":"update","at":"…","refs":["3f2a…"]},
//	            {"kind":"organization","op":"truncate","at":"…","wide":true}]}
//
// The message headers are CloudEvents attributes in the binary content mode of
// the CloudEvents NATS binding (1.0.3-wip), ASCII only. A reader needs no
// header; the body is whole by itself.
//
// # Versions
//
// A reader ignores members that it does not know, so a member that may be
// ignored is added without further ado. What an old reader would misunderstand
// gets a new "v". In every version, now and later, "v", "epoch", "pos" and
// "prev" are what they are today: a reader that meets an event above the version
// that it knows still has its place in the chain, and takes it for a change of
// every ref of every kind ([Event.Newer]). So an old node beside a new listener
// is as prompt and as safe as ever; it only keeps nothing cached for long. A
// new reader reads the versions of the releases before it, so that nodes can be
// upgraded first.
//
// The other messages have a version of their own. One that is not known is
// refused with [ErrVersion]: no lease comes of it, and no harm.
package event
