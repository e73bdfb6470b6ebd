package metrics_test

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/observe/metrics"
)

// A service that links authlib exports its node beside its own metrics.
func ExampleNode() {
	var auth *authlib.Authenticator // from authlib.New
	serve := func() error {
		registry := prometheus.NewRegistry()
		registry.MustRegister(metrics.Node(auth.Status))
		http.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true}))
		return http.ListenAndServe("127.0.0.1:9100", nil)
	}
	_ = serve
}
