// Package console is a page that shows a system as it lives: its nodes and how
// fresh they are, changes and when each node had them in force, how long that
// takes, who leads, and what is amiss. It reads, and changes nothing.
//
// A [Console] follows the system once, however many look, and each browser hears
// of it by server-sent events. Nothing is loaded from elsewhere.
package console
