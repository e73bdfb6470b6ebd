package authlib_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"

	"github.com/authfence/authfence/authlib"
)

func Example() {
	serve := func(ctx context.Context, pool *pgxpool.Pool, nc *nats.Conn, client redis.UniversalClient, key []byte) error {
		auth, err := authlib.New(authlib.Config{
			Pool: pool, NATS: nc, Redis: client,
			SealKeys: []authlib.SealKey{{ID: "2026-01", Key: key}},
		})
		if err != nil {
			return err
		}
		mux := http.NewServeMux()
		mux.Handle("GET /invoices", authlib.Middleware(auth, authlib.Require("invoices", "read"))(http.HandlerFunc(
			func(w http.ResponseWriter, r *http.Request) {
				p, _ := authlib.FromContext(r.Context())
				fmt.Fprintf(w, "invoices of %s", p.OrganizationID())
			})))
		server := &http.Server{Addr: "127.0.0.1:8080", Handler: mux}
		done := make(chan error, 1)
		go func() { done <- auth.Run(ctx) }()
		context.AfterFunc(ctx, func() { _ = server.Close() })
		if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return <-done
	}
	_ = serve
	fmt.Println("ready")
	// Output: ready
}

func ExampleMiddleware() {
	auth := nobody{}
	handler := authlib.Middleware(auth)(http.NotFoundHandler())
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Authorization", "Bearer revoked-last-year")
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	fmt.Println(w.Code, w.Header().Get("WWW-Authenticate"))
	fmt.Println(strings.TrimSpace(w.Body.String()))
	// Output:
	// 401 Bearer error="invalid_token"
	// {"error":"invalid_token"}
}

func ExamplePermissions() {
	p := authlib.ParsePermissions([]byte(`{"invoices":["read","write"],"plans":["*"]}`))
	fmt.Println(p.Can("invoices", "write"), p.Can("invoices", "delete"), p.Can("plans", "delete"), p.Can("coupons", "read"))
	// Output: true false true false
}

func ExampleUnavailableError() {
	_, err := nobody{}.Authenticate(context.Background(), "down")
	var out *authlib.UnavailableError
	if errors.As(err, &out) {
		fmt.Println("try again in", out.RetryAfter)
	}
	// Output: try again in 1s
}

type nobody struct{}

func (nobody) Authenticate(_ context.Context, token string) (*authlib.Principal, error) {
	if token == "down" {
		return nil, &authlib.UnavailableError{Reason: "example", RetryAfter: 1e9}
	}
	return nil, authlib.ErrUnknown
}

func (n nobody) AuthenticateWith(ctx context.Context, token string, _ authlib.Request) (authlib.Result, error) {
	_, err := n.Authenticate(ctx, token)
	return authlib.Result{}, err
}
