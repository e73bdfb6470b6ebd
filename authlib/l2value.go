package authlib

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/authfence/authfence/event"
)

// A value in Redis:
//
//	byte 0      version, 1
//	byte 1      length n of the sealing key's id
//	n bytes     the id
//	24 bytes    epoch, term and number of the stamp, big-endian
//	24 bytes    nonce
//	the rest    sealed JSON: {"map":fingerprint,"ttl":seconds,"row":record}
//
// What stands before the nonce is authenticated together with the ref, so a
// value cannot be moved to another key, given another stamp, or made by somebody
// who merely writes to Redis. A whole value can be put back later: that is what
// the stamp and rule 18 are for.
const (
	l2Version     = 1
	l2StampBytes  = 24
	l2MaxBytes    = 1 << 20 // longer values are not even decoded
	l2DataContext = "authfence l2 value"
)

var (
	errL2Foreign  = errors.New("value of another version or mapping")
	errL2Unopened = errors.New("value does not open")
)

// l2Body is the sealed part.
type l2Body struct {
	Mapping string          `json:"map"` // fingerprint of what the node loads
	Until   int64           `json:"ttl"` // Unix seconds, so that the time to live does not start anew at each node
	Row     json.RawMessage `json:"row"`
}

// l2Data is the additional data: the header as it stands, and the ref.
func l2Data(header []byte, ref event.Ref) []byte {
	data := make([]byte, 0, len(l2DataContext)+len(header)+len(ref.Kind)+len(ref.ID)+8)
	data = append(data, l2DataContext...)
	for _, part := range [][]byte{header, []byte(ref.Kind), []byte(ref.ID)} {
		data = binary.BigEndian.AppendUint32(data, uint32(len(part)))
		data = append(data, part...)
	}
	return data
}

func encodeL2(s *sealer, ref event.Ref, stamp event.Mark, body l2Body) ([]byte, error) {
	plain, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode l2 value: %w", err)
	}
	value := make([]byte, 0, 2+len(s.primary)+l2StampBytes+sealNonceBytes+len(plain)+16)
	value = append(value, l2Version, byte(len(s.primary)))
	value = append(value, s.primary...)
	value = binary.BigEndian.AppendUint64(value, uint64(stamp.Epoch))
	value = binary.BigEndian.AppendUint64(value, stamp.Position.Term)
	value = binary.BigEndian.AppendUint64(value, stamp.Position.N)
	value, err = s.seal(value, plain, l2Data(value, ref))
	if err != nil {
		return nil, fmt.Errorf("seal l2 value: %w", err)
	}
	return value, nil
}

// decodeL2 opens a value that was found under a ref. Its two errors are misses,
// told apart for the counters.
func decodeL2(s *sealer, ref event.Ref, value []byte) (l2Body, event.Mark, error) {
	if len(value) < 2 || len(value) > l2MaxBytes || value[0] != l2Version {
		return l2Body{}, event.Mark{}, errL2Foreign
	}
	id := int(value[1])
	if len(value) < 2+id+l2StampBytes+sealNonceBytes {
		return l2Body{}, event.Mark{}, errL2Foreign
	}
	header := value[:2+id+l2StampBytes]
	plain, err := s.open(string(value[2:2+id]), value[len(header):], l2Data(header, ref))
	if err != nil {
		return l2Body{}, event.Mark{}, errL2Unopened
	}
	mark := stampOf(header[2+id:])
	var body l2Body
	if json.Unmarshal(plain, &body) != nil {
		return l2Body{}, event.Mark{}, errL2Foreign
	}
	return body, mark, nil
}

// stampOf reads the stamp at the start of b.
func stampOf(b []byte) event.Mark {
	return event.Mark{
		Epoch: event.Epoch(binary.BigEndian.Uint64(b)),
		Position: event.Position{
			Term: binary.BigEndian.Uint64(b[8:]),
			N:    binary.BigEndian.Uint64(b[16:]),
		},
	}
}

// decodeKey reads a record that was sealed for a key.
func decodeKey(row []byte) (*keyRecord, error) {
	var r keyRecord
	if err := json.Unmarshal(row, &r); err != nil || r.ID == "" {
		return nil, errL2Foreign
	}
	r.permissions = ParsePermissions(r.Permissions)
	return &r, nil
}

// decodeOrganization reads a record that was sealed for the organization id.
func decodeOrganization(id string, row []byte) (*organizationRecord, error) {
	var r organizationRecord
	if err := json.Unmarshal(row, &r); err != nil || r.ID != id {
		return nil, errL2Foreign
	}
	return &r, nil
}
