package invalidator

import (
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/event"
)

// waitingReport is a leader's question that the node cannot say yes to yet.
type waitingReport struct {
	at    event.Mark
	reply string
	until time.Time
}

const (
	reportsHeld   = 64
	reportWaitMax = time.Minute
)

// receiveReportAsk is rule 22, the node's side: say when a position is in
// force, and say nothing until then.
func (l *loop) receiveReportAsk(msg *nats.Msg) {
	ask, err := event.DecodeMessage[event.ReportAsk](msg.Data)
	if err != nil || !l.cfg.Subjects.Answerable(msg.Reply) {
		l.stats.badReplies.Add(1)
		return
	}
	if len(l.waiting) == reportsHeld {
		l.waiting = append(l.waiting[:0], l.waiting[1:]...)
	}
	l.waiting = append(l.waiting, waitingReport{
		at:    event.Mark{Epoch: ask.Epoch, Position: ask.Position},
		reply: msg.Reply,
		until: time.Now().Add(min(ask.Wait.Duration(), reportWaitMax)),
	})
}

func (l *loop) answerReports(now time.Time) {
	if len(l.waiting) == 0 {
		return
	}
	at := l.state.mark()
	kept := l.waiting[:0]
	for _, w := range l.waiting {
		switch {
		case at.Epoch == w.at.Epoch && !at.Position.Less(w.at.Position):
			l.report(w.reply, at)
		case now.Before(w.until):
			kept = append(kept, w)
		}
	}
	clear(l.waiting[len(kept):])
	l.waiting = kept
}

func (l *loop) report(reply string, at event.Mark) {
	body, err := event.EncodeMessage(event.Report{Node: l.cfg.Name, Epoch: at.Epoch, Applied: at.Position})
	if err == nil {
		err = l.nc.Publish(reply, body)
	}
	if err != nil {
		l.log.Debug("report", "err", err) // the leader waits the lease out instead
		return
	}
	l.stats.reports.Add(1)
}
