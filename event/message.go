package event

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// LeaseAsk is a node's request for a lease (rule 12). The node notes its clock
// before it sends one.
type LeaseAsk struct {
	V         int      `json:"v"`
	Node      string   `json:"node"`  // name of the node; unique among the living
	Nonce     string   `json:"nonce"` // comes back in the reply; a fresh one each ask
	Epoch     Epoch    `json:"epoch"` // zero: the node knows of none yet
	Applied   Position `json:"applied"`
	Staleness Millis   `json:"staleness_ms"`      // how long a lease the node wants
	Leaving   bool     `json:"leaving,omitempty"` // the node gave its lease up and goes; no reply
}

// LeaseReply is the leader's answer, sent only after the COMMIT of a drain that
// began after the ask had arrived (rule 12).
type LeaseReply struct {
	V        int      `json:"v"`
	Nonce    string   `json:"nonce"`
	Epoch    Epoch    `json:"epoch"`
	Position Position `json:"pos"`               // the committed position
	Grant    Millis   `json:"grant_ms"`          // length of the lease, counted from the moment of the ask on the node's clock
	Refused  string   `json:"refused,omitempty"` // why there is no lease, in words (rule 23); Grant is then zero
}

// ReportAsk is sent by a leader to every node: answer once you are in this epoch
// and have applied this position (rule 22).
type ReportAsk struct {
	V        int      `json:"v"`
	Epoch    Epoch    `json:"epoch"`
	Position Position `json:"pos"`
	Wait     Millis   `json:"wait_ms"` // after this long the answer interests nobody
}

// Report is a node's answer.
type Report struct {
	V       int      `json:"v"`
	Node    string   `json:"node"`
	Epoch   Epoch    `json:"epoch"`
	Applied Position `json:"applied"`
}

// BarrierAsk asks the leader for a barrier: when the receipt comes, all that was
// committed before the ask is in force on every node that the leader has heard
// of lately.
type BarrierAsk struct {
	V    int    `json:"v"`
	Wait Millis `json:"wait_ms"` // give up after this long; zero: the leader's own limit
}

// Receipt answers a BarrierAsk (rule 22). With Error empty, no request begun
// after the receipt was sent is answered, on a node named in Confirmed, from
// what the position superseded; on any other process that holds a lease of this
// system or reads its Postgres, none begun RestRefuse after it. RestRefuse is
// zero when the leader waited that time out.
type Receipt struct {
	V           int           `json:"v"`
	Epoch       Epoch         `json:"epoch"`
	Position    Position      `json:"pos"`
	Confirmed   []Confirmed   `json:"confirmed"`
	Unconfirmed []string      `json:"unconfirmed,omitempty"` // nodes seen lately that did not confirm
	Took        time.Duration `json:"took_ns"`               // from the ask's arrival at the leader to the receipt
	RestRefuse  Millis        `json:"rest_refuse_ms"`        // rounded up (MillisUp)
	Error       string        `json:"error,omitempty"`
}

// Confirmed is one node in a receipt.
type Confirmed struct {
	Node string        `json:"node"`
	Took time.Duration `json:"took_ns"` // from the ask's arrival at the leader to the node's confirmation
}

// Mark is the freshness token of the receipt.
func (r Receipt) Mark() Mark { return Mark{Epoch: r.Epoch, Position: r.Position} }

// Millis is a duration that travels as whole milliseconds.
type Millis time.Duration

// Duration is m as a duration.
func (m Millis) Duration() time.Duration { return time.Duration(m) }

// MillisUp is d in milliseconds, rounded up: for a bound that is promised, as
// RestRefuse is.
func MillisUp(d time.Duration) Millis {
	return Millis((d + time.Millisecond - 1).Truncate(time.Millisecond))
}

// MarshalJSON writes whole milliseconds, rounded down: a lease that loses a
// fraction is safe, one that gains it is not.
func (m Millis) MarshalJSON() ([]byte, error) {
	return json.Marshal(time.Duration(m).Milliseconds())
}

// maxMillis keeps a duration from the wire far from overflow.
const maxMillis = int64(24 * time.Hour / time.Millisecond)

// UnmarshalJSON reads whole milliseconds, between zero and a day.
func (m *Millis) UnmarshalJSON(b []byte) error {
	var n int64
	if err := json.Unmarshal(b, &n); err != nil {
		return err
	}
	if n < 0 || n > maxMillis {
		return fmt.Errorf("%d ms is not between 0 and a day", n)
	}
	*m = Millis(time.Duration(n) * time.Millisecond)
	return nil
}

// Message is any of the messages beside events.
type Message interface {
	LeaseAsk | LeaseReply | ReportAsk | Report | BarrierAsk | Receipt | StatusAsk | StatusReply | EntryAsk | EntryReply | AppliedLog
}

// EncodeMessage writes a message's body at the current version.
func EncodeMessage[M Message](m M) ([]byte, error) {
	switch p := any(&m).(type) {
	case *LeaseAsk:
		p.V = messageVersion
	case *LeaseReply:
		p.V = messageVersion
	case *ReportAsk:
		p.V = messageVersion
	case *Report:
		p.V = messageVersion
	case *BarrierAsk:
		p.V = messageVersion
	case *Receipt:
		p.V = messageVersion
	case *StatusAsk:
		p.V = messageVersion
	case *StatusReply:
		p.V = messageVersion
	case *EntryAsk:
		p.V = messageVersion
	case *EntryReply:
		p.V = messageVersion
	case *AppliedLog:
		p.V = messageVersion
	}
	b, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", m, err)
	}
	return b, nil
}

// DecodeMessage reads a message's body; its errors are those of [Decode].
func DecodeMessage[M Message](body []byte) (M, error) {
	var m M
	if err := decode(body, &m, messageVersion, messageVersion); err != nil {
		return m, fmt.Errorf("decode %T: %w", m, err)
	}
	if err := validateMessage(any(&m)); err != nil {
		return m, fmt.Errorf("decode %T: %w", m, err)
	}
	return m, nil
}

// MaxNodeBytes bounds a node's name: the leader keeps one per node.
const MaxNodeBytes = 128

func validateMessage(m any) error {
	node, nonce := "-", "-"
	switch m := m.(type) {
	case *LeaseAsk:
		node, nonce = m.Node, m.Nonce
	case *LeaseReply:
		nonce = m.Nonce
		if m.Refused == "" && m.Epoch == 0 {
			return errors.New("epoch is missing")
		}
	case *ReportAsk:
		if m.Epoch == 0 {
			return errors.New("epoch is missing")
		}
	case *Report:
		node = m.Node
	case *StatusReply:
		node = m.Name
	case *EntryAsk:
		if err := m.validate(); err != nil {
			return err
		}
	case *EntryReply:
		node = m.Node
	case *AppliedLog:
		node = m.Node
		if err := m.validate(); err != nil {
			return err
		}
	}
	if node == "" || len(node) > MaxNodeBytes || !isPrintableASCII(node) {
		return fmt.Errorf("node name %q: want 1 to %d printable ASCII characters", clip(node), MaxNodeBytes)
	}
	if nonce == "" || len(nonce) > MaxNodeBytes {
		return errors.New("nonce is missing or too long")
	}
	return nil
}
