package chaos

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/authfence/authfence/authlib"
	"github.com/authfence/authfence/internal/history"
)

// answerLog is the file that one life of a node process notes its answers in.
type answerLog struct {
	file     *os.File
	recorder *history.Recorder
	count    atomic.Int64

	mu          sync.Mutex
	unavailable map[string]int64 // by reason

	quit    chan struct{}
	flushed chan struct{} // closed when the flusher is gone
}

func openAnswers(path string) (*answerLog, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create the file of answers: %w", err)
	}
	recorder, err := history.NewRecorder(file)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	l := &answerLog{file: file, unavailable: map[string]int64{}, recorder: recorder, quit: make(chan struct{}), flushed: make(chan struct{})}
	go l.keepFlushing()
	return l, nil
}

// keepFlushing has little get lost with a process that is killed.
func (l *answerLog) keepFlushing() {
	defer close(l.flushed)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = l.flush() // an error stays, and the next append tells
		case <-l.quit:
			return
		}
	}
}

func (l *answerLog) flush() error { return l.recorder.Flush() }

func (l *answerLog) close() error {
	close(l.quit)
	<-l.flushed
	return errors.Join(l.flush(), l.file.Close())
}

// because counts why an answer was "unavailable".
func (l *answerLog) because(err error) {
	reason := err.Error()
	if why, ok := errors.AsType[*authlib.UnavailableError](err); ok {
		reason = why.Reason
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unavailable[reason]++
}

func (l *answerLog) reasons() map[string]int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.unavailable)
}

// note writes one answer down.
func (n *nodeProcess) note(key int, start, end, demand time.Duration, p *authlib.Principal, err error) {
	r := history.Record{
		Start: start, End: end, Demand: demand, Node: n.cfg.Number, Outcome: outcomeOf(err),
		Key: uint32(key), Organization: uint32(n.data.organizationOf(key)),
	}
	switch {
	case err == nil:
		r.KeyVersion, r.OrganizationVersion = versionsOf(p)
	case r.Outcome == history.Unavailable:
		n.log.because(err)
	}
	if n.log.recorder.Append(r) == nil {
		n.log.count.Add(1)
	}
}
