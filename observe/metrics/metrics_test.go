package metrics_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/invalidator"
	"github.com/authfence/authfence/listener"
	"github.com/authfence/authfence/observe/metrics"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

var write = flag.Bool("write", false, "write the tables of docs/metrics.md")

const document = "../../docs/metrics.md"

// families are all that a listener and a node may export.
func families(t *testing.T) (ofListener, ofNode []*dto.MetricFamily) {
	t.Helper()
	gather := func(c prometheus.Collector) []*dto.MetricFamily {
		registry := prometheus.NewPedanticRegistry()
		registry.MustRegister(c)
		found, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		problems, err := testutil.GatherAndLint(registry)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range problems {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
		return found
	}
	return gather(metrics.Listener(func() listener.Status { return listener.Status{} })),
		gather(metrics.Node(func() authlib.Status { return authlib.Status{Unlink: &invalidator.UnlinkStats{}} }))
}

func table(found []*dto.MetricFamily) string {
	var b strings.Builder
	b.WriteString("| metric | type | labels | meaning |\n|---|---|---|---|\n")
	for _, f := range found {
		labels := make(map[string][]string)
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = append(labels[l.GetName()], "`"+l.GetValue()+"`")
			}
		}
		var said []string
		for name, values := range labels {
			slices.Sort(values)
			said = append(said, "`"+name+"`: "+strings.Join(values, ", "))
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()), strings.Join(said, "; "), f.GetHelp())
	}
	return b.String()
}

// The tables of docs/metrics.md are what is exported, both ways.
func TestDocs_AreWhatIsExported(t *testing.T) {
	ofListener, ofNode := families(t)
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	got := string(text)
	for name, want := range map[string]string{"listener": table(ofListener), "node": table(ofNode)} {
		begin, end := "<!-- "+name+" -->\n", "<!-- end -->\n"
		before, rest, ok := strings.Cut(got, begin)
		is, after, ended := strings.Cut(rest, end)
		if !ok || !ended {
			t.Fatalf("%s has no table between %q and %q", document, begin, end)
		}
		if is != want {
			if !*write {
				t.Errorf("the table of the %s is not what is exported: go test ./observe/metrics -write", name)
			}
			got = before + begin + want + end + after
		}
	}
	if *write {
		if err := os.WriteFile(document, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A label's values are few, and never a name or an id.
func TestLabels_AreOfSmallClosedSets(t *testing.T) {
	ofListener, ofNode := families(t)
	for _, f := range append(ofListener, ofNode...) {
		if n := len(f.GetMetric()); n == 0 || n > 8 {
			t.Errorf("%s has %d samples", f.GetName(), n)
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if !slices.Contains([]string{"role", "reason", "state", "result", "source", "kind", "rule"}, l.GetName()) {
					t.Errorf("%s has label %s", f.GetName(), l.GetName())
				}
			}
		}
	}
}
