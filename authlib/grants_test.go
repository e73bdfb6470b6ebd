package authlib

import (
	"fmt"
	"strings"
	"testing"
)

func TestGrantsTable_SharesWhatIsAlike(t *testing.T) {
	var table grantsTable
	const document = `{"invoices": ["read", "write"]}`
	one, first := table.of(document)
	two, second := table.of(strings.Clone(document))
	if &one[0] != &two[0] || first.json != second.json {
		t.Error("two keys that grant the same have it twice")
	}
	if !second.Can("invoices", "write") || second.Can("invoices", "delete") || string(two) != document {
		t.Errorf("%s grants %s", two, second.JSON())
	}
	if _, other := table.of(`{"invoices": ["read"]}`); other.Can("invoices", "write") {
		t.Error("another document grants what the first does")
	}
	if document, none := table.of(""); document != nil || len(none.Resources()) != 0 {
		t.Error("no document grants something")
	}
}

func TestGrantsTable_HasABound(t *testing.T) {
	var table grantsTable
	for i := range 3 * grantsMost {
		document := fmt.Sprintf(`{"r%d": ["read"]}`, i)
		if _, p := table.of(document); !p.Can(fmt.Sprintf("r%d", i), "read") {
			t.Fatalf("%s grants %s", document, p.JSON())
		}
	}
	if n := len(table.all); n > grantsMost {
		t.Errorf("%d documents are kept", n)
	}
	table = grantsTable{}
	long := `{"` + strings.Repeat("x", grantsLongest) + `": ["read"]}`
	if _, p := table.of(long); len(p.Resources()) != 1 || len(table.all) != 0 {
		t.Errorf("a long document: %d resources, %d kept", len(p.Resources()), len(table.all))
	}
}
