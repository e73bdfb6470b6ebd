// Package report writes what was measured: JSON, tables for people, plots.
package report

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"
)

// Results is bench/out/results.json.
type Results struct {
	Taken   time.Time `json:"taken"`
	Machine Machine   `json:"machine"`
	Quick   bool      `json:"quick"`
	Method  Method    `json:"method"`

	Designs []Cell   `json:"designs"`
	Goals   []Goal   `json:"goals"`
	Scaling *Scaling `json:"scaling,omitempty"`
}

// Machine is what it was measured on.
type Machine struct {
	CPU      string `json:"cpu"`
	Cores    int    `json:"cores"`
	OS       string `json:"os"`
	Go       string `json:"go"`
	Postgres string `json:"postgres"`
	Redis    string `json:"redis"`
	NATS     string `json:"nats"`
}

// Method is what the figures depend on.
type Method struct {
	Users       int     `json:"users"`
	Skew        float64 `json:"zipf_skew"`
	PacedRate   int     `json:"paced_rate"` // requests/s at which latency and staleness are measured
	Outside     float64 `json:"changes_outside_the_application"`
	SlowShare   float64 `json:"slow_fills"`
	SlowPauseMS float64 `json:"slow_fill_ms"`
}

// Cell is one design under one workload.
type Cell struct {
	Name     string `json:"name"`
	Workload string `json:"workload"`
	Keys     int    `json:"keys"`
	Changes  int    `json:"changes_per_s"`

	RPS            float64 `json:"rps"`
	OfNoAuth       float64 `json:"of_no_auth"` // rps as a share of the service without authentication, in turn with it
	MeanMS         float64 `json:"mean_ms"`
	P50MS          float64 `json:"p50_ms"`
	P99MS          float64 `json:"p99_ms"`
	MaxMS          float64 `json:"max_ms"`
	Errors         int64   `json:"errors"`
	CPUPerRequest  float64 `json:"cpu_us_per_request"`
	PostgresPerSec float64 `json:"pg_queries_per_s"`

	Staleness    *Staleness `json:"staleness_ms"` // null: nothing was changed, or nobody is refused
	NeverEvicted int        `json:"never_evicted"`

	PacedRPS      float64 `json:"paced_rps"`       // that were reached
	ChangesPerSec float64 `json:"changes_reached"` // that were reached
	FirstError    string  `json:"first_error,omitempty"`
}

// Staleness in milliseconds after a revocation's commit; of what nothing evicted
// it is how long the cache would have gone on by its own word.
type Staleness struct {
	P50     float64 `json:"p50"`
	P99     float64 `json:"p99"`
	Max     float64 `json:"max"`
	Samples int     `json:"samples"`
}

// StalenessOf is that of samples in ascending order; nil for none.
func StalenessOf(samples []time.Duration) *Staleness {
	if len(samples) == 0 {
		return nil
	}
	at := func(q float64) float64 {
		return ms(samples[min(len(samples)-1, int(math.Ceil(q*float64(len(samples))))-1)])
	}
	return &Staleness{P50: at(.5), P99: at(.99), Max: at(1), Samples: len(samples)}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Goal is one of the project's goals and what was measured.
type Goal struct {
	Name     string  `json:"name"`
	Goal     string  `json:"goal"`
	Measured float64 `json:"measured"`
	Unit     string  `json:"unit"`
	Reached  bool    `json:"reached"`
}

// Scaling is how costs grow.
type Scaling struct {
	Nodes   []NodesPoint   `json:"nodes"`
	Keys    []KeysPoint    `json:"keys"`
	Backlog *Backlog       `json:"backlog"`
	Writers []WritersPoint `json:"writers"`
}

// NodesPoint is a number of nodes that follow one listener.
type NodesPoint struct {
	Nodes             int     `json:"nodes"`
	ListenerIdleCPU   float64 `json:"listener_idle_cpu"`          // share of a core, without changes: leases
	ListenerCPU       float64 `json:"listener_cpu"`               // with them
	ListenerPerChange float64 `json:"listener_cpu_us_per_change"` // the difference
	NATSIdleCPU       float64 `json:"nats_idle_cpu"`
	NATSCPU           float64 `json:"nats_cpu"`
	NATSOutIdle       float64 `json:"nats_out_bytes_per_s_idle"`
	NATSOutPerChange  float64 `json:"nats_out_bytes_per_change"`
	LeaseAsksPerSec   float64 `json:"lease_asks_per_s"`
	LeaseBytes        float64 `json:"lease_bytes_per_ask"` // ask and reply, in and out of the server
	LastP50           float64 `json:"commit_to_last_node_p50_ms"`
	LastP99           float64 `json:"commit_to_last_node_p99_ms"`
	NodeBytes         float64 `json:"node_bytes"` // memory of a node, its connection included
	ChangesPerSec     float64 `json:"changes_per_s"`
}

// KeysPoint is a number of keys in one node's memory.
type KeysPoint struct {
	Keys       int     `json:"keys"`
	EntryBytes float64 `json:"bytes_per_l1_entry"`
	FloorBytes float64 `json:"bytes_per_floor"`
	HitNS      float64 `json:"hit_ns"`
	FloorHitNS float64 `json:"floor_hit_ns"` // SHA-256, one look-up, one clock
}

// Backlog is the drain of a long outbox.
type Backlog struct {
	Changes   int       `json:"changes"`
	Seconds   float64   `json:"seconds"`
	PerSec    float64   `json:"changes_per_s"`
	RSSBefore float64   `json:"listener_rss_before_mb"`
	RSSPeak   float64   `json:"listener_rss_peak_mb"`
	At        []float64 `json:"at_s"`
	RSS       []float64 `json:"listener_rss_mb"`
	Left      []float64 `json:"left"`
}

// WritersPoint is saturating writers of a watched column.
type WritersPoint struct {
	Writers int     `json:"writers"`
	Bare    float64 `json:"bare_per_s"` // the same statements on an unwatched copy
	On      float64 `json:"notify_on_of_bare"`
	Off     float64 `json:"notify_off_of_bare"`
	Always  float64 `json:"notify_each_commit_of_bare"` // a NOTIFY with each commit, as by a trigger of one's own
}

// Write writes results.json into dir.
func (r *Results) Write(dir string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "results.json"), append(b, '\n'), 0o644)
}

// Read reads results.json of dir.
func Read(dir string) (*Results, error) {
	b, err := os.ReadFile(filepath.Join(dir, "results.json"))
	if err != nil {
		return nil, err
	}
	var r Results
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("read results.json: %w", err)
	}
	return &r, nil
}
