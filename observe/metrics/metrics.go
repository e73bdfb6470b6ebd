// Package metrics gives what listeners and nodes know of themselves to
// Prometheus. It reads their status when it is scraped: what is measured costs
// nothing more for being scraped or not. docs/metrics.md has the table.
//
// A service that links authlib registers a [Node] with its own registry:
//
//	prometheus.MustRegister(metrics.Node(auth.Status))
package metrics

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/authfence/authfence/internal/histogram"
)

// Handler serves the metrics of these collectors, of the process and of Go, in
// Prometheus's text form or as OpenMetrics.
func Handler(version string, more ...prometheus.Collector) http.Handler {
	registry := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "authfence_build_info", Help: "1, labelled with the version of the program.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	registry.MustRegister(append(more, build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))...)
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true, MaxRequestsInFlight: 4})
}

// metric is one family of metrics, and how its samples are read from a status.
type metric[S any] struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(s S, sample func(value float64, labels ...string))
	hist func(s S) histogram.Snapshot // instead
}

type collector[S any] struct {
	status  func() S
	metrics []metric[S]
}

func (c *collector[S]) Describe(descs chan<- *prometheus.Desc) {
	for _, m := range c.metrics {
		descs <- m.desc
	}
}

func (c *collector[S]) Collect(samples chan<- prometheus.Metric) {
	s := c.status()
	for _, m := range c.metrics {
		if m.hist != nil {
			samples <- constHistogram(m.desc, m.hist(s))
			continue
		}
		m.read(s, func(value float64, labels ...string) {
			samples <- prometheus.MustNewConstMetric(m.desc, m.kind, value, labels...)
		})
	}
}

func constHistogram(desc *prometheus.Desc, h histogram.Snapshot) prometheus.Metric {
	buckets := make(map[float64]uint64, len(h.Bounds))
	var total uint64
	for i, n := range h.Counts { // the last is of what is above all bounds
		total += n
		if i < len(h.Bounds) {
			buckets[h.Bounds[i]] = total
		}
	}
	return prometheus.MustNewConstHistogram(desc, total, h.Sum, buckets)
}

func counter[S any](name, help string, read func(S) uint64) metric[S] {
	return one(prometheus.CounterValue, name, help, func(s S) float64 { return float64(read(s)) })
}

func gauge[S any](name, help string, read func(S) float64) metric[S] {
	return one(prometheus.GaugeValue, name, help, read)
}

func one[S any](kind prometheus.ValueType, name, help string, read func(S) float64) metric[S] {
	return metric[S]{desc: prometheus.NewDesc(name, help, nil, nil), kind: kind, read: func(s S, sample func(float64, ...string)) { sample(read(s)) }}
}

func counters[S any](name, help, label string, read func(S) map[string]uint64) metric[S] {
	return metric[S]{desc: prometheus.NewDesc(name, help, []string{label}, nil), kind: prometheus.CounterValue, read: func(s S, sample func(float64, ...string)) {
		for value, n := range read(s) {
			sample(float64(n), value)
		}
	}}
}

func gauges[S any](name, help, label string, read func(S) map[string]float64) metric[S] {
	return metric[S]{desc: prometheus.NewDesc(name, help, []string{label}, nil), kind: prometheus.GaugeValue, read: func(s S, sample func(float64, ...string)) {
		for value, n := range read(s) {
			sample(n, value)
		}
	}}
}

func spread[S any](name, help string, read func(S) histogram.Snapshot) metric[S] {
	return metric[S]{desc: prometheus.NewDesc(name, help, nil, nil), hist: read}
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// states is 1 for the one of all that is, and 0 for the others.
func states[T ~string](is T, all ...T) map[string]float64 {
	m := make(map[string]float64, len(all))
	for _, s := range all {
		m[string(s)] = bit(s == is)
	}
	return m
}
