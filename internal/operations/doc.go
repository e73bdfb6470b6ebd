// Package operations is what is done to a system that runs: processes are
// upgraded one by one across versions of the wire contract, tables are migrated
// under load, nodes and listeners are stopped, a backup is restored. A [Site] is
// such a system in processes of its own, a [Load] its users and its writers,
// whose every answer is judged by internal/history.
//
// The tests are the instructions of docs/operations.md, carried out. The soak in
// internal/operations/soak watches the memory of the same processes for longer.
package operations
