package demo

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// apiNode is one API node as its callers see it.
type apiNode struct {
	name string
	url  string
}

// answer is one request over HTTP as its caller saw it.
type answer struct {
	begun  time.Time
	status int
	err    error
}

// client keeps its connections open, as the callers of an API do.
func newClient(connections int) *http.Client {
	return &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{
			MaxIdleConns: 0, MaxIdleConnsPerHost: connections, MaxConnsPerHost: connections,
			IdleConnTimeout: time.Minute, DisableCompression: true,
		},
	}
}

func request(ctx context.Context, client *http.Client, node apiNode, token string) answer {
	a := answer{}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, node.url+"/v1/invoices", nil)
	if err != nil {
		a.err = err
		return a
	}
	r.Header.Set("Authorization", "Bearer "+token)
	a.begun = time.Now()
	response, err := client.Do(r)
	if err != nil {
		a.err = err
		return a
	}
	_, err = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	a.status, a.err = response.StatusCode, err
	return a
}

// change is what one probe saw on one node around a commit.
type change struct {
	node apiNode
	// until is how long after the commit the last request was begun that still
	// got the old answer; zero or less: none after the commit.
	until time.Duration
	// saw is how long after the commit the first request was begun that got the
	// new answer.
	saw    time.Duration
	before int // requests with the old answer, seen before the commit: the probe did see both
	err    error
}

// probe asks every node with token without a pause while commit runs, until
// every node gives the wanted status, and a little longer to see that it stays.
// The moment of the commit is the one at which commit returned. The database
// passed it earlier, so the times shown are short by up to the way back of one
// statement, and an answer is judged too mildly by no more than that.
func probe(ctx context.Context, client *http.Client, nodes []apiNode, token string, old, want int, commit func(context.Context) error) ([]change, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	answers := make([][]answer, len(nodes))
	seen, settled := make([]chan struct{}, len(nodes)), make([]chan struct{}, len(nodes))
	watching, stop := context.WithCancel(ctx)
	defer stop()
	var running sync.WaitGroup
	for i, node := range nodes {
		seen[i], settled[i] = make(chan struct{}), make(chan struct{})
		running.Go(func() {
			began, announced := false, false
			for watching.Err() == nil {
				a := request(watching, client, node, token)
				if watching.Err() != nil {
					return
				}
				answers[i] = append(answers[i], a)
				if !began && a.err == nil && a.status == old {
					began = true
					close(seen[i])
				}
				if !announced && a.err == nil && a.status == want {
					announced = true
					close(settled[i])
				}
				pause(watching, 200*time.Microsecond)
			}
		})
	}
	finish := func() { stop(); running.Wait() }

	for i, node := range nodes { // a change is seen only by who saw what was before
		select {
		case <-seen[i]:
		case <-ctx.Done():
			finish()
			return nil, fmt.Errorf("%s never gave %d: %w", node.name, old, context.Cause(ctx))
		}
	}
	if err := commit(ctx); err != nil {
		finish()
		return nil, err
	}
	committed := time.Now()
	for i, node := range nodes {
		select {
		case <-settled[i]:
		case <-ctx.Done():
			finish()
			return nil, fmt.Errorf("%s never gave %d: %w", node.name, want, context.Cause(ctx))
		}
	}
	pause(ctx, 100*time.Millisecond)
	finish()

	changes := make([]change, len(nodes))
	for i, node := range nodes {
		c := change{node: node, saw: -1}
		for _, a := range answers[i] {
			since := a.begun.Sub(committed)
			switch {
			case a.err != nil:
				c.err = a.err
			case a.status == old:
				if since <= 0 {
					c.before++
				}
				c.until = max(c.until, since)
			case a.status == want:
				if c.saw < 0 {
					c.saw = max(since, 0)
				}
			default:
				c.err = fmt.Errorf("answered %d, want %d or %d", a.status, old, want)
			}
		}
		if c.err == nil && c.before == 0 {
			c.err = fmt.Errorf("was never seen to answer %d before the commit", old)
		}
		changes[i] = c
	}
	return changes, nil
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
