package console_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/jackc/pgx/v5"

	"github.com/authfence/authfence/internal/testenv"
	"github.com/authfence/authfence/internal/testenv/machine"
	"github.com/authfence/authfence/migrations"
	"github.com/authfence/authfence/watch"
)

const patience = 2 * time.Minute

var screenshot = flag.String("screenshot", "", "write a picture of the page to this file")

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// site is a whole system of processes, with a console.
type site struct {
	t   *testing.T
	db  *pgx.Conn
	env []string
	url string // of the console
}

func newSite(t *testing.T) *site {
	t.Helper()
	database := testenv.Database(t)
	if err := migrations.Up(t.Context(), database, migrations.Options{Watch: watch.DefaultConfig(), ReferenceSchema: true}); err != nil {
		t.Fatal(err)
	}
	db, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close(context.Background()) })
	s := &site{t: t, db: db, env: append(os.Environ(), "AUTHFENCE_CONFIG="+os.DevNull, "AUTHFENCE_POSTGRES_URL="+database,
		"AUTHFENCE_NATS_URL="+testenv.NATS(t, testenv.NATSOptions{}).URL())}
	s.start("listen", "--name=listen-1", "--health=")
	_, out := s.start("console", "--listen=127.0.0.1:0")
	s.eventually("the console says where it is", func() bool {
		s.url = address.FindString(out.String())
		return s.url != ""
	})
	return s
}

var address = regexp.MustCompile(`http://127\.0\.0\.1:\d+/`)

// start runs a subcommand until the test ends.
func (s *site) start(args ...string) (*testenv.Child, *testenv.Output) {
	s.t.Helper()
	cmd := exec.Command(testenv.Program(s.t, "./cmd/authfence"), args...)
	cmd.Env = s.env
	return testenv.Spawn(s.t, cmd)
}

func (s *site) node(name string) *testenv.Child {
	s.t.Helper()
	child, _ := s.start("invalidate", "--name="+name, "--health=", "--http=unix:"+filepath.Join(s.t.TempDir(), "s"))
	return child
}

func (s *site) exec(sql string) {
	s.t.Helper()
	if _, err := s.db.Exec(s.t.Context(), sql); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) eventually(what string, ok func() bool) {
	s.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// page is the console's page in a real browser.
type page struct {
	*site
	ctx context.Context

	mu    sync.Mutex
	amiss []string // exceptions, and what the browser itself calls an error: what the policy refused, say
}

func (s *site) open() *page {
	s.t.Helper()
	if err := machine.FindExtra(s.t.Context(), "chromium"); err != nil {
		s.t.Fatal(err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(machine.Chromium(s.t.Context())),
		chromedp.UserDataDir(s.t.TempDir()), chromedp.WindowSize(1440, 960), chromedp.WSURLReadTimeout(patience))
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox) // Chromium has none for root
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	s.t.Cleanup(stop)
	ctx, cancel := chromedp.NewContext(allocator)
	s.t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // waits for the browser
		cancel()
	})
	p := &page{site: s, ctx: ctx}
	chromedp.ListenTarget(ctx, func(ev any) {
		p.mu.Lock()
		defer p.mu.Unlock()
		switch ev := ev.(type) {
		case *runtime.EventExceptionThrown:
			p.amiss = append(p.amiss, ev.ExceptionDetails.Error())
		case *log.EventEntryAdded:
			if ev.Entry.Level == log.LevelError {
				p.amiss = append(p.amiss, ev.Entry.Text+" "+ev.Entry.URL)
			}
		}
	})
	p.do(chromedp.Navigate(s.url))
	return p
}

func (p *page) do(actions ...chromedp.Action) {
	p.t.Helper()
	if err := chromedp.Run(p.ctx, actions...); err != nil {
		p.t.Fatal(err)
	}
}

// key is pressed without the character that follows of itself, as when the page has
// taken the key for its own.
func key(name string) chromedp.Action {
	return chromedp.Tasks{input.DispatchKeyEvent(input.KeyRawDown).WithKey(name), input.DispatchKeyEvent(input.KeyUp).WithKey(name)}
}

// eval is what an expression of the page comes to.
func eval[V any](p *page, expression string) (v V) {
	p.t.Helper()
	p.do(chromedp.Evaluate(expression, &v))
	return v
}

func (p *page) shows(what, expression string) {
	p.t.Helper()
	p.eventually(what, func() bool { return eval[bool](p, expression) })
}

func TestBrowser_SeesARevocationAndADeadNode(t *testing.T) {
	s := newSite(t)
	s.exec(`INSERT INTO organizations (id, name) VALUES ('01890000-0000-7000-8000-000000000001', 'acme')`)
	s.exec(`INSERT INTO api_keys (organization_id, key_hash, name) SELECT '01890000-0000-7000-8000-000000000001', sha256(n::text::bytea), 'key ' || n FROM generate_series(1, 40) n`)
	s.node("api-1")
	s.node("api-2")
	victim := s.node("api-3")
	p := s.open()
	p.shows("all nodes are fresh", `document.getElementById("state").textContent === "3 of 3 nodes fresh" && document.getElementById("state").classList.contains("good")`)
	p.shows("who leads", `document.getElementById("leader").textContent.startsWith("listen-1 leads term 1")`)

	// A revocation by SQL appears, and each node confirms it.
	s.exec(`UPDATE api_keys SET revoked_at = now() WHERE name = 'key 7'`)
	const first = `document.querySelector("#changes li:not(.notice)")`
	p.shows("the revocation, and that it is in force on each node", first+`?.querySelector(".what").textContent.startsWith("api_key update") &&
		[...`+first+`.querySelectorAll(".node")].map(n => n.textContent.split(" ")[0]).join() === "api-1,api-2,api-3"`)
	p.shows("how long it took", `document.querySelectorAll("#histogram rect").length > 10 && document.getElementById("quantiles").textContent.includes("half below")`)
	if *screenshot != "" {
		s.busy()
		p.picture(*screenshot)
	}

	// By keyboard: the filter, the list held still, light and dark.
	p.do(key("/"), chromedp.KeyEvent("no such thing"))
	p.shows("nothing passes the filter", `[...document.querySelectorAll("#changes li")].every(l => l.hidden) && document.getElementById("count").textContent.startsWith("0 of ")`)
	p.do(chromedp.KeyEvent(kb.Escape))
	p.shows("everything is back", `[...document.querySelectorAll("#changes li")].every(l => !l.hidden) && document.activeElement === document.body`)
	p.do(key("/"), chromedp.KeyEvent("update api-2"))
	p.shows("words of a change and of its nodes", `[...document.querySelectorAll("#changes li:not([hidden])")].length >= 1 &&
		[...document.querySelectorAll("#changes li:not([hidden])")].every(l => l.textContent.includes("update") && l.textContent.includes("api-2"))`)
	p.do(chromedp.KeyEvent(kb.Escape), key("p"))
	before := eval[int](p, `document.querySelectorAll("#changes li").length`)
	p.do(chromedp.Evaluate(`window.position = document.getElementById("leader").textContent`, nil))
	s.exec(`UPDATE organizations SET name = 'acme 2'`)
	// The leader's position is told behind the change, and is not held.
	p.shows("the leader is past it", `document.getElementById("leader").textContent !== window.position`)
	if now := eval[int](p, `document.querySelectorAll("#changes li").length`); now != before {
		t.Errorf("%d lines, then %d while the list is held still", before, now)
	}
	p.do(key("p"))
	p.shows("what came meanwhile", first+`.textContent.includes("organization update")`)
	paper := `getComputedStyle(document.body).backgroundColor`
	light := eval[string](p, paper)
	p.do(key("t"))
	if dark := eval[string](p, paper); dark == light {
		t.Errorf("light and dark are both %s", dark)
	}
	var order []string
	p.do(chromedp.Focus(".skip", chromedp.ByQuery))
	for range 5 {
		p.do(chromedp.KeyEvent(kb.Tab))
		order = append(order, eval[string](p, `document.activeElement.id || document.activeElement.className || document.activeElement.tagName`))
	}
	if got := strings.Join(order, " "); got != "theme scroll filter pause changes" {
		t.Errorf("Tab goes %s", got)
	}

	// Nothing sticks out, on a telephone as on a wall.
	for _, width := range []int64{360, 800, 1920} {
		p.do(emulation.SetDeviceMetricsOverride(width, 900, 1, width < 500))
		if got := eval[int](p, `document.documentElement.scrollWidth`); int64(got) > width {
			t.Errorf("at %d px the page is %d wide", width, got)
		}
	}

	// A node that dies turns, and is an alarm.
	if err := victim.Kill(); err != nil {
		t.Fatal(err)
	}
	p.shows("the dead node is silent", `document.querySelector('tr[data-name="api-3"] .tag').textContent === "silent"`)
	p.shows("and an alarm", `!document.getElementById("alarms").hidden && document.getElementById("alarms").textContent.includes("api-3 answers no more")`)
	p.shows("and the state", `document.getElementById("state").textContent === "2 of 2 nodes fresh" && !document.getElementById("state").classList.contains("good")`)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.amiss) > 0 {
		t.Errorf("the browser complains: %q", p.amiss)
	}
}

// busy has a few changes of each kind, for the picture.
func (s *site) busy() {
	s.t.Helper()
	for n := range 12 {
		s.exec(fmt.Sprintf(`UPDATE api_keys SET revoked_at = now() WHERE name = 'key %d'`, 10+n))
		time.Sleep(300 * time.Millisecond)
	}
	s.exec(`UPDATE organizations SET suspended_at = now()`)
	s.exec(`DELETE FROM api_keys WHERE name IN ('key 8', 'key 9')`)
	time.Sleep(3 * time.Second) // all nodes have told, and were asked
}

func (p *page) picture(path string) {
	p.t.Helper()
	var png []byte
	p.do(chromedp.CaptureScreenshot(&png))
	if err := os.WriteFile(path, png, 0o600); err != nil {
		p.t.Fatal(err)
	}
}
