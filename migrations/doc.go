// Package migrations installs the change log in a database, and takes it away again (rules 1 to 4 and 23 of the design).
//
// There are three layers. Numbered SQL files, run by goose, make the schema authfence: change (the outbox), relay (term,
// epoch, position), incarnation, watched, polling (the leader's promise to look by itself), and the functions of rule 23. The mapping of package watch then decides which
// tables get triggers. Roles and the reference schema are steps of their own, taken when asked for.
//
// # Triggers
//
// A watched table gets three triggers and nothing else, all AFTER and ENABLE ALWAYS, so that they see the row as it came
// out, and see the apply of logical replication too:
//
//	authfence_<kind>_row       INSERT OR DELETE, per row
//	authfence_<kind>_update    UPDATE, per row, WHEN a relevant column changed (compared byte by byte: any type will do)
//	authfence_<kind>_truncate  TRUNCATE, per statement
//
// Row triggers reach what statement triggers with transition tables miss: writes made straight to a partition, rows that
// move between partitions, and replication. An update of other columns evaluates the WHEN clause and no more: that is
// about 1 us a row, and 18 us a statement, since Postgres parses the stored clause anew for each. UPDATE OF would save
// that and would miss what somebody's BEFORE trigger changes in columns that the statement did not name.
//
// # Wide changes
//
// Row triggers are dear in bulk: Postgres queues an event per row and calls the function for each. So the WHEN clause
// itself counts, while the statement runs: authfence.count_<kind>() adds one for every row that is about to be queued, in
// a setting that is local to the transaction. Above the threshold it raises a flag, and from then on the first term of
// the WHEN clause is false and nothing is queued at all. When the queue is worked off, the first event that sees the
// flag writes one wide change (rule 3), and the rest return at once. Settings that are local to the transaction roll
// back with a savepoint exactly as the rows do.
//
// The count is the transaction's, not the statement's: a transaction becomes visible to the listener as a whole, so a
// wide change in it covers whatever it changed before or after. A transaction that changes no more rows than the
// threshold never goes wide. A row that moves between partitions counts twice, as the DELETE and the INSERT that it is.
//
// The flag is the transaction's own id, so that no stray SET, ALTER ROLE or ALTER DATABASE can silence the log. A writer
// who sets it to its own current transaction id by intent does silence the log for that transaction: the triggers
// witness for writers, they don't guard against them. Anybody who may write the table can as well insert a key.
//
// # One function a kind
//
// The trigger function is made from a template per kind, with the column written out. One that finds its column by name
// at run time must turn the whole row into JSON: measured, 28 us a changed row instead of 15; it reads every large value
// of the row back from its side table, and it calls whatever cast to json the table's owner defined, with our rights.
//
// # What a trigger does to a writer
//
// It runs as the owner of the schema with a pinned search_path, so writers need no grant. It does not fail the write for
// a NULL key (no ref), for a ref longer than 512 bytes, nor for a column that was renamed under it (both: a wide
// change; the check of rule 23 reports the latter). It does fail it when the change log cannot be written: a write that
// nobody will hear of is worse. A transaction that notified cannot be prepared (PREPARE TRANSACTION); set notify off.
//
// # Known limits
//
// TRUNCATE triggers are not cloned: a partition made after the installation has none until Up runs again, and a TRUNCATE
// of that partition alone (not of the parent) is not logged; authfence.trigger_check() warns, and
// authfence.trigger_fingerprint() changes when it happens. The same goes for ATTACH and DETACH PARTITION, and for ALTER
// TABLE that rewrites values. Postgres refuses ALTER COLUMN TYPE of a relevant column while the trigger stands: Down or
// drop the trigger first, then Up. A superuser can disable any trigger; that is detected, not prevented.
package migrations
