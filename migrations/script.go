package migrations

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/authfence/authfence/watch"
)

// Script is what Up and Down do, as SQL for people whose migrations are their own. It asks no database: what depends on
// the tables (partitions, BEFORE triggers) the script asks itself, where it runs, so one text serves every environment,
// and the same Script always gives the same text. A text is for one transaction, and holds no BEGIN and no COMMIT. After
// Up, Status finds everything as it should be, and the function Up has nothing to do.
type Script struct {
	// Watch is the mapping. Only Validate checks it; Status and authfence doctor do where the script has run.
	Watch watch.Config
	// ReferenceSchema makes Up create the tables of the reference schema, and Down drop them with every row in them.
	ReferenceSchema bool
	// Roles makes Up create the roles and grant them what they need. Down takes them away in any case.
	Roles bool
	// UsageRole makes Up, with Roles, create authfence_usage too, which may write the column last_used_at of the mapping.
	UsageRole bool
	// After is for a database that has the numbered files up to this one: Up is then the later files, and the triggers of
	// this mapping in the place of those of any other. 0, the default: for a database without authfence.
	After int64
	// Release stands in the header, as v1.2.3.
	Release string
}

// Newest is the number of the newest file, for Script.After.
func Newest() int64 {
	files, err := numberedFiles(changeLogFiles, "sql")
	if err != nil || len(files) == 0 {
		panic(fmt.Sprintf("migrations: embedded files: %v", err)) // they are part of the binary
	}
	return files[len(files)-1].number
}

// Validate names the first field that cannot be, and the mend.
func (s Script) Validate() error {
	switch {
	case s.After < 0 || s.After > Newest():
		return fmt.Errorf("after: %d: want 0 to %d, the numbers of the files of this release", s.After, Newest())
	case s.After > 0 && s.ReferenceSchema:
		return errors.New("after: the reference schema belongs to the first script; leave one of the two out")
	}
	if err := checkUsageRole(s.UsageRole, s.Roles, s.Watch); err != nil {
		return err
	}
	return s.Watch.Validate()
}

// Up is the text that installs.
func (s Script) Up() (string, error) { return s.text(false, s.up) }

// Down is the text that takes everything away again, whatever was installed since.
func (s Script) Down() (string, error) { return s.text(false, s.down) }

// Goose is both, as one file for github.com/pressly/goose. With After its Down refuses: what was there before is known to
// an earlier script only.
func (s Script) Goose() (string, error) {
	if s.After > 0 {
		return s.text(true, s.up, refuse)
	}
	return s.text(true, s.up, s.down)
}

func refuse(w *scriptWriter) error {
	w.statement(`DO $$ BEGIN RAISE EXCEPTION 'authfence: for an earlier mapping, run what migrate sql --after prints for it'; END $$`)
	return nil
}

func (s Script) text(goose bool, sections ...func(*scriptWriter) error) (string, error) {
	if err := s.Validate(); err != nil {
		return "", err
	}
	w := &scriptWriter{goose: goose}
	w.comment("Made by authfence %s: the change log and the triggers of this mapping:", s.Release)
	for _, kind := range watch.Kinds() {
		p, err := newPlan(s.Watch, kind)
		if err != nil {
			return "", err
		}
		w.comment("  %s %s", kind, p.mapping) // JSON: it has no line breaks
	}
	w.comment("Run it in one transaction, as the owner of the watched tables; then: authfence doctor.")
	w.comment("It brings the database to file %d: for the next mapping or release, authfence migrate sql --after %[1]d.", Newest())
	for i, section := range sections {
		if goose {
			w.b.WriteString("\n-- +goose " + []string{"Up", "Down"}[i] + "\n")
		}
		// The transaction is the caller's, and what it waits for, writers wait for.
		w.statement("-- It fails rather than hold up writers: run it again, or wait longer.\nSET LOCAL lock_timeout = '500ms'")
		if err := section(w); err != nil {
			return "", err
		}
	}
	return w.b.String(), nil
}

func (s Script) up(w *scriptWriter) error {
	if s.After == 0 {
		w.statement("CREATE SCHEMA authfence")
	}
	if err := s.numbered(w, changeLogFiles, "sql", changeLogVersions, s.After); err != nil {
		return err
	}
	if s.ReferenceSchema {
		if err := s.numbered(w, referenceFiles, "reference", referenceVersions, 0); err != nil {
			return err
		}
	}
	var plans []plan
	var tables []string
	for _, kind := range watch.Kinds() {
		p, err := newPlan(s.Watch, kind)
		if err != nil {
			return err
		}
		plans, tables = append(plans, p), append(tables, p.values.Table)
	}
	w.statement("LOCK TABLE " + strings.Join(tables, ", ") + " IN SHARE ROW EXCLUSIVE MODE")
	for _, p := range plans {
		w.statement(p.script(s.After > 0)...)
	}
	if s.Roles {
		for _, role := range roles(s.UsageRole) {
			w.statement(createRole(role))
		}
		if s.After > 0 {
			w.statement(executeEach(revocations))
		}
		statements, err := grants(s.Watch, s.UsageRole)
		if err != nil {
			return err
		}
		w.statement(statements...)
	}
	return nil
}

// numbered writes the files after one, and notes them as goose does, whose table Up and Status read.
func (s Script) numbered(w *scriptWriter, files fs.FS, dir, versions string, after int64) error {
	numbered, err := numberedFiles(files, dir)
	if err != nil {
		return err
	}
	if after == 0 {
		w.statement(`CREATE TABLE `+versions+` (
    id         integer   PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY,
    version_id bigint    NOT NULL,
    is_applied boolean   NOT NULL,
    tstamp     timestamp NOT NULL DEFAULT now()
)`, noteVersion(versions, 0))
	}
	for _, file := range numbered {
		if file.number > after {
			up, _ := file.sections()
			w.file(file.name, up)
			w.statement(noteVersion(versions, file.number))
		}
	}
	return nil
}

func noteVersion(versions string, number int64) string {
	return fmt.Sprintf("INSERT INTO %s (version_id, is_applied) VALUES (%d, true)", versions, number)
}

func (s Script) down(w *scriptWriter) error {
	for _, kind := range watch.Kinds() {
		w.statement(executeEach(dropTriggers(kind, "")), dropFunctions(kind))
	}
	w.statement(executeEach(revocations))
	for _, role := range roleNames {
		w.statement(fmt.Sprintf(`DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles r WHERE r.rolname = '%[1]s' AND %[2]s AND NOT %[3]s) THEN
        DROP ROLE %[1]s;
    END IF;
END $$`, role, roleOurs, roleNeeded))
	}
	sets := []struct {
		files fs.FS
		dir   string
	}{{changeLogFiles, "sql"}}
	if s.ReferenceSchema {
		sets = slices.Insert(sets, 0, struct {
			files fs.FS
			dir   string
		}{referenceFiles, "reference"})
	}
	for _, set := range sets {
		numbered, err := numberedFiles(set.files, set.dir)
		if err != nil {
			return err
		}
		for _, file := range slices.Backward(numbered) {
			_, down := file.sections()
			w.file(file.name, down)
		}
	}
	w.statement(fmt.Sprintf("DROP TABLE IF EXISTS %s, %s", changeLogVersions, referenceVersions), "DROP SCHEMA authfence")
	return nil
}

// script are the statements that install a kind. What Up learns from the catalog before, they ask themselves.
func (p plan) script(replaces bool) []string {
	of := p
	of.onlyOf()
	rows, rowsOf := p.rows(), of.rows() // of four statements, the second makes the trigger for updates
	relevant := make([]string, len(p.relevant))
	for i, column := range p.relevant {
		relevant[i] = watch.Literal(column)
	}
	ours := fmt.Sprintf("kind = '%s'", p.kind)
	statements := slices.Concat(p.functions(), []string{
		fmt.Sprintf(`INSERT INTO authfence.watched (kind, schema_name, table_name, relevant, functions, mapping)
VALUES ('%[1]s', %[2]s, %[3]s, ARRAY[%[4]s], authfence.function_hash('%[1]s'), %[5]s)
ON CONFLICT (kind) DO UPDATE SET schema_name = excluded.schema_name, table_name = excluded.table_name,
    relevant = excluded.relevant, functions = excluded.functions, mapping = excluded.mapping, installed_at = now()`,
			p.kind, watch.Literal(p.name.Schema), watch.Literal(p.name.Table), strings.Join(relevant, ", "), watch.Literal(p.mapping)),
		rows[0],
		// A BEFORE trigger may change columns that no statement names.
		fmt.Sprintf(`DO $authfence_do$ BEGIN
    IF EXISTS (SELECT FROM authfence.before_update_triggers() b JOIN authfence.watched_relations() r ON r.oid = b.tgrelid WHERE r.%s) THEN
%s;
    ELSE
%s;
    END IF;
END $authfence_do$`, ours, rows[1], rowsOf[1]),
	}, rows[2:], p.truncate(p.values.Table))
	for _, statement := range p.truncate("%s") {
		statements = append(statements, executeEach(fmt.Sprintf(`SELECT pg_catalog.format(%s, r.oid::pg_catalog.regclass)
FROM authfence.watched_relations() r WHERE r.%s AND r.is_partition`, watch.Literal(statement), ours)))
	}
	if replaces {
		statements = append(statements, executeEach(dropTriggers(p.kind, fmt.Sprintf(
			` AND NOT (t.tgname IN ('%s') AND t.tgrelid IN (SELECT oid FROM authfence.watched_relations() WHERE %s))`,
			strings.Join(p.triggers(), "', '"), ours))))
	}
	return append(statements, p.wide()...)
}

// dropTriggers reads the statements that drop triggers of a kind, wherever they stand.
func dropTriggers(kind, which string) string {
	return fmt.Sprintf(`SELECT pg_catalog.format('DROP TRIGGER %%I ON %%s', t.tgname, t.tgrelid::pg_catalog.regclass)
FROM pg_catalog.pg_trigger t
WHERE t.tgfoid = pg_catalog.to_regproc('authfence.log_%s')::pg_catalog.oid AND t.tgparentid = 0%s`, kind, which)
}

// executeEach runs the statements that a query reads.
func executeEach(query string) string {
	return `DO $authfence_do$ DECLARE statement pg_catalog.text; BEGIN
FOR statement IN ` + query + `
LOOP
    EXECUTE statement;
END LOOP;
END $authfence_do$`
}

// scriptWriter writes statements, with goose's annotations if it is for goose.
type scriptWriter struct {
	goose bool
	b     strings.Builder
}

func (w *scriptWriter) comment(format string, args ...any) {
	fmt.Fprintf(&w.b, "-- "+format+"\n", args...)
}

func (w *scriptWriter) statement(statements ...string) {
	for _, statement := range statements {
		text := statement + ";\n"
		if w.goose && strings.Contains(statement, ";") {
			text = "-- +goose StatementBegin\n" + text + "-- +goose StatementEnd\n"
		}
		w.b.WriteString("\n" + text)
	}
}

// file writes a part of a numbered file, which has goose's annotations.
func (w *scriptWriter) file(name, text string) {
	w.b.WriteString("\n-- " + name + "\n")
	for line := range strings.Lines(text) {
		if w.goose || !strings.HasPrefix(line, "-- +goose ") {
			w.b.WriteString(line)
		}
	}
}

// sections are what the file does and what undoes it.
func (f numberedFile) sections() (up, down string) {
	up, down, _ = strings.Cut(f.text, "-- +goose Down\n")
	return strings.TrimSpace(strings.TrimPrefix(up, "-- +goose Up\n")) + "\n", strings.TrimSpace(down) + "\n"
}
