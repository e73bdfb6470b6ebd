package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/authfence/authfence/"

// TestImports_GoOneWay holds the arrows of docs/design.md: what each room may
// reach, directly or not, of ours and of the heavy modules.
func TestImports_GoOneWay(t *testing.T) {
	for _, room := range []struct {
		name  string
		ours  []string // every package of ours that it may reach
		never []string // modules that it must not link
	}{
		{name: "event"},
		{name: "watch"},
		{name: "barrier", ours: []string{"event"}, never: []string{"nats-server", "redis", "pgx", "grpc"}},
		{name: "observe", ours: []string{"event"}, never: []string{"nats-server", "redis", "pgx", "grpc"}},
		{name: "observe/terminal", ours: []string{"event", "observe"}, never: []string{"nats-server", "redis", "pgx", "grpc"}},
		{name: "observe/tracing", ours: []string{"event"}, never: []string{"nats-server", "nats.go", "redis", "pgx", "grpc", "otel/sdk"}},
		{name: "observe/console", ours: []string{"event", "internal/histogram", "observe", "observe/terminal"}, never: []string{"nats-server", "redis", "pgx", "grpc", "prometheus", "chromedp"}},
		{name: "migrations", ours: []string{"watch"}, never: []string{"nats-server", "redis", "grpc"}},
		{name: "keys", ours: []string{"watch"}, never: []string{"nats-server", "nats.go", "redis", "grpc", "kong"}},
		{name: "observe/metrics", ours: []string{"authlib", "event", "internal/histogram", "invalidator", "listener", "observe", "observe/tracing", "watch"}, never: []string{"nats-server", "grpc", "kong", "go-control-plane", "otel/sdk"}},
		{name: "internal/histogram"},
		{name: "listener", ours: []string{"event", "internal/histogram"}, never: []string{"nats-server", "redis", "otter", "grpc", "prometheus"}},
		{name: "invalidator", ours: []string{"event", "internal/histogram"}, never: []string{"nats-server", "pgx", "grpc", "prometheus"}},
		{name: "authlib", ours: []string{"event", "internal/histogram", "invalidator", "observe", "observe/tracing", "watch"}, never: []string{"nats-server", "grpc", "kong", "go-control-plane", "prometheus", "otel/sdk"}},
		{name: "authlib/grpcauth", ours: []string{"authlib", "event", "internal/histogram", "invalidator", "observe", "observe/tracing", "watch"}, never: []string{"nats-server", "kong", "prometheus", "otel/sdk"}},
		{name: "gateway", ours: []string{"authlib", "barrier", "event", "internal/histogram", "invalidator", "observe", "observe/tracing", "watch"}, never: []string{"nats-server", "grpc", "kong", "go-control-plane", "prometheus", "otel/sdk"}},
		{name: "doctor", ours: []string{"authlib", "event", "internal/histogram", "invalidator", "listener", "migrations", "observe", "observe/tracing", "watch"}, never: []string{"nats-server", "grpc", "kong", "go-control-plane", "prometheus", "otel/sdk"}},
		{name: "gateway/extauthz", ours: []string{"authlib", "barrier", "event", "gateway", "internal/histogram", "invalidator", "observe", "observe/tracing", "watch"}, never: []string{"nats-server", "kong", "prometheus", "otel/sdk"}},
		{name: "internal/history"},
	} {
		t.Run(strings.ReplaceAll(room.name, "/", "_"), func(t *testing.T) {
			out, err := exec.Command("go", "list", "-deps", module+room.name).Output()
			if err != nil {
				t.Fatalf("go list: %v", err)
			}
			deps := strings.Fields(string(out))
			if !slices.Contains(deps, module+room.name) {
				t.Fatalf("go list does not know %s", room.name)
			}
			for _, dep := range deps {
				if ours, ok := strings.CutPrefix(dep, module); ok && ours != room.name && !slices.Contains(room.ours, ours) {
					t.Errorf("%s reaches %s", room.name, ours)
				}
				for _, heavy := range room.never {
					if strings.Contains(dep, "/"+heavy) {
						t.Errorf("%s links %s", room.name, dep)
					}
				}
			}
		})
	}
}
