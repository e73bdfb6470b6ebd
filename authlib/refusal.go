package authlib

import (
	"errors"
	"math"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"time"

	"github.com/authfence/authfence/event"
)

// Refusal is an HTTP answer to a request that is not let through, as Middleware
// gives it: for handlers that authenticate by themselves.
type Refusal struct {
	Status     int
	Code       string        // RFC 6750's error code, or ours; goes into the body
	RetryAfter time.Duration // with 503
	Detail     string        // for the caller; may be empty
	Reason     string        // for the log: constant words, never the token

	challenge bool // the code goes into WWW-Authenticate too
}

// RefusalOf is the answer to an error of Authenticate. Unknown, revoked and
// expired give the same, but for the Reason.
func RefusalOf(err error) *Refusal {
	var out *UnavailableError
	switch {
	case errors.As(err, &out):
		return &Refusal{Status: http.StatusServiceUnavailable, Code: "temporarily_unavailable", RetryAfter: out.RetryAfter, Reason: "unavailable"}
	case errors.Is(err, ErrSuspended):
		return &Refusal{Status: http.StatusForbidden, Code: "organization_suspended", Reason: "organization is suspended"}
	case errors.Is(err, ErrUnknown), errors.Is(err, ErrRevoked), errors.Is(err, ErrExpired):
		// The log may tell them apart, the answer does not.
		return &Refusal{Status: http.StatusUnauthorized, Code: "invalid_token", challenge: true, Reason: err.Error()}
	}
	return &Refusal{Status: http.StatusServiceUnavailable, Code: "temporarily_unavailable", RetryAfter: defaultRetryAfter, Reason: "unavailable"}
}

// Write answers. realm goes into WWW-Authenticate; it may be empty.
func (f *Refusal) Write(w http.ResponseWriter, realm string) {
	f.SetHeader(w.Header(), realm)
	w.WriteHeader(f.Status)
	_, _ = w.Write([]byte(f.Body())) // #nosec G705 -- JSON, quoted, nosniff; if the caller went away there is nobody to tell
}

// SetHeader sets the headers of the answer, as Write does, for answers that do
// not go out over net/http.
func (f *Refusal) SetHeader(h http.Header, realm string) {
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	if f.Status == http.StatusUnauthorized || f.challenge {
		h.Set("WWW-Authenticate", f.wwwAuthenticate(realm))
	}
	if f.Status == http.StatusServiceUnavailable {
		seconds := max(1, int64(math.Ceil(f.RetryAfter.Seconds())))
		h.Set("Retry-After", strconv.FormatInt(seconds, 10))
	}
}

// Body is the JSON body of the answer.
func (f *Refusal) Body() string {
	body := `{"error":` + strconv.Quote(f.Code)
	if f.Detail != "" {
		body += `,"error_description":` + strconv.QuoteToASCII(f.Detail)
	}
	return body + "}\n"
}

// wwwAuthenticate is RFC 6750, section 3: no code where no token was given.
func (f *Refusal) wwwAuthenticate(realm string) string {
	var parts []string
	if realm != "" {
		parts = append(parts, `realm=`+quoted(realm))
	}
	if f.challenge {
		parts = append(parts, `error=`+quoted(f.Code))
	}
	if len(parts) == 0 {
		return "Bearer"
	}
	return "Bearer " + strings.Join(parts, ", ")
}

// quoted is a quoted-string of RFC 9110.
func quoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c >= ' ' && c < 0x7f:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// GrantMissing is the answer to a good key that may not do what it asks for.
func GrantMissing() *Refusal {
	return &Refusal{Status: http.StatusForbidden, Code: "insufficient_scope", challenge: true, Reason: "grant is missing"}
}

// TokenOf finds the one token of a request: in "Authorization: Bearer" or, bare,
// in the header of the name given, which may be empty for none.
func TokenOf(h http.Header, header string) (string, *Refusal) {
	authorization := h["Authorization"]
	var bare []string
	if header = textproto.CanonicalMIMEHeaderKey(header); header != "" && header != "Authorization" {
		bare = h[header]
	}
	switch {
	case len(authorization)+len(bare) > 1:
		return "", &Refusal{Status: http.StatusBadRequest, Code: "invalid_request", challenge: true, Reason: "more than one token"}
	case len(bare) == 1:
		token := strings.Trim(bare[0], " \t")
		if token == "" {
			return "", noToken()
		}
		return token, nil
	case len(authorization) == 0:
		return "", noToken()
	}
	token, err := BearerToken(authorization[0])
	switch {
	case errors.Is(err, ErrNotBearer):
		return "", noToken() // Basic, say: it is not for us, and no token was given
	case err != nil:
		return "", &Refusal{Status: http.StatusBadRequest, Code: "invalid_request", challenge: true, Reason: "malformed authorization header"}
	}
	return token, nil
}

func noToken() *Refusal {
	return &Refusal{Status: http.StatusUnauthorized, Code: "unauthorized", Reason: "no token"}
}

// ErrNotBearer is returned by BearerToken for another scheme, Basic say: then no
// bearer token was given.
var ErrNotBearer = errors.New("authorization is not of the scheme Bearer")

var errBearer = errors.New("malformed bearer token")

// BearerToken takes the token out of the value of an Authorization header. Its
// error never repeats any of it.
func BearerToken(value string) (string, error) {
	value = strings.Trim(value, " \t")
	scheme, token, _ := strings.Cut(value, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", ErrNotBearer
	}
	token = strings.TrimLeft(token, " ")
	if token == "" {
		return "", errBearer
	}
	for i := range len(token) {
		// RFC 6750's b64token is narrower, but existing keys are not all of it.
		if c := token[i]; c <= ' ' || c == ',' || c == 0x7f {
			return "", errBearer
		}
	}
	return token, nil
}

// AtLeastOf reads HeaderAtLeast; the zero mark stands for none.
func AtLeastOf(h http.Header) (event.Mark, *Refusal) {
	values := h[HeaderAtLeast]
	problem := ""
	switch len(values) {
	case 0:
		return event.Mark{}, nil
	case 1:
		mark, err := event.ParseMark(strings.Trim(values[0], " \t"))
		if err == nil {
			return mark, nil
		}
		// The value is not repeated: somebody may have put a token there.
		problem = "want epoch/position, for instance b1946ac92492d234/7-42"
	default:
		problem = "is there twice"
	}
	return event.Mark{}, &Refusal{
		Status: http.StatusBadRequest, Code: "invalid_request",
		Reason: "malformed position", Detail: "header " + HeaderAtLeast + ": " + problem,
	}
}
