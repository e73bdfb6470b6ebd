package model

import "fmt"

// Guard is one thing that the protocol does so that nothing stale is served.
// The zero set of guards taken off is the protocol.
type Guard uint8

// The guards, in the order of the rules.
const (
	FreshEpoch            Guard = iota // 6: another identity, a fresh epoch
	IncarnationInIdentity              // 6: a crash of one backend is another identity
	NewTerm                            // 6: every session has a term of its own
	TermInPosition                     // 7: positions are (term, n)
	NumberOnce                         // 7: a drain that failed ends the session
	FirstPrev                          // 7: a term's first event names the position committed before
	LockBeforeDelete                   // 8: the relay row of my term is locked first
	OutboxNotCursor                    // 8: never id > cursor
	EpochOnEvents                      // 11
	OldIgnored                         // 11
	WideFloor                          // 11: a wide change raises the floor of its kind
	PrevCheck                          // 11
	AskTime                            // 12: t0 is taken as the ask is sent
	Nonce                              // 12: a reply counts for its own ask only
	DrainForAsk                        // 12: no answer without a drain
	EmptyBeforeReply                   // 12: a drain that hit its limit answers nobody
	DrainAfterAsk                      // 12: whose DELETE is sent after the ask arrived
	ReplyAfterCommit                   // 12: without it, with the position committed before
	ReplyCommitted                     // 12: without it, before COMMIT with the position published
	EpochOnReplies                     // 13
	WaitApplied                        // 13: no lease before applied >= P
	ResetForward                       // 13: reset only if P > applied
	AsksOfEpoch                        // 13: asks from before a change of epoch are dropped
	FlushOnReset                       // 14
	StartOnReset                       // 14: history start is raised
	NoHistoryAtStart                   // 15
	PrimaryOnly                        // 16
	StampAtStart                       // 16
	GenerationOnFill                   // 16
	EpochOnFill                        // 16: implied by the generation
	FloorOnFill                        // 16
	StartOnFill                        // 16
	FillAtomic                         // 10, 16
	ReadEpoch                          // 16: the epoch that the read saw is that of the stamp
	JoinAdmitted                       // 17
	JoinClosed                         // 17: nobody joins any more once the floors were checked
	EpochOnAdmit                       // 18
	StartOnAdmit                       // 18
	FloorOnAdmit                       // 18
	AdmitAtomic                        // 10, 18
	L2NoOwnRead                        // 19
	LeaseBeforeCache                   // 19: a hit loads the lease before it looks into L1
	BarrierConfirmed                   // 22: every known node has confirmed
	BarrierYoungLeader                 // 22: a young leader waits for leases of others
	guards
)

var guardNames = [guards]string{
	"fresh epoch for another identity (6)",
	"incarnation in the identity (6)",
	"new term per session (6)",
	"term in the position (7)",
	"no reuse of numbers (7)",
	"first prev of a term (7)",
	"lock before DELETE (8)",
	"never id > cursor (8)",
	"epoch on events (11)",
	"old positions ignored (11)",
	"floor of a wide change (11)",
	"prev check (11)",
	"t0 at the ask (12)",
	"nonce of the ask (12)",
	"drain at all (12)",
	"a full batch answers nobody (12)",
	"drain after the ask (12)",
	"reply after COMMIT (12)",
	"reply with what is committed (12)",
	"epoch on replies (13)",
	"wait for applied >= P (13)",
	"reset only forward (13)",
	"asks from before an epoch change dropped (13)",
	"flush on reset (14)",
	"history start raised on reset (14)",
	"no history at start (15)",
	"primary only (16)",
	"stamp at the start (16)",
	"generation on fill (16)",
	"epoch on fill (16)",
	"floor on fill (16)",
	"history start on fill (16)",
	"fill atomic (16)",
	"epoch that a read saw (16)",
	"joining (17)",
	"no joining after the check (17)",
	"epoch on L2 admission (18)",
	"history start on L2 admission (18)",
	"floor on L2 admission (18)",
	"L2 admission atomic (18)",
	"L2 entry is no own read (19)",
	"lease read before the cache (19)",
	"barrier waits for nodes (22)",
	"barrier distrusts a young leader (22)",
}

func (g Guard) String() string {
	if int(g) < len(guardNames) {
		return guardNames[g]
	}
	return fmt.Sprintf("Guard(%d)", uint8(g))
}

// guardSet is the guards taken off.
type guardSet uint64

func without(gs ...Guard) (set guardSet) {
	for _, g := range gs {
		set |= 1 << g
	}
	return set
}

func (s guardSet) has(g Guard) bool { return s&(1<<g) != 0 }
