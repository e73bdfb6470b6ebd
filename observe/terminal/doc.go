// Package terminal shows what package observe sees to a person at a terminal, a
// line for each change or a table of nodes, and to a program as one JSON object
// a line. docs/observe.md has both forms; the names in the JSON stay.
package terminal
