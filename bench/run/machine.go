package main

import (
	"bufio"
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/authfence/authfence/bench/report"
	"github.com/authfence/authfence/bench/site"
)

func machine(ctx context.Context, s *site.Site) report.Machine {
	m := report.Machine{CPU: processor(), Cores: runtime.NumCPU(), OS: runtime.GOOS + "/" + runtime.GOARCH, Go: runtime.Version(), Postgres: s.Postgres.Version()}
	if options, err := redis.ParseURL(s.Redis.URL()); err == nil {
		client := redis.NewClient(options)
		defer client.Close()
		info, _ := client.Info(ctx, "server").Result() // for people
		for line := range strings.Lines(info) {
			if v, ok := strings.CutPrefix(line, "redis_version:"); ok {
				m.Redis = strings.TrimSpace(v)
			}
		}
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if d.Path == "github.com/nats-io/nats-server/v2" {
				m.NATS = d.Version
			}
		}
	}
	return m
}

// processor is the model's name, where the system tells.
func processor() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "processor of an unknown name"
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "processor of an unknown name"
}
