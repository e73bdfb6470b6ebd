package barrier_test

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/authfence/authfence/barrier"
	"github.com/authfence/authfence/event"
	"github.com/authfence/authfence/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// leader answers the nth ask (from one on) by what answer returns; nil is
// silence.
func leader(t *testing.T, answer func(n int64) *nats.Msg) *nats.Conn {
	t.Helper()
	server := testenv.NATS(t, testenv.NATSOptions{NoJetStream: true})
	nc, err := nats.Connect(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	var asks atomic.Int64
	if answer == nil {
		return nc
	}
	_, err = nc.Subscribe(event.Subjects{}.Barrier(), func(msg *nats.Msg) {
		ask, err := event.DecodeMessage[event.BarrierAsk](msg.Data)
		if err != nil || ask.Wait <= 0 {
			t.Errorf("ask %+v, %v", ask, err)
		}
		if reply := answer(asks.Add(1)); reply != nil {
			if err := msg.RespondMsg(reply); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return nc
}

func receipt(t *testing.T, r event.Receipt) *nats.Msg {
	t.Helper()
	body, err := event.EncodeMessage(r)
	if err != nil {
		t.Fatal(err)
	}
	return &nats.Msg{Data: body}
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestWait_AsksAgainWhereNobodyAnswersOrAnAskIsLost(t *testing.T) {
	want := event.Receipt{Epoch: 7, Position: event.Position{Term: 3, N: 9}}
	nc := leader(t, func(n int64) *nats.Msg {
		switch n {
		case 1: // a leader that has just gone says so as the server would
			return &nats.Msg{Header: nats.Header{"Status": {"503"}}}
		case 2:
			return nil
		}
		return receipt(t, want)
	})
	got, err := barrier.Wait(within(t, 30*time.Second), nc, event.Subjects{})
	if err != nil || got.Mark() != want.Mark() {
		t.Errorf("receipt %s, %v", got.Mark(), err)
	}
}

func TestWait_RefusalCarriesTheReceipt(t *testing.T) {
	nc := leader(t, func(int64) *nats.Msg {
		return receipt(t, event.Receipt{Unconfirmed: []string{"a"}, Error: "not in force everywhere"})
	})
	got, err := barrier.Wait(within(t, 30*time.Second), nc, event.Subjects{})
	if !errors.Is(err, barrier.ErrRefused) || len(got.Unconfirmed) != 1 {
		t.Errorf("receipt %+v, %v", got, err)
	}
}

func TestWait_SilenceAndAbsenceAreToldApart(t *testing.T) {
	silent := leader(t, func(int64) *nats.Msg { return nil })
	if _, err := barrier.Wait(within(t, 200*time.Millisecond), silent, event.Subjects{}); errors.Is(err, barrier.ErrNoLeader) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent leader: %v", err)
	}
	absent := leader(t, nil)
	if _, err := barrier.Wait(within(t, 200*time.Millisecond), absent, event.Subjects{}); !errors.Is(err, barrier.ErrNoLeader) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no leader: %v", err)
	}
}

func TestWait_GarbageIsAnError(t *testing.T) {
	nc := leader(t, func(int64) *nats.Msg { return &nats.Msg{Data: []byte("{")} })
	if _, err := barrier.Wait(within(t, 30*time.Second), nc, event.Subjects{}); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait returned %v", err)
	}
}

func TestWait_ClosedConnectionIsAnError(t *testing.T) {
	nc := leader(t, nil)
	nc.Close()
	if _, err := barrier.Wait(within(t, 30*time.Second), nc, event.Subjects{}); !errors.Is(err, nats.ErrConnectionClosed) {
		t.Errorf("Wait returned %v", err)
	}
}
