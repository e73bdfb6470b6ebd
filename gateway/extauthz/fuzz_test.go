package extauthz_test

import (
	"slices"
	"strings"
	"testing"

	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/proto"
)

// FuzzCheck: whatever Envoy, or who else reaches the socket, sends, the answer is
// one that Envoy takes; only the one good token opens, and what the client says of
// who it is does not go on.
func FuzzCheck(f *testing.F) {
	for _, r := range []*auth.CheckRequest{
		{},
		checkOf(nil, "authorization", "Bearer good"),
		checkOf(map[string]string{"resource": "invoices", "action": "delete"}, "authorization", "Bearer good", "x-authfence-at-least", receipt),
		checkOf(map[string]string{"bypass": "true", "at_least": receipt}, "x-api-key", "good", "x_authfence_key_id", "forged"),
		rawCheckOf("authorization", "Bearer \xff", "X-Authfence-Key-Id", "forged"),
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	server := newServer(f, newKnown())
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &auth.CheckRequest{}
		if proto.Unmarshal(b, r) != nil {
			return // gRPC answers that
		}
		if holds(r, "slow") {
			return // it waits for a deadline that is not there
		}
		got, err := server.Check(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if err := got.ValidateAll(); err != nil {
			t.Errorf("Envoy would not take it: %v", err)
		}
		if _, err := proto.Marshal(got); err != nil {
			t.Errorf("gRPC could not send it: %v", err)
		}
		ok := got.GetOkResponse()
		if ok == nil {
			if status := got.GetDeniedResponse().GetStatus().GetCode(); !slices.Contains([]int32{400, 401, 403, 503}, int32(status)) || got.GetStatus().GetCode() == 0 {
				t.Errorf("denied with %d, code %d", status, got.GetStatus().GetCode())
			}
			return
		}
		if !holds(r, "good") {
			t.Errorf("let through without the token: %v", r)
		}
		set := headersOf(t, ok.Headers)
		if set["x-authfence-key-id"] != "key-1" {
			t.Errorf("it is somebody else: %v", set)
		}
		for name := range r.GetAttributes().GetRequest().GetHttp().GetHeaders() {
			name = strings.ToLower(name)
			if _, replaced := set[name]; strings.HasPrefix(name, "x-authfence-") && !replaced && !slices.Contains(ok.HeadersToRemove, name) {
				t.Errorf("%q goes on", name)
			}
		}
	})
}

func holds(r *auth.CheckRequest, token string) bool {
	request := r.GetAttributes().GetRequest().GetHttp()
	for _, value := range request.GetHeaders() {
		if strings.Contains(value, token) {
			return true
		}
	}
	for _, h := range request.GetHeaderMap().GetHeaders() {
		if strings.Contains(h.GetValue()+string(h.GetRawValue()), token) {
			return true
		}
	}
	return false
}
