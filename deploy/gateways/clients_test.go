package gateways

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/authfence/authfence/gateway"
)

// raw sends bytes over a connection of their own, and reads as many answers, fewer if the proxy hangs up.
func (s *site) raw(answers int, text string) (all []answer) {
	s.t.Helper()
	conn, err := net.DialTimeout("tcp", s.web, patience)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, text); err != nil {
		s.t.Fatal(err)
	}
	in := newReader(conn)
	for range answers {
		got, err := read(in, "")
		if err != nil {
			return all
		}
		all = append(all, got)
	}
	return all
}

// wantIdentity: the node was told what the sidecar said, once and in no other spelling, and nothing that it did not say.
// Without an id, it was told nothing.
func wantIdentity(t testing.TB, got answer, id string) {
	t.Helper()
	told := make(map[string][]string)
	for header, values := range got.Identity {
		told[ours(header)] = append(told[ours(header)], values...)
	}
	for _, header := range gateway.Identity() {
		said := id != "" && header != "X-Authfence-Expires-At" && header != "X-Authfence-Stale"
		values := told[header]
		switch header {
		case "X-Authfence-Key-Id":
			if said && !slices.Equal(values, []string{id}) {
				t.Errorf("the node saw %s %q, want %q", header, values, id)
			}
		default:
			if said && (len(values) != 1 || strings.Contains(values[0], "liar")) {
				t.Errorf("the node saw %s %q", header, values)
			}
		}
		if !said && len(values) > 0 {
			t.Errorf("the node saw %s %q, which nobody said", header, values)
		}
	}
}

// What clients try is tried on one site.
func TestGateway_IsNotTalkedInto(t *testing.T) {
	forEach(t, func(t *testing.T, s *site) {
		id, _, token := s.key(true)
		for _, attempt := range []struct {
			name string
			try  func(t *testing.T, s *site, id, token string)
		}{
			{"AnotherSpelling", anotherSpelling}, {"LosingIdentity", losingIdentity},
			{"AnothersConnection", anothersConnection}, {"AnotherPath", anotherPath},
		} {
			t.Run(attempt.name, func(t *testing.T) {
				whole := s.t
				s.t = t
				defer func() { s.t = whole }()
				attempt.try(t, s, id, token)
			})
		}
	})
}

// anotherSpelling: every header, in every spelling that some server takes for it.
func anotherSpelling(t *testing.T, s *site, id, token string) {
	var lies []string
	for _, header := range gateway.Identity() {
		last := strings.LastIndex(header, "-")
		for _, name := range []string{
			header, strings.ToLower(header), strings.ToUpper(header),
			strings.ReplaceAll(header, "-", "_"), strings.ReplaceAll(header, "-", "."),
			strings.Replace(header, "-", "_", 1), strings.Replace(header, "-", ".", 1),
			header[:last] + "_" + header[last+1:], header[:last] + "." + header[last+1:], // X-Authfence-Key_Id
			"X-Authfence_" + header[len("X-Authfence-"):], "x-authfence." + header[len("X-Authfence-"):],
		} {
			lies = append(lies, name+": liar")
		}
		lies = append(lies, header+": liar\r\n"+header+": liar", header+":", header+":\tliar", header+" : liar",
			"X-Filler: 1\r\n "+header+": liar", "X-Filler: 1\n"+header+": liar", "X-Filler: 1\r"+header+": liar",
			header+": liar\r\nX-Long: "+strings.Repeat("a", 7000))
	}
	for _, lie := range lies {
		for path, want := range map[string]string{"/": id, "/v1/invoices": id, "/health": ""} {
			got := s.raw(1, "GET "+path+" HTTP/1.1\r\nHost: api.example\r\n"+lie+"\r\n"+bearer(token)+"\r\nConnection: close\r\n\r\n")
			switch {
			case len(got) == 1 && got[0].status == http.StatusBadRequest: // no HTTP
			case len(got) == 1 && got[0].status == http.StatusOK:
				wantIdentity(t, got[0], want)
			default:
				t.Errorf("%+v", got)
			}
			if t.Failed() {
				t.Fatalf("%s with %q", path, lie)
			}
		}
	}
}

// losingIdentity: what is named in Connection ends at the next hop. To a node that is nobody's request.
func losingIdentity(t *testing.T, s *site, id, token string) {
	all := strings.Join(gateway.Identity(), ", ")
	for _, lines := range []string{
		"Connection: " + all + ", close", "Connection: close\r\nConnection: " + strings.ToLower(all), "Connection: close, X-AUTHFENCE-KEY-ID",
		"Connection: close\r\nProxy-Connection: " + all, "Connection: close\r\nKeep-Alive: X-Authfence-Key-Id\r\nTE: trailers",
		"Connection: Upgrade, X-Authfence-Key-Id\r\nUpgrade: websocket", "Connection: close\r\nTrailer: X-Authfence-Key-Id",
	} {
		got := s.raw(1, "GET / HTTP/1.1\r\nHost: api.example\r\n"+bearer(token)+"\r\n"+lines+"\r\n\r\n")
		switch {
		case len(got) == 1 && got[0].status == http.StatusBadRequest:
		case len(got) == 1 && got[0].status == http.StatusOK:
			wantIdentity(t, got[0], id)
		default:
			t.Errorf("%+v", got)
		}
		if t.Failed() {
			t.Fatalf("by %q", lines)
		}
	}
}

// anothersConnection: of requests on one connection none inherits from another, and no body becomes a request.
func anothersConnection(t *testing.T, s *site, id, token string) {
	other, _, otherToken := s.key(true)
	request := func(method, path, lines, body string) string {
		if body != "" {
			lines += fmt.Sprintf("Content-Length: %d\r\n", len(body))
		}
		return method + " " + path + " HTTP/1.1\r\nHost: api.example\r\n" + lines + "\r\n" + body
	}
	hidden := request("GET", "/", "X-Authfence-Key-Id: liar\r\n", "")
	got := s.raw(6, request("GET", "/", bearer(token)+"\r\n", "")+
		request("GET", "/", "", "")+
		request("GET", "/health", "", "")+
		request("GET", "/", bearer(otherToken)+"\r\n", "")+
		request("POST", "/v1/invoices", bearer(token)+"\r\n", hidden)+
		request("GET", "/v1/invoices", "Connection: close\r\n", ""))
	var statuses []int
	for _, one := range got {
		statuses = append(statuses, one.status)
	}
	if want := []int{200, 401, 200, 200, 200, 401}; !slices.Equal(statuses, want) {
		t.Fatalf("%v, want %v", statuses, want)
	}
	for i, want := range map[int]string{0: id, 2: "", 3: other, 4: id} {
		wantIdentity(t, got[i], want)
	}
	if got[4].Body != hidden {
		t.Errorf("the body came as %q", got[4].Body)
	}
	// Two lengths: what is hidden behind either is a body, or a request without a key.
	for _, lengths := range []string{
		"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
		"Content-Length: 5\r\nTransfer-Encoding : chunked\r\n", "Content-Length: 5\r\nContent-Length: 6\r\n",
		"Transfer_Encoding: chunked\r\nContent-Length: 5\r\n", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
	} {
		got := s.raw(2, request("POST", "/health", lengths, "")+"0\r\n\r\n"+request("GET", "/", "X-Authfence-Key-Id: liar\r\nConnection: close\r\n", ""))
		if len(got) == 2 && got[1].status == http.StatusOK {
			t.Errorf("%q: a request without a key passed: %+v", lengths, got[1])
		}
		for _, one := range got {
			wantIdentity(t, one, "")
		}
	}
}

// anotherPath: one that a node might read in another way than the proxy did, and so under another demand.
func anotherPath(t *testing.T, s *site, _, token string) {
	_, _, poor := s.key(false)
	for target, want := range map[string]int{
		"/v1/invoices": 403, "/v1/invoices/7?a=b": 403, "/v1/%69nvoices": 403, "/v1/invoices?resource=a&action=b": 403,
		"//v1/invoices": 400, "/v1//invoices": 400, "/v1/a/../invoices": 400, "/v1/a/%2e%2E/invoices": 400, "/v1/invoices/..": 400,
		"/v1/a/..%2finvoices": 400, "/v1%2Finvoices": 400, "/v1/./invoices": 400, `/v1/a\..\invoices`: 400, "/v1/a/..%5cinvoices": 400,
		"/v1;a/invoices": 400, "/v1/a/..;/invoices": 400, "/v1/invoices/../../health": 400, "/v1%3B/invoices": 400,
		"/v1/plans?next=/a/../b//c%2f;d": 200, "/.well-known/a..b": 200, "/v1/a%20b": 200,
	} {
		got := s.raw(1, "GET "+target+" HTTP/1.1\r\nHost: api.example\r\n"+bearer(poor)+"\r\nConnection: close\r\n\r\n")
		if len(got) != 1 || got[0].status != want {
			t.Errorf("%s: %+v, want %d", target, got, want)
		}
	}
}
