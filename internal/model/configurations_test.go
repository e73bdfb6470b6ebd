package model

// configuration is one scope that is searched to its end.
type configuration struct {
	name   string
	bounds Bounds
}

var (
	x    = Write{Refs: 1}
	y    = Write{Refs: 2}
	both = Write{Refs: 3, Wide: true}
)

// small are the configurations of an ordinary test: narrow, each on some of the
// rules, and exhaustive within its bounds.
var small = []configuration{
	// Two refs whose writes commit in any order; drains that fail; a takeover;
	// lost, repeated and reordered events: the chain (rules 7, 8, 11 to 13).
	{"chain", Bounds{Nodes: 1, Refs: 2, Sessions: 1, Writes: []Write{x, y}, Led: true, Warm: true,
		Takeovers: 1, Asks: 1, Resets: 1}},
	// Two live leaders, each of whom thinks it leads (rules 6 to 8).
	{"leaders", Bounds{Nodes: 1, Refs: 1, Sessions: 2, Writes: []Write{x, x}, Led: true, Warm: true,
		Takeovers: 1, Asks: 1}},
	// Reads that take their time, with compaction and resets under them (rules
	// 16, 17, 21).
	{"fill", Bounds{Nodes: 1, Refs: 1, Sessions: 1, Writes: []Write{x}, Led: true, Flights: 1, SplitReads: true,
		Asks: 2, Reads: 2, Resets: 1, Compactions: 1}},
	// A wide change and a narrow one of two refs (rule 3).
	{"wide", Bounds{Nodes: 1, Refs: 2, Sessions: 1, Writes: []Write{both, y}, Led: true, Flights: 1,
		Asks: 1, Reads: 1, Compactions: 1}},
	// Drains that delete a part, and drains of many events.
	{"batches", Bounds{Nodes: 1, Refs: 2, Sessions: 1, Writes: []Write{x, y}, Led: true, Warm: true, Limited: true, SplitEvents: true,
		Takeovers: 1, Asks: 1, Resets: 1}},
	// Hits that take their time, while the node is reset.
	{"hits", Bounds{Nodes: 1, Refs: 1, Sessions: 1, Writes: []Write{x}, Led: true, Warm: true, Flights: 1,
		Asks: 2, Reads: 1, Resets: 1, Hits: 1}},
	// Repetitions after the lease was granted, and late replies.
	{"repeat", Bounds{Nodes: 1, Refs: 1, Sessions: 1, Writes: []Write{x, x}, Led: true, Flights: 1, Redis: true,
		Asks: 1, Reads: 1}},
	{"replies", Bounds{Nodes: 1, Refs: 1, Sessions: 1, Writes: []Write{x}, Led: true, Flights: 1, Redis: true, Warm: true,
		Asks: 2, Resets: 2}},
	{"redis", Bounds{Nodes: 1, Refs: 1, Sessions: 1, Writes: []Write{x}, Led: true, Warm: true, Flights: 1, Redis: true,
		Asks: 1, Reads: 1, Resets: 1, Compactions: 1}},
	{"start", Bounds{Nodes: 1, Refs: 1, Sessions: 1, Writes: []Write{x}, Led: true, Warm: true, Flights: 1, Redis: true, Rebuild: true,
		Asks: 1, Reads: 1, Restarts: 1}},
	{"nodes", Bounds{Nodes: 2, Refs: 1, Sessions: 1, Writes: []Write{x}, Led: true, Flights: 1, Redis: true,
		Asks: 1, Reads: 1, Resets: 1}},
	{"restore", Bounds{Nodes: 1, Refs: 1, Sessions: 1, Writes: []Write{x}, Led: true, Flights: 1, Redis: true,
		Takeovers: 1, Asks: 1, Reads: 1, Restores: 1}},
	{"backup", Bounds{Nodes: 1, Refs: 1, Sessions: 1, Writes: []Write{x}, Led: true, Warm: true,
		Takeovers: 1, Asks: 1, Restores: 1, Backups: 1}},
	{"crash", Bounds{Nodes: 1, Refs: 1, Sessions: 1, Writes: []Write{x}, Led: true, Flights: 1, AsyncDrains: true, AsyncWrites: true,
		Takeovers: 1, Asks: 1, Reads: 1, Crashes: 1}},
	{"failover", Bounds{Nodes: 1, Refs: 1, Sessions: 1, Writes: []Write{x}, Led: true, Flights: 1,
		Takeovers: 1, Asks: 1, Reads: 1, Failovers: 1}},
	{"past", Bounds{Nodes: 1, Refs: 1, Sessions: 1, Writes: []Write{x, x}, Past: true, Led: true, Redis: true, Flights: 1,
		Asks: 1, Reads: 1}},
	{"barrier", Bounds{Nodes: 1, Refs: 1, Sessions: 2, Writes: []Write{x}, Led: true, Warm: true, Barriers: true,
		Takeovers: 1, Asks: 1}},
	// A barrier of a leader that stays, and reads of a node that may be unknown to it.
	{"unknown", Bounds{Nodes: 1, Refs: 1, Sessions: 1, Writes: []Write{x}, Led: true, Warm: true, Flights: 1, Barriers: true,
		Asks: 1, Reads: 1}},
}

// deep are wider, for a run that takes minutes.
var deep = []configuration{
	{"chain", Bounds{Nodes: 1, Refs: 2, Sessions: 2, Writes: []Write{x, y, x}, Led: true, Warm: true,
		Takeovers: 2, Asks: 1, Resets: 1}},
	{"leaders", Bounds{Nodes: 1, Refs: 1, Sessions: 2, Writes: []Write{x, x}, Led: true, Flights: 1,
		Takeovers: 2, Asks: 1, Reads: 1, Resets: 1}},
	{"batches", Bounds{Nodes: 1, Refs: 2, Sessions: 1, Writes: []Write{x, both, y}, Led: true, Warm: true, Limited: true, SplitEvents: true,
		Takeovers: 1, Asks: 1, Resets: 1, Compactions: 1}},
	{"fill", Bounds{Nodes: 1, Refs: 1, Sessions: 1, Writes: []Write{x, x}, Led: true, Flights: 2, SplitReads: true,
		Asks: 2, Reads: 2, Resets: 1, Compactions: 1}},
	{"hits", Bounds{Nodes: 1, Refs: 1, Sessions: 1, Writes: []Write{x, x}, Led: true, Warm: true, Flights: 1, Redis: true,
		Asks: 2, Reads: 1, Resets: 2, Hits: 1}},
	{"redis", Bounds{Nodes: 1, Refs: 1, Sessions: 1, Writes: []Write{x, x}, Led: true, Warm: true, Flights: 1, Redis: true, Rebuild: true,
		Asks: 2, Reads: 2, Resets: 1, Compactions: 1, Restarts: 1}},
	{"nodes", Bounds{Nodes: 2, Refs: 1, Sessions: 1, Writes: []Write{x, x}, Led: true, Flights: 1, Redis: true,
		Asks: 1, Reads: 1, Resets: 1, Restarts: 1}},
	{"epochs", Bounds{Nodes: 1, Refs: 1, Sessions: 1, Writes: []Write{x, x}, Led: true, Flights: 1,
		Takeovers: 1, Asks: 2, Reads: 1, Resets: 1, Restores: 1}},
	{"twice", Bounds{Nodes: 1, Refs: 1, Sessions: 1, Writes: []Write{x}, Led: true, Flights: 1, Redis: true,
		Takeovers: 2, Asks: 2, Reads: 1, Resets: 1, Crashes: 1, Restores: 1}},
	{"backup", Bounds{Nodes: 1, Refs: 1, Sessions: 1, Writes: []Write{x}, Led: true, Flights: 1, Redis: true,
		Takeovers: 1, Asks: 2, Reads: 1, Restores: 1, Backups: 1}},
	{"async", Bounds{Nodes: 1, Refs: 1, Sessions: 2, Writes: []Write{x}, Led: true, Flights: 1, AsyncDrains: true, AsyncWrites: true,
		Takeovers: 2, Asks: 1, Reads: 1, Resets: 1, Crashes: 1}},
	{"failover", Bounds{Nodes: 1, Refs: 1, Sessions: 1, Writes: []Write{x}, Led: true, Flights: 1, SplitReads: true, Redis: true, AsyncWrites: true,
		Takeovers: 1, Asks: 2, Reads: 1, Resets: 1, Failovers: 1, Backups: 1}},
	{"past", Bounds{Nodes: 2, Refs: 1, Sessions: 1, Writes: []Write{x, x}, Past: true, Led: true, Redis: true, Rebuild: true, Flights: 1,
		Asks: 2, Reads: 1, Restarts: 1}},
	{"barrier", Bounds{Nodes: 2, Refs: 1, Sessions: 2, Writes: []Write{x}, Led: true, Warm: true, Flights: 1, Barriers: true,
		Takeovers: 1, Asks: 1, Reads: 1}},
	{"renewed", Bounds{Nodes: 1, Refs: 1, Sessions: 1, Writes: []Write{x}, Led: true, Warm: true, Flights: 1, Barriers: true,
		AsyncWrites: true, Takeovers: 1, Asks: 2, Reads: 1, Crashes: 1}},
	{"all", Bounds{Nodes: 1, Refs: 1, Sessions: 2, Writes: []Write{x, x}, Led: true, Flights: 1, Redis: true, Rebuild: true, AsyncDrains: true,
		Takeovers: 1, Asks: 1, Reads: 1, Resets: 1, Compactions: 1, Restarts: 1, Crashes: 1}},
}

// deepest takes as much memory as a large machine has.
var deepest = []configuration{
	{"all", Bounds{Nodes: 1, Refs: 1, Sessions: 2, Writes: []Write{x, x}, Led: true, Flights: 1, Redis: true, Rebuild: true, AsyncDrains: true,
		Takeovers: 1, Asks: 2, Reads: 1, Resets: 1, Compactions: 1, Restarts: 1, Crashes: 1}},
}
