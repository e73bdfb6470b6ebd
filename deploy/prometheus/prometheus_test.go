// Package prometheus_test has the real Prometheus read the files beside it and
// of ../grafana, and scrape a real listener and a real sidecar.
package prometheus_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/internal/testenv/machine"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

const patience = 2 * time.Minute

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

func needPrometheus(t *testing.T) {
	t.Helper()
	if err := machine.FindExtra(t.Context(), "prometheus"); err != nil {
		t.Fatal(err)
	}
}

func TestFiles_PromtoolAcceptsThem(t *testing.T) {
	needPrometheus(t)
	for _, args := range [][]string{
		{"check", "config", "prometheus.yml"},
		{"check", "rules", "alerts.yml"},
		{"test", "rules", "alerts_test.yml"},
	} {
		if out, err := exec.CommandContext(t.Context(), "promtool", args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// alert is a rule of alerts.yml.
type alert struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

func alerts(t *testing.T) (all []alert) {
	t.Helper()
	var file struct {
		Groups []struct {
			Rules []alert `yaml:"rules"`
		} `yaml:"groups"`
	}
	readYAML(t, "alerts.yml", &file)
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) == 0 {
		t.Fatal("alerts.yml has no rules")
	}
	return all
}

func readYAML(t *testing.T, name string, into any) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err == nil {
		err = yaml.Unmarshal(text, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// Each alert says what to do, and has a test that it fires and one that it does not.
func TestAlerts_EachIsTestedBothWaysAndSaysWhatToDo(t *testing.T) {
	var file struct {
		Tests []struct {
			Name string `yaml:"name"`
		} `yaml:"tests"`
	}
	readYAML(t, "alerts_test.yml", &file)
	var names []string
	for _, c := range file.Tests {
		names = append(names, c.Name)
	}
	for _, a := range alerts(t) {
		for _, way := range []string{" fires", " is quiet"} {
			if !slices.Contains(names, a.Alert+way) {
				t.Errorf("alerts_test.yml has no test %q", a.Alert+way)
			}
		}
		if s := a.Labels["severity"]; s != "page" && s != "ticket" {
			t.Errorf("%s: severity is %q", a.Alert, s)
		}
		if len(a.Annotations["summary"]) == 0 || len(a.Annotations["description"]) < 40 {
			t.Errorf("%s says neither what is the matter nor what to do: %v", a.Alert, a.Annotations)
		}
		if _, err := os.Stat(filepath.Join("../..", a.Annotations["runbook"])); a.Annotations["runbook"] == "" || err != nil {
			t.Errorf("%s: runbook %q: %v", a.Alert, a.Annotations["runbook"], err)
		}
	}
}

// panels are the expressions of the dashboard.
func panels(t *testing.T) (exprs []string) {
	t.Helper()
	text, err := os.ReadFile("../grafana/dashboards/authfence.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		UID    string `json:"uid"`
		Panels []struct {
			Title   string `json:"title"`
			Type    string `json:"type"`
			Targets []struct {
				Expr string `json:"expr"`
			} `json:"targets"`
		} `json:"panels"`
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, p := range dashboard.Panels {
		if p.Title == "" || p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q of type %q shows nothing", p.Title, p.Type)
		}
		for _, target := range p.Targets {
			exprs = append(exprs, strings.ReplaceAll(target.Expr, "$__rate_interval", "1m"))
		}
	}
	if dashboard.UID == "" || len(exprs) < 20 {
		t.Fatalf("dashboard %q with %d expressions", dashboard.UID, len(exprs))
	}
	return exprs
}

// system is a listener, a sidecar, and a Prometheus that scrapes both by the
// files beside this one.
type system struct {
	t   *testing.T
	db  *pgx.Conn
	url string // of Prometheus
}

func newSystem(t *testing.T) *system {
	t.Helper()
	needPrometheus(t)
	dir := t.TempDir()
	database := testenv.Database(t)
	if err := migrations.Up(t.Context(), database, migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true}); err != nil {
		t.Fatal(err)
	}
	db, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close(context.Background()) })
	s := &system{t: t, db: db}
	env := append(os.Environ(), "AUTHFENCE_CONFIG="+os.DevNull, "AUTHFENCE_POSTGRES_URL="+database,
		"AUTHFENCE_NATS_URL="+testenv.NATS(t, testenv.NATSOptions{}).URL(), "AUTHFENCE_REDIS_URL="+testenv.Redis(t).URL(),
		"AUTHFENCE_SEAL_KEYS=k1:"+base64.StdEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef")))
	authfence := func(args ...string) (address string) {
		cmd := exec.Command(testenv.Program(t, "./cmd/authfence"), append(args, "--health=127.0.0.1:0", "--announce")...)
		cmd.Env = env
		_, out := testenv.Spawn(t, cmd)
		s.eventually(args[0]+" announces its address", func() bool {
			if said := announced.FindStringSubmatch(out.String()); said != nil {
				address = said[1]
			}
			return address != ""
		})
		return address
	}
	listener := authfence("listen")
	node := authfence("invalidate", "--name=node-1", "--http=unix:"+filepath.Join(dir, "s"))
	s.url = s.prometheus(dir, map[string]string{"authfence-listener": listener, "authfence-node": node})
	return s
}

// prometheus starts one on the files beside this one, but for the targets and the intervals.
func (s *system) prometheus(dir string, targets map[string]string) (address string) {
	var config struct {
		Global  map[string]any   `yaml:"global"`
		Rules   []string         `yaml:"rule_files"`
		Scrapes []map[string]any `yaml:"scrape_configs"`
	}
	readYAML(s.t, "prometheus.yml", &config)
	config.Global["scrape_interval"], config.Global["evaluation_interval"] = "200ms", "200ms"
	for i, rules := range config.Rules {
		path, err := filepath.Abs(rules)
		if err != nil {
			s.t.Fatal(err)
		}
		config.Rules[i] = path
	}
	for _, scrape := range config.Scrapes {
		target := targets[scrape["job_name"].(string)]
		if target == "" {
			s.t.Fatalf("prometheus.yml scrapes %v, which this test does not know", scrape["job_name"])
		}
		scrape["static_configs"] = []map[string]any{{"targets": []string{target}}}
	}
	text, err := yaml.Marshal(map[string]any{"global": config.Global, "rule_files": config.Rules, "scrape_configs": config.Scrapes})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "prometheus.yml"), text, 0o600)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	port, err := testenv.TakePort()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = port.Close() })
	address = net.JoinHostPort("127.0.0.1", strconv.Itoa(port.Number()))
	testenv.Spawn(s.t, exec.Command("prometheus", "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "tsdb"), "--web.listen-address="+address))
	return "http://" + address
}

func (s *system) eventually(what string, ok func() bool) {
	s.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// api asks Prometheus's HTTP API; an error until it answers with success.
func (s *system) api(path string, query url.Values, data any) error {
	request, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.url+path+"?"+query.Encode(), http.NoBody)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	answer := struct {
		Status string `json:"status"`
		Error  string `json:"error"`
		Data   any    `json:"data"`
	}{Data: data}
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("%s: %q: %w", response.Status, body, err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", answer.Status, answer.Error)
	}
	return nil
}

// value is that of the one sample that an expression has.
func (s *system) value(expr string) (float64, error) {
	var data struct {
		Result []struct {
			Value [2]any `json:"value"`
		} `json:"result"`
	}
	if err := s.api("/api/v1/query", url.Values{"query": {expr}}, &data); err != nil {
		return 0, err
	}
	if len(data.Result) != 1 {
		return 0, fmt.Errorf("%s: %d samples", expr, len(data.Result))
	}
	text, _ := data.Result[0].Value[1].(string)
	return strconv.ParseFloat(text, 64)
}

func (s *system) eventuallyIs(expr string) {
	s.t.Helper()
	var last error
	s.eventually(expr, func() bool {
		v, err := s.value(expr + " or vector(-1)")
		if fmt.Sprint(err) != fmt.Sprint(last) && err != nil {
			s.t.Log(err)
		}
		last = err
		return err == nil && v == 1
	})
}

// rules are the states of the alerts, by their names; with the errors of those
// that cannot be evaluated.
func (s *system) rules() map[string]string {
	s.t.Helper()
	var data struct {
		Groups []struct {
			Rules []struct {
				Name   string `json:"name"`
				State  string `json:"state"`
				Health string `json:"health"`
				Error  string `json:"lastError"`
			} `json:"rules"`
		} `json:"groups"`
	}
	if err := s.api("/api/v1/rules", nil, &data); err != nil {
		s.t.Fatal(err)
	}
	states := make(map[string]string)
	for _, g := range data.Groups {
		for _, r := range g.Rules {
			states[r.Name] = r.State
			if r.Health != "ok" {
				states[r.Name] = r.Health + ": " + r.Error
			}
		}
	}
	return states
}

var announced = regexp.MustCompile(`(?m)^http://(\S+)$`)

var ours = regexp.MustCompile(`authfence_[a-z0-9_]+`)

// A real Prometheus scrapes a real listener and a real node: everything that the
// alerts and the dashboard name is there, a change is seen, and a trigger that
// somebody disables is an alarm.
func TestPrometheus_SeesTheSystem(t *testing.T) {
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	s := newSystem(t)
	s.eventually("Prometheus answers", func() bool { return s.api("/api/v1/query", url.Values{"query": {"1"}}, nil) == nil })
	s.eventuallyIs(`count(up == 1) == bool 2`)
	s.eventuallyIs(`sum(authfence_listener_role{role="leader"})`)
	s.eventuallyIs(`sum(authfence_node_state{state="fresh"})`)

	var names []string
	if err := s.api("/api/v1/label/__name__/values", nil, &names); err != nil {
		t.Fatal(err)
	}
	exprs := panels(t)
	for _, a := range alerts(t) {
		exprs = append(exprs, a.Expr)
	}
	for _, expr := range exprs {
		for _, name := range ours.FindAllString(expr, -1) {
			if !slices.Contains(names, name) {
				t.Errorf("%s names %s, which nobody exports", expr, name)
			}
		}
		if err := s.api("/api/v1/query", url.Values{"query": {expr}}, nil); err != nil {
			t.Errorf("%s: %v", expr, err)
		}
	}

	if _, err := s.db.Exec(t.Context(), `INSERT INTO organizations (name) VALUES ('acme')`); err != nil {
		t.Fatal(err)
	}
	if _, err := s.db.Exec(t.Context(), `UPDATE organizations SET name = 'acme 2'`); err != nil {
		t.Fatal(err)
	}
	s.eventuallyIs(`(sum(authfence_listener_changes_total) > bool 0) * (sum(authfence_node_commit_to_applied_seconds_count) > bool 0)`)

	s.eventually("all alerts were evaluated", func() bool {
		rules := s.rules()
		return len(rules) == len(alerts(t)) && !slices.ContainsFunc(alerts(t), func(a alert) bool { return rules[a.Alert] != "inactive" })
	})
	if _, err := s.db.Exec(t.Context(), `ALTER TABLE api_keys DISABLE TRIGGER authfence_api_key_update`); err != nil {
		t.Fatal(err)
	}
	s.eventually("the alert of the triggers fires", func() bool { return s.rules()["AuthfenceTriggersBroken"] == "firing" })
	if _, err := s.db.Exec(t.Context(), `ALTER TABLE api_keys ENABLE ALWAYS TRIGGER authfence_api_key_update`); err != nil {
		t.Fatal(err)
	}
	s.eventually("and is over", func() bool { return s.rules()["AuthfenceTriggersBroken"] == "inactive" })
}
