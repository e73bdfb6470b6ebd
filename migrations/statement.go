package migrations

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"text/template"

	"github.com/authfence/authfence/watch"
	"github.com/jackc/pgx/v5"
)

//go:embed trigger.sql.tmpl
var triggerText string

var triggerTemplates = template.Must(template.New("trigger").Parse(triggerText))

// longestRef, in bytes, is the longest ref that is named; a longer one makes the change a wide one. SHA-256 takes 64.
const longestRef = 512

// plan is what a kind's mapping installs.
type plan struct {
	kind     string
	name     watch.Name
	relevant []string // sorted by bytes, as trigger_check sorts
	values   values
	// mapping describes the plan, for a person and for comparison with what is installed.
	mapping string
}

// values fill the templates; all are quoted or are our own constants.
type values struct {
	Kind, Table, Old, New, OldRef, NewRef string
	Of                                    string // columns of UPDATE OF; empty: any UPDATE, as it must be beside a BEFORE trigger
	Threshold, LongestRef                 int
	Notify                                bool
}

func newPlan(config watch.Config, kind string) (plan, error) {
	table := config.Of(kind)
	name, err := watch.ParseName(table.Table)
	if err != nil {
		return plan{}, fmt.Errorf("watch.%s.table: %w", kind, err)
	}
	relevant := slices.Clone(table.RelevantColumns())
	slices.Sort(relevant)
	p := plan{kind: kind, name: name, relevant: relevant, values: values{
		Kind: kind, Table: name.SQL(),
		Old: columnList("OLD", relevant), New: columnList("NEW", relevant),
		OldRef: refExpression("OLD", table), NewRef: refExpression("NEW", table),
		Threshold: config.Threshold(), LongestRef: longestRef, Notify: config.Notifies(),
	}}
	templates := sha256.Sum256([]byte(triggerText))
	mapping, err := json.Marshal(map[string]any{
		"table": name.String(), "ref": table.RefColumn(), "key_format": table.KeyFormat, "relevant": relevant,
		"wide_threshold": config.Threshold(), "notify": config.Notifies(), "templates": hex.EncodeToString(templates[:8]),
	})
	p.mapping = string(mapping)
	return p, err
}

// onlyOf makes the trigger for updates pass over statements that name no relevant column. Such a statement then costs
// what it costs without us; otherwise Postgres parses the WHEN clause for each (measured: 18 us).
func (p *plan) onlyOf() { p.values.Of = columnList("", p.relevant) }

func columnList(row string, columns []string) string {
	quoted := make([]string, len(columns))
	for i, column := range columns {
		quoted[i] = pgx.Identifier{column}.Sanitize()
		if row != "" {
			quoted[i] = row + "." + quoted[i]
		}
	}
	return strings.Join(quoted, ", ")
}

// refExpression is the ref of a row, in SQL. It must give what event.KeyRef gives for the token.
func refExpression(row string, table watch.Table) string {
	column := row + "." + pgx.Identifier{table.RefColumn()}.Sanitize()
	switch table.KeyFormat {
	case watch.SHA256Hex:
		return "lower(" + column + "::text)"
	case watch.SHA256Bytea:
		return "encode(" + column + ", 'hex')"
	case watch.Plaintext:
		return "encode(sha256(convert_to(" + column + "::text, 'UTF8')), 'hex')"
	default: // an organization
		return column + "::text"
	}
}

// functions are the statements that make the functions of the kind.
func (p plan) functions() []string { return render("functions", p.values) }

// rows are the statements that make the row triggers; on a partitioned table Postgres clones them.
func (p plan) rows() []string { return render("rows", p.values) }

// truncate are the statements that make the TRUNCATE trigger of one relation, the table or a partition, named in SQL.
func (p plan) truncate(relation string) []string {
	v := p.values
	v.Table = relation
	return render("truncate", v)
}

// wide are the statements that name every ref of the kind as changed.
func (p plan) wide() []string { return render("wide", p.values) }

// triggers are the names of the kind's triggers.
func (p plan) triggers() []string {
	return []string{"authfence_" + p.kind + "_row", "authfence_" + p.kind + "_update", "authfence_" + p.kind + "_truncate"}
}

func render(block string, v values) []string {
	var b bytes.Buffer
	if err := triggerTemplates.ExecuteTemplate(&b, block, v); err != nil {
		panic(fmt.Sprintf("migrations: template %s: %v", block, err)) // the template is a constant
	}
	return strings.Split(strings.TrimSpace(b.String()), "\n--;\n")
}

func dropFunctions(kind string) string {
	return fmt.Sprintf("DROP FUNCTION IF EXISTS authfence.log_%[1]s(), authfence.count_%[1]s()", kind)
}
